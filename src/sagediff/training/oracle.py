"""Whether a pipeline speaks to its denoiser as declared, proven by its own loop and without weights.

An oracle that knows the clean latents x0 answers in the denoiser's place. All it is told is what the denoiser is told:
the noisy latents, and a time from which the declared convention reads the noise level. With what the convention says
that a perfect denoiser answers, the pipeline's loop must lead to x0; with a wrong sign, a wrong scale of time or the
wrong prediction it leads elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sagediff.errors import UnsupportedPipelineError
from sagediff.training.answered import stepping
from sagediff.training.forward_process import rows_of
from sagediff.training.trainable import TrainableDenoiser

_STEPS = 6
_TOLERANCE = (
    0.1  # a last step may leave some noise (DDIM 3 %), a wrong convention leaves about as much as there was
)


def oracle_error(denoiser: TrainableDenoiser, guided: bool = False, steps: int = _STEPS) -> float:
    """How far from x0 the pipeline's loop ends, relative to x0 (root mean square)."""
    family, process, convention = denoiser.family, denoiser.process, denoiser.convention
    generator = torch.Generator().manual_seed(0)
    clean = (
        torch.rand(1, *denoiser.sample_shape, generator=generator) * 1.8 - 0.9
    )  # not cut where solvers cut at 1

    def answer(named: dict[str, Any], forward: Callable[[], Any]) -> Any:
        tensors = family.tensors(named, type(denoiser.module).__name__)
        sample = tensors[family.sample]
        told = tensors[convention.time_argument].reshape(-1).cpu()[:1]  # the same for all rows
        timestep = convention.heard(told, denoiser.train_timesteps, denoiser.module.config)
        timestep = (timestep.round().long() if process.alphas_cumprod is not None else timestep).expand(
            len(sample)
        )
        state, x0 = sample.cpu().double(), clean.double().expand(len(sample), *clean.shape[1:])
        alpha, sigma = (rows_of(level, state) for level in process.levels(timestep))
        noise = (state - alpha * x0) / sigma
        return denoiser.answer(process.target(x0, noise, timestep).to(sample), named)

    ends: list[Tensor] = []

    def note(state: Tensor) -> Tensor:
        ends[:] = [state]
        return state

    with stepping(denoiser.pipe.scheduler, note):
        denoiser.run(["an image"], answer, guided, steps, generator=torch.Generator().manual_seed(1))
    end = ends[0].reshape(clean.shape).cpu().float()
    return float((end - clean).square().mean().sqrt() / clean.square().mean().sqrt())


def prove(denoiser: TrainableDenoiser, steps: int = _STEPS) -> None:
    """The pipeline's loop, led by the oracle, must end at x0.

    Raises:
        UnsupportedPipelineError: it does not.
    """
    error = oracle_error(denoiser, steps=steps)
    if not error <= _TOLERANCE:
        raise UnsupportedPipelineError(
            f"{type(denoiser.pipe).__name__} with {type(denoiser.pipe.scheduler).__name__} does not come out where a "
            f"perfect {type(denoiser.module).__name__} would lead it (off by {error:.0%}), as its loop tells time or "
            "reads predictions in another way than is declared for that class; it can be sampled, but not trained"
        )
