"""From prompts to a costed plan, before any denoiser runs or is even loaded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sagediff.embeddings import Encoder, embed_prompts
from sagediff.errors import InputError
from sagediff.families import FAMILIES
from sagediff.grouping import group_prompts
from sagediff.ladder import Parting, Rung, group_ratios, ladder, nested_groups
from sagediff.levels import part_of_steps
from sagediff.plan import SharePlan
from sagediff.run import planned_calls


@dataclass(frozen=True)
class SharePolicy:
    """How prompts become a plan.

    Attributes:
        threshold: least cosine between any two members of a group, in [-1, 1].
        share_ratio: part of the steps that a group takes together, in [0, 1].
        max_group_size: most members of a group.
        shared_guidance: guidance scale of shared steps; 1.0 leaves the negative rows out, None takes the
            pipeline's.
        unguided: part of the steps, the first ones, that run without guidance for every prompt, in [0, 1].
        rungs: (threshold, share ratio) pairs above the first, which `threshold` and `share_ratio` are; both grow:
            prompts more alike than the threshold stay together longer. None (default): a fixed split.
        parting: with rungs, "tree" (default) cuts each group into the closer groups that the next rung makes of it,
            step by step; "together" gives every group one branch point, by its least alike pair.

    Raises:
        InputError: a value out of range.
    """

    threshold: float = 0.8
    share_ratio: float = 0.4
    max_group_size: int = 8
    shared_guidance: float | None = 1.0
    unguided: float = 0.0
    rungs: tuple[tuple[float, float], ...] = ()
    parting: Parting = "tree"

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """All rungs, the first one included."""
        return ladder([(self.threshold, self.share_ratio), *self.rungs])

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and -1 <= self.threshold <= 1):
            raise InputError(f"threshold must lie in [-1, 1], got {self.threshold}")
        if not 0 <= self.share_ratio <= 1:
            raise InputError(f"share_ratio must lie in [0, 1], got {self.share_ratio}")
        if not 0 <= self.unguided <= 1:
            raise InputError(f"unguided must lie in [0, 1], got {self.unguided}")
        if self.max_group_size < 1:
            raise InputError(f"max_group_size must be at least 1, got {self.max_group_size}")
        if self.shared_guidance is not None and not (
            math.isfinite(self.shared_guidance) and self.shared_guidance >= 0
        ):
            raise InputError(f"shared_guidance must be None or at least 0, got {self.shared_guidance}")
        if self.parting not in ("tree", "together"):
            raise InputError(f"parting must be 'tree' or 'together', got {self.parting!r}")
        ladder([(self.threshold, self.share_ratio), *self.rungs])

    def plan(self, vectors: Any, num_steps: int, rows_per_prompt: int = 2) -> SharePlan:
        """Group unit vectors, (N, D), and plan; pure."""
        groups = group_prompts(vectors, self.threshold, self.max_group_size)
        return self.plan_groups(groups, num_steps, rows_per_prompt, vectors)

    def plan_groups(
        self,
        groups: Sequence[Sequence[int]],
        num_steps: int,
        rows_per_prompt: int = 2,
        vectors: Any = None,
    ) -> SharePlan:
        """Plan groups that were made elsewhere, at this policy's threshold and size.

        Args:
            vectors: (N, D) unit vectors; only a policy with rungs asks for them, and only those of prompts in groups.

        Raises:
            InputError: the policy has rungs, and there are no vectors. PlanError: groups that are no partition.
        """
        unguided = part_of_steps(self.unguided, num_steps)
        if self.rungs and vectors is None:
            raise InputError("rungs need the prompts' vectors; plan without rungs, or with SharePolicy.plan")
        if self.rungs and self.parting == "tree":
            tree = nested_groups(vectors, groups, self.ladder, self.max_group_size)
            return SharePlan.from_tree(tree, num_steps, self.shared_guidance, unguided, rows_per_prompt)
        ratio: float | list[float] = self.share_ratio
        if self.rungs:
            ratio = group_ratios(vectors, groups, self.ladder)
        return SharePlan.from_groups(
            groups, num_steps, ratio, self.shared_guidance, unguided, rows_per_prompt
        )


@dataclass(frozen=True)
class CostBasis:
    """What a step of a prompt costs on a pipeline: rows_per_prompt 2 with guidance, else 1; calls of each step."""

    rows_per_prompt: int
    calls_per_step: tuple[int, ...]

    def of(self, plan: SharePlan) -> SharePlan:
        return plan.recost(self.rows_per_prompt, self.calls_per_step)


def plan_prompts(
    prompts: Sequence[str],
    policy: SharePolicy,
    pipe: Any,
    denoiser_class: str,
    num_inference_steps: int,
    guidance_scale: float,
    true_cfg_scale: float = 1.0,
    encoder: Encoder | None = None,
) -> SharePlan:
    """Embed, group and plan; runs a text encoder and nothing else.

    Args:
        pipe: holds the scheduler, whose kind sets the calls a step, and the text encoder; its denoiser may be
            absent.
        denoiser_class: name of the denoiser's class, which says how it is guided.
        true_cfg_scale: classifier-free guidance of the families whose `guidance_scale` is an input of the
            model (FLUX, Qwen-Image).

    Raises:
        InputError: an empty prompt, or a number out of range.
    """
    check_prompts(prompts)
    basis = cost_basis(pipe, denoiser_class, num_inference_steps, guidance_scale, true_cfg_scale)
    vectors = embed_prompts(prompts, pipe, encoder).vectors
    return basis.of(policy.plan(vectors, num_inference_steps))


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
    return (
        float(parameter.default)
        if parameter is not None and isinstance(parameter.default, int | float)
        else 1.0
    )


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises InputError unless `prompts` is a list of texts that are not blank."""
    if isinstance(prompts, str):
        raise InputError("prompts must be a list of strings, got one string")
    if not len(prompts):
        raise InputError("there are no prompts")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"prompt {i} is empty or not a string: {prompt!r}")
