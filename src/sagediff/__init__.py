"""Shared sampling for diffusers pipelines: similar prompts share their early denoising steps.

Importing the package, or planning with it, imports neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagediff.errors import InputError as InputError
    from sagediff.errors import ModelError as ModelError
    from sagediff.errors import OutputError as OutputError
    from sagediff.errors import PlanError as PlanError
    from sagediff.errors import SagediffError as SagediffError
    from sagediff.errors import StoppedError as StoppedError
    from sagediff.errors import UnsupportedPipelineError as UnsupportedPipelineError
    from sagediff.pipelines.loading import load_pipeline as load_pipeline
    from sagediff.plan.grouping import group_prompts as group_prompts
    from sagediff.plan.share_plan import SharePlan as SharePlan
    from sagediff.plan.sharing import Sharing as Sharing
    from sagediff.prompts.embeddings import embed_prompts as embed_prompts
    from sagediff.prompts.requests import ImageRequest as ImageRequest
    from sagediff.sampling.context import shared_sampling as shared_sampling
    from sagediff.sampling.sampler import SharedResult as SharedResult
    from sagediff.sampling.sampler import SharedSampler as SharedSampler
    from sagediff.sampling.trajectory import Trajectory as Trajectory

__version__ = "0.1.0"

_HOMES = {
    "ImageRequest": "prompts.requests",
    "InputError": "errors",
    "ModelError": "errors",
    "OutputError": "errors",
    "PlanError": "errors",
    "SagediffError": "errors",
    "SharePlan": "plan.share_plan",
    "SharedResult": "sampling.sampler",
    "SharedSampler": "sampling.sampler",
    "Sharing": "plan.sharing",
    "StoppedError": "errors",
    "Trajectory": "sampling.trajectory",
    "UnsupportedPipelineError": "errors",
    "embed_prompts": "prompts.embeddings",
    "group_prompts": "plan.grouping",
    "load_pipeline": "pipelines.loading",
    "shared_sampling": "sampling.context",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"sagediff.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'sagediff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
