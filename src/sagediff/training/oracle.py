"""Whether a pipeline speaks to its denoiser as declared, proven by its own loop and without weights.

An oracle that knows the clean latents x0 answers in the denoiser's place. All it is told is what the denoiser is told:
the noisy latents, and a time from which the declared convention reads the noise level. With what the convention says
that a perfect denoiser answers, the pipeline's loop must lead to x0; with a wrong sign, a wrong scale of time or the
wrong prediction it leads elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sagediff.errors import UnsupportedPipelineError
from sagediff.training.answered import stepping
from sagediff.training.forward_process import rows_of
from sagediff.training.trainable import TrainableDenoiser

_STEPS = 6
_END = (
    0.1  # a last step may leave some noise (DDIM 3 %), a wrong convention leaves about as much as there was
)
_STRENGTH = 0.3  # a wrong prediction multiplies it


@dataclass(frozen=True)
class OracleRun:
    """Where a loop led by the oracle went.

    Attributes:
        end: how far from x0 it ended, relative to x0 (root mean square).
        noise_change: how much the noise in its states, told by x0 and the noise level, changed on the way, relative to
            the noise at the start. 0 for solvers without noise of their own.
        noise_strength: how much the size of that noise changed. 0 for all solvers, but for the chance in few numbers.
        numbers: how many the noise has.
        changed: arguments of the denoiser, beside latents and time, that were not the same at each step.
    """

    end: float
    noise_change: float
    noise_strength: float
    numbers: int
    changed: tuple[str, ...] = ()

    @property
    def as_declared(self) -> bool:
        chance = 4 / math.sqrt(self.numbers)
        return self.end <= _END and self.noise_strength <= _STRENGTH + chance


def run_oracle(denoiser: TrainableDenoiser, guided: bool = False, steps: int = _STEPS) -> OracleRun:
    """Run the pipeline's loop with the oracle in the denoiser's place."""
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
        noises.append(noise[:1])
        if not times or not torch.equal(
            told, times[-1]
        ):  # not a step's second call, whose conditions are others
            times.append(told)
            others = {name: tensor for name, tensor in tensors.items() if name not in own}
            before.setdefault("first", others)
            changed.update(
                name
                for name, tensor in others.items()
                if not torch.equal(tensor, before["first"].get(name, tensor))
            )
        return denoiser.answer(process.target(x0, noise, timestep).to(sample), named)

    ends: list[Tensor] = []
    noises: list[Tensor] = []
    own = (family.sample, convention.time_argument)
    times: list[Tensor] = []
    before: dict[str, dict[str, Tensor]] = {}
    changed: set[str] = set()

    def note(state: Tensor) -> Tensor:
        if state[0].numel() != clean.numel():
            raise UnsupportedPipelineError(
                f"{type(denoiser.pipe).__name__} gives its denoiser latents of {denoiser.sample_shape}, of which its "
                f"solver steps {tuple(state.shape[1:])}: it can be sampled, but not trained"
            )
        ends[:] = [state]
        return state

    with stepping(denoiser.pipe.scheduler, note):
        denoiser.run(["an image"], answer, guided, steps, generator=torch.Generator().manual_seed(1))
    first, end = noises[0], ends[0].reshape(clean.shape).cpu().float()
    return OracleRun(
        float(_size(end - clean) / _size(clean)),
        max(float(_size(noise - first) / _size(first)) for noise in noises),
        max(abs(float(_size(noise) / _size(first)) - 1) for noise in noises),
        clean.numel(),
        tuple(sorted(changed)),
    )


def _size(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()


def prove(denoiser: TrainableDenoiser, steps: int = _STEPS) -> None:
    """The pipeline's loop, led by the oracle, must end at x0.

    Raises:
        UnsupportedPipelineError: it does not.
    """
    run = run_oracle(denoiser, steps=steps)
    names = f"{type(denoiser.pipe).__name__} with {type(denoiser.pipe.scheduler).__name__}"
    if run.changed:
        raise UnsupportedPipelineError(
            f"{names} gives its {type(denoiser.module).__name__} another `{run.changed[0]}` at each step, which "
            "training does not know how to draw; it can be sampled, but not trained"
        )
    if not run.as_declared:
        raise UnsupportedPipelineError(
            f"{names} does not come out where a perfect {type(denoiser.module).__name__} would lead it (its end off by "
            f"{run.end:.0%}, its noise by {run.noise_strength:.0%}), as its loop tells time or reads predictions in "
            "another way than is declared for that class; it can be sampled, but not trained"
        )
