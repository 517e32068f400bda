"""What the guiders of a modular pipeline tell of its denoiser calls.

diffusers' modular pipelines have no guidance of their own: a component, the guider, says at every step which conditions
are run, and the loop calls the denoiser once for each of them, the conditional one first.  So how a denoiser is guided
there is told by the run, whatever the table says of the class in pipelines of the other kind.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sagediff.denoiser.family import Family


def is_modular(pipe: Any) -> bool:
    """Whether a pipeline is made of blocks, diffusers' `ModularPipeline`."""
    return any(cls.__name__ == "ModularPipeline" for cls in type(pipe).__mro__)


def guiders_of(pipe: Any) -> list[Any]:
    """The guiders among a modular pipeline's components, in the order in which it names them; none of another one."""
    if not is_modular(pipe):
        return []
    return [part for part in pipe.components.values() if hasattr(part, "prepare_inputs_from_block_state")]


def as_called(family: Family, pipe: Any) -> Family:
    """The family as this pipeline calls it: a guider runs each of its conditions in a call of its own."""
    if family.guidance == "two calls" or not guiders_of(pipe):
        return family
    return replace(family, guidance="two calls", first="conditional")
