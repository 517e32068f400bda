"""Loops of pipelines that do not run all of the scheduler's timesteps once: what they say about it beforehand."""

from __future__ import annotations

from typing import Any

from sagediff.errors import UnsupportedPipelineError


def check_loop(pipe: Any) -> None:
    """A run of the pipeline goes through its timesteps once.

    Raises:
        UnsupportedPipelineError: it goes through them again, from a state that the members of a group no longer have in
            common.
    """
    if getattr(pipe, "free_init_enabled", False) and getattr(pipe, "_free_init_num_iters", 0) != 1:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} cannot share steps with FreeInit: each of its iterations starts from the images of "
            f"the one before, which members of a group no longer have in common; call disable_free_init()"
        )


def last_timestep(pipe: Any) -> float | None:
    """The timestep below which a run that is told to end early takes no more (SDXL's `denoising_end`); None: it takes
    all."""
    end = getattr(pipe, "denoising_end", None)
    if not isinstance(end, float) or not 0 < end < 1:
        return None
    count = pipe.scheduler.config.num_train_timesteps
    return float(round(count - end * count))
