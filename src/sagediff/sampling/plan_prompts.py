"""From prompts to a costed plan, before any denoiser runs or is even loaded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from sagediff.denoiser.guidance import planned_rows, ways_of
from sagediff.denoiser.guiders import conditions_at
from sagediff.denoiser.lookup import FAMILIES
from sagediff.errors import InputError
from sagediff.files.json_input import read_object
from sagediff.plan.compatibility import group_requests
from sagediff.plan.levels import part_of_steps
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.prompts.embeddings import Encoder, embed_prompts
from sagediff.prompts.requests import ImageRequest, as_requests
from sagediff.sampling.reading import read_prompts
from sagediff.sampling.strength import calls_taken


@dataclass(frozen=True)
class CostBasis:
    """What a prompt's steps cost on a pipeline.

    Attributes:
        rows_per_prompt: 2 with guidance, more with guidance of further parts, else 1; the most of any step.
        calls_per_step: denoiser calls of each step that is really taken: with a strength below 1 those are fewer than
            the call names.
    """

    rows_per_prompt: int
    calls_per_step: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        return len(self.calls_per_step)

    def of(self, plan: SharePlan) -> SharePlan:
        return plan.recost(self.rows_per_prompt, self.calls_per_step)


def plan_prompts(
    prompts: Iterable[str | ImageRequest],
    sharing: Sharing,
    pipe: Any,
    denoiser_class: str,
    num_inference_steps: int,
    guidance_scale: float,
    true_cfg_scale: float | None = None,
    encoder: Encoder | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    has_negative: bool | None = None,
    starts: Sequence[Hashable] | None = None,
    read: Sequence[Hashable] | None = None,
    guided: Sharing | None = None,
    strength: float | None = None,
    vectors: npt.NDArray[np.float32] | None = None,
    keywords: Mapping[str, Any] = MappingProxyType({}),
) -> SharePlan:
    """Embed, group and plan; runs a text encoder and nothing else.

    Args:
        pipe: holds the scheduler, whose kind sets the calls per step, and the text encoder; its denoiser may be
            absent.
        denoiser_class: name of the denoiser's class, which says how it is guided.
        true_cfg_scale: classifier-free guidance of the families whose `guidance_scale` is an input of the
            model (FLUX, Qwen-Image); None for the pipeline's own default.
        groups: prompt numbers, where they were grouped elsewhere.
        has_negative: whether a negative prompt goes with every one of them, without which those families do not guide,
            unless a request has one of its own; None: if `true_cfg_scale` is given.
        starts: for each prompt what its image is begun from; only prompts with equal ones share.
        read: for each prompt what the text encoders read of it (`read_prompts`); None reads them here.
        guided: as `SharedSampler` takes it.
        strength: where a request names none; None for the pipeline's own. The plan has the steps that it leaves.
        vectors: of the prompts, (N, D) of unit length, where they were embedded elsewhere.
        keywords: further ones of the pipeline's calls, some of which add to its guidance.

    Raises:
        InputError: an empty prompt, or a number out of range; or requests that one plan cannot cost.
    """
    requests = as_requests(prompts)
    if has_negative is None:
        has_negative = true_cfg_scale is not None
    guidance = [
        (
            guidance_scale if each.guidance_scale is None else each.guidance_scale,
            has_negative or each.negative_prompt is not None,
            strength if each.strength is None else each.strength,
        )
        for each in requests
    ]
    bases = {
        each: cost_basis(
            pipe, denoiser_class, num_inference_steps, each[0], true_cfg_scale, *each[1:], keywords
        )
        for each in dict.fromkeys(guidance)
    }
    if len(taken := {basis.num_steps for basis in bases.values()}) > 1:
        raise InputError(
            f"the strengths of these requests leave {' and '.join(map(str, sorted(taken)))} of {num_inference_steps} "
            f"steps, which one plan cannot hold; sample them apart, one strength at a time"
        )
    calls = bases[guidance[0]].calls_per_step  # the solver's: of every prompt
    steps = len(calls)
    own = part_of_steps(sharing.unguided, steps)
    named = own if guided is None else part_of_steps(guided.unguided, steps)
    starts_guided: list[int | None] = [
        None if bases[each].rows_per_prompt == 1 else own if request.guidance_scale is None else named
        for each, request in zip(guidance, requests, strict=True)
    ]

    most_rows = max(2, *(basis.rows_per_prompt for basis in bases.values()))

    def costed(plan: SharePlan) -> SharePlan:
        return plan.recost(calls_per_step=calls).with_guidance(starts_guided, most_rows)

    if groups is not None:
        return costed(sharing.plan_groups(groups, steps))
    if vectors is None:
        vectors = embed_prompts([request.prompt for request in requests], pipe, encoder).vectors
    rows = {request.prompt: row for request, row in zip(requests, vectors, strict=True)}
    if read is None:
        read = read_prompts(pipe, [request.prompt for request in requests]).keys
    found = group_requests(
        requests, sharing, lambda texts: np.stack([rows[text] for text in texts]), read=read, starts=starts
    )
    return costed(sharing.plan_groups(found, steps, vectors=vectors))


def cost_basis(
    pipe: Any,
    denoiser_class: str,
    num_inference_steps: int,
    guidance_scale: float,
    true_cfg_scale: float | None = None,
    has_negative: bool = False,
    strength: float | None = None,
    keywords: Mapping[str, Any] = MappingProxyType({}),
) -> CostBasis:
    """What plans for a pipeline are costed by; the arguments are those of `plan_prompts`.

    Raises:
        InputError: a number out of range, or a guidance scale for a pipeline that takes none.
    """
    if isinstance(num_inference_steps, bool) or num_inference_steps < 1:
        raise InputError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    numbers = (
        ("guidance_scale", guidance_scale),
        ("true_cfg_scale", true_cfg_scale),
        ("strength", strength),
    )
    for name, scale in numbers:
        if scale is not None and not math.isfinite(scale):
            raise InputError(f"{name} must be a finite number, got {scale}")
    family = FAMILIES.get(denoiser_class)
    if not takes_guidance(pipe) and guidance_scale != 1.0:
        raise InputError(
            f"{type(pipe).__name__} takes no guidance scale, its guider has it: set that (pipe.guider), and leave "
            f"the scale out"
        )
    conditions = conditions_at(pipe, num_inference_steps, guidance_scale if takes_guidance(pipe) else None)
    if conditions is not None:  # guiders say it, whatever the class does in other pipelines
        return CostBasis(max(conditions), calls_taken(pipe, num_inference_steps, strength))
    if family is not None and family.scale == "true_cfg_scale":
        scale = default_of(type(pipe), "true_cfg_scale") if true_cfg_scale is None else true_cfg_scale
        guided = has_negative and scale > family.unguided_scale and has_negative_rows(pipe)
    else:
        unguided = 1.0 if family is None else family.unguided_scale
        guided = _says_guided(pipe, denoiser_class, guidance_scale, unguided) and has_negative_rows(pipe)
    rows = 2 if guided else 1
    if family is not None:
        rows = planned_rows(
            ways_of(type(pipe), family), guided, lambda flag: _will_be_on(pipe, flag, keywords), keywords
        )
    return CostBasis(rows, calls_taken(pipe, num_inference_steps, strength))


def has_negative_rows(pipe: Any) -> bool:
    """Whether a pipeline guides by negative rows at all; if not, its guidance scale is an input of the model."""
    if not callable(pipe):  # only what planning needs of a pipeline: no call to ask
        return True
    return any(name.startswith("negative_") for name in inspect.signature(type(pipe).__call__).parameters)


def takes_guidance(pipe: Any) -> bool:
    """Whether a pipeline is told how to guide by numbers of its call, as all are but those with a guider."""
    if not callable(pipe):
        return True
    parameters = inspect.signature(type(pipe).__call__).parameters
    return not hasattr(pipe, "guider") or "guidance_scale" in parameters or "true_cfg_scale" in parameters


def default_guidance(pipe_class: type) -> float:
    """The pipeline's own default guidance scale, from the signature of its call."""
    return default_of(pipe_class, "guidance_scale")


def default_of(pipe_class: type, keyword: str) -> float:
    """The pipeline's own default of a scale, from the signature of its call; 1 where it has none."""
    parameter = inspect.signature(pipe_class.__call__).parameters.get(keyword)
    default = getattr(parameter, "default", None)
    return float(default) if isinstance(default, int | float) else 1.0


def _will_be_on(pipe: Any, flag: str, keywords: Mapping[str, Any]) -> bool:
    """What the pipeline would answer in its call when asked for an attribute that follows from keywords of it."""
    question = getattr(type(pipe), flag, None)
    if not isinstance(question, property) or question.fget is None:
        return False
    given = {
        name: keywords.get(name, parameter.default)
        for name, parameter in inspect.signature(type(pipe).__call__).parameters.items()
    }
    own = {"pag_applied_layers": getattr(pipe, "pag_applied_layers", ())}
    running = SimpleNamespace(**given, **{f"_{name}": value for name, value in given.items()}, **own)
    try:
        return bool(question.fget(running))
    except (AttributeError, TypeError):
        return False


def _says_guided(pipe: Any, denoiser_class: str, guidance_scale: float, unguided_scale: float) -> bool:
    """What the pipeline would answer when asked, at its first step, whether it guides.

    It is asked as if it ran: some answer by their denoiser's configuration (LCM's U-Nets take the scale as an input).
    """
    question = getattr(type(pipe), "do_classifier_free_guidance", None)
    if not isinstance(question, property) or question.fget is None:
        return guidance_scale > unguided_scale
    asked = {name: getattr(pipe, name, None) for name in ("config", "unet", "transformer")}
    for name in ("unet", "transformer"):
        if asked[name] is None:  # planned without it
            asked[name] = SimpleNamespace(config=_DenoiserConfig(pipe, name))
    running = SimpleNamespace(**asked, _guidance_scale=guidance_scale, guidance_scale=guidance_scale)
    try:
        return bool(question.fget(running))
    except AttributeError:
        return guidance_scale > unguided_scale


class _DenoiserConfig:
    """The configuration of a denoiser that was not loaded, read from the model's folder; None for what is not there."""

    def __init__(self, pipe: Any, part: str) -> None:
        folder = getattr(getattr(pipe, "config", None), "_name_or_path", None)
        path = Path(str(folder)) / part / "config.json"
        self._found = read_object(path) if folder is not None and path.is_file() else {}

    def __getattr__(self, name: str) -> Any:
        return self._found.get(name)
