"""A guidance scale of its own for prompts that share: their negative rows are moved, the pipeline's formula stays."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from sagediff.denoiser.call import DenoiserCall
from sagediff.denoiser.guidance import CONDITIONAL, MOVED_BY_SHARED_GUIDANCE, NEGATIVE
from sagediff.denoiser.lookup import Family
from sagediff.errors import UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan


def guidance_factor(pipe: Any, family: Family, plan: SharePlan, call: DenoiserCall) -> float | None:
    """(shared guidance - 1) / (pipeline's guidance - 1), where a shared guidance other than 1 applies; else None.

    Guidance scales count from the one that leaves the conditional prediction as it is, which the plan has
    at 1 and the family at its `unguided_scale`.

    Raises:
        UnsupportedPipelineError: the pipeline does not say its own guidance scale.
    """
    guidance = plan.shared_guidance
    if guidance is None or guidance == 1.0 or not plan.shared(call.step).any():
        return None
    if NEGATIVE not in call.parts:
        return None  # there is no guidance to change
    if CONDITIONAL not in call.parts:
        raise UnsupportedPipelineError(
            f"shared_guidance {guidance:g} needs the pipeline's own guidance scale, which "
            f"{type(pipe).__name__} does not tell; only None (as the pipeline's) and 1.0 work with "
            f"pipelines that call the denoiser twice per step"
        )
    if not MOVED_BY_SHARED_GUIDANCE.issuperset(call.parts):
        raise UnsupportedPipelineError(
            f"shared_guidance {guidance:g} cannot be had where guidance has the parts {', '.join(call.parts)}; use "
            f"None (as the pipeline's) or 1.0"
        )
    if "use_dynamic_cfg" in inspect.signature(type(pipe).__call__).parameters:
        # CogVideoX: what it tells at a call of its denoiser is the scale of the step before
        raise UnsupportedPipelineError(
            f"shared_guidance {guidance:g} cannot be had with {type(pipe).__name__}, which may change its own guidance "
            f"scale from step to step; use None (as the pipeline's) or 1.0"
        )
    scale, unguided = getattr(pipe, "guidance_scale", None), family.unguided_scale
    if not isinstance(scale, int | float) or scale == unguided:
        raise UnsupportedPipelineError(
            f"shared_guidance {guidance:g} needs the pipeline's `guidance_scale` to be a number "
            f"other than {unguided:g}, but {type(pipe).__name__} has {scale!r}; use None or 1.0"
        )
    return (guidance - 1.0) / (float(scale) - unguided)


def reguided(prediction: Tensor, plan: SharePlan, call: DenoiserCall, factor: float) -> Tensor:
    """The prediction (rows, ...) with the negative part of shared prompts moved so that the pipeline's guidance s
    comes out as the shared guidance g.

    With u' = c + (g - 1) / (s - 1) (u - c): u' + s (c - u') = c + (1 - g) (u - c) = u + g (c - u).  The
    other parts stay, so that a guidance rescaling that looks at it sees the model's own.
    """
    parts = dict(zip(call.parts, prediction.chunk(len(call.parts)), strict=True))
    negative, conditional = parts[NEGATIVE], parts[CONDITIONAL]
    shared = torch.from_numpy(plan.shared(call.step)).to(prediction.device)
    flags = shared.view(-1, *[1] * (prediction.ndim - 1))
    parts[NEGATIVE] = torch.where(flags, conditional + factor * (negative - conditional), negative)
    return torch.cat(list(parts.values()))
