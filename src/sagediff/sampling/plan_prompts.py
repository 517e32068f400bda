"""From prompts to a costed plan, before any denoiser runs or is even loaded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagediff.denoiser.lookup import FAMILIES
from sagediff.denoiser.scheduler import planned_calls
from sagediff.errors import InputError
from sagediff.plan.compatibility import group_requests
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.prompts.embeddings import Encoder, embed_prompts
from sagediff.prompts.requests import ImageRequest, as_requests


@dataclass(frozen=True)
class CostBasis:
    """What a step of a prompt costs on a pipeline: rows_per_prompt 2 with guidance, else 1; calls of each step."""

    rows_per_prompt: int
    calls_per_step: tuple[int, ...]

    def of(self, plan: SharePlan) -> SharePlan:
        return plan.recost(self.rows_per_prompt, self.calls_per_step)


def plan_prompts(
    prompts: Sequence[str | ImageRequest],
    sharing: Sharing,
    pipe: Any,
    denoiser_class: str,
    num_inference_steps: int,
    guidance_scale: float,
    true_cfg_scale: float = 1.0,
    encoder: Encoder | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> SharePlan:
    """Embed, group and plan; runs a text encoder and nothing else.

    Args:
        pipe: holds the scheduler, whose kind sets the calls per step, and the text encoder; its denoiser may be
            absent.
        denoiser_class: name of the denoiser's class, which says how it is guided.
        true_cfg_scale: classifier-free guidance of the families whose `guidance_scale` is an input of the
            model (FLUX, Qwen-Image).
        groups: prompt numbers, where they were grouped elsewhere.

    Raises:
        InputError: an empty prompt, or a number out of range.
    """
    requests = as_requests(prompts)
    scales = [guidance_scale if each.guidance_scale is None else each.guidance_scale for each in requests]
    bases = {
        cost_basis(pipe, denoiser_class, num_inference_steps, scale, true_cfg_scale)
        for scale in dict.fromkeys(scales)
    }
    if len(bases) > 1:
        raise InputError(
            "some of these requests are guided and some are not, which one plan cannot cost; sample them apart"
        )
    basis = bases.pop()
    if groups is not None:
        return basis.of(sharing.plan_groups(groups, num_inference_steps))
    vectors = embed_prompts([request.prompt for request in requests], pipe, encoder).vectors
    rows = {request.prompt: row for request, row in zip(requests, vectors, strict=True)}
    found = group_requests(requests, sharing, lambda texts: np.stack([rows[text] for text in texts]))
    return basis.of(sharing.plan_groups(found, num_inference_steps, vectors=vectors))


def cost_basis(
    pipe: Any,
    denoiser_class: str,
    num_inference_steps: int,
    guidance_scale: float,
    true_cfg_scale: float = 1.0,
) -> CostBasis:
    """What plans for a pipeline are costed by; the arguments are those of `plan_prompts`.

    Raises:
        InputError: a number out of range.
    """
    if isinstance(num_inference_steps, bool) or num_inference_steps < 1:
        raise InputError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    if not math.isfinite(guidance_scale):
        raise InputError(f"guidance_scale must be a finite number, got {guidance_scale}")
    family = FAMILIES.get(denoiser_class)
    scale = true_cfg_scale if family is not None and family.scale == "true_cfg_scale" else guidance_scale
    guided = scale > (1.0 if family is None else family.unguided_scale) and has_negative_rows(pipe)
    return CostBasis(2 if guided else 1, planned_calls(pipe.scheduler, num_inference_steps))


def has_negative_rows(pipe: Any) -> bool:
    """Whether a pipeline guides by negative rows at all; if not, its guidance scale is an input of the model."""
    if getattr(getattr(pipe, "config", None), "is_distilled", False):  # FLUX.2 Klein ignores its scale then
        return False
    if not callable(pipe):  # only what planning needs of a pipeline: no call to ask
        return True
    return any(name.startswith("negative_") for name in inspect.signature(type(pipe).__call__).parameters)


def default_guidance(pipe_class: type) -> float:
    """The pipeline's own default guidance scale, from the signature of its call."""
    parameter = inspect.signature(pipe_class.__call__).parameters.get("guidance_scale")
    default = getattr(parameter, "default", None)
    return float(default) if isinstance(default, int | float) else 1.0
