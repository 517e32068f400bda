"""Which family a pipeline's denoiser belongs to.  The table itself is `table.py`."""

from __future__ import annotations

from typing import Any

import torch

from sagediff.denoiser.family import Family, GuidanceKind, Role
from sagediff.denoiser.guiders import as_called
from sagediff.denoiser.places import places_of
from sagediff.denoiser.private_names import unwrapped
from sagediff.denoiser.refused import check_pipeline_class
from sagediff.denoiser.table import FAMILIES
from sagediff.errors import UnsupportedPipelineError

__all__ = ["FAMILIES", "Family", "GuidanceKind", "Role", "denoiser_of", "denoisers_of", "family_of"]


def denoisers_of(pipe: Any) -> list[torch.nn.Module]:
    """The modules that a pipeline calls at its steps: its `unet`, or else its `transformer` and a `transformer_2` that
    takes over from it on the way; or those that `PLACES` names.

    Raises:
        UnsupportedPipelineError: it has none, or is of a class that cannot share (`refused.py`).
    """
    names = [cls.__name__ for cls in type(pipe).__mro__]
    check_pipeline_class(*names)
    places = places_of(names)
    found = [getattr(pipe, name, None) for name in places]
    modules = [module for module in found if isinstance(module, torch.nn.Module)]
    if places[0] == "unet" and isinstance(found[0], torch.nn.Module):
        return modules[:1]
    if not modules:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} has no denoiser that sharing knows: expected a module named `unet` or "
            f"`transformer`"
        )
    return modules


def denoiser_of(pipe: Any) -> torch.nn.Module:
    """The module that a pipeline calls at its first step.

    Raises:
        UnsupportedPipelineError: it has none.
    """
    return denoisers_of(pipe)[0]


def family_of(denoiser: torch.nn.Module, pipe: Any = None) -> Family:
    """The table's entry for a denoiser's class, compiled or not, or for one of its base classes.

    Args:
        pipe: the pipeline that calls it; some give an argument another role, or call it in another way.

    Raises:
        UnsupportedPipelineError: none is known.
    """
    denoiser = unwrapped(denoiser)
    for cls in type(denoiser).__mro__:
        if cls.__name__ in FAMILIES:
            family = FAMILIES[cls.__name__].in_pipeline(base.__name__ for base in type(pipe).__mro__)
            return as_called(family, pipe)
    raise UnsupportedPipelineError(
        f"shared sampling does not know the denoiser class {type(denoiser).__name__}; known are "
        f"{', '.join(sorted(FAMILIES))}. To add it, put a Family under its name into "
        f"sagediff.denoiser.lookup.FAMILIES that says which arguments of its forward are rows, conditions, masks "
        f"or neither"
    )
