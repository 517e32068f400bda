"""Flow matching: states (1 - t) image + t noise, the velocity noise - image as target, and a sampler.

It does not know what predicts the velocity.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(states (N, C, H, W), times (N,)) -> velocities, shape of the states."""


def draw_times(count: int, rng: np.random.Generator) -> Tensor:
    """(N,) in (0, 1): logit-normal (arXiv 2403.03206), stratified, so that batches differ less; a tenth is uniform."""
    places = torch.from_numpy((rng.permutation(count) + rng.random(count)) / count)
    normal = torch.sigmoid(torch.special.ndtri(places.clamp(1e-6, 1 - 1e-6)))
    uniform = torch.from_numpy(rng.random(count))
    return torch.where(torch.from_numpy(rng.random(count) < 0.1), uniform, normal).float()


def mix(images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """The states at `times`."""
    return torch.lerp(images, noise, times.view(-1, 1, 1, 1))


def new_scheduler() -> DPMSolverMultistepScheduler:
    """The solver that the pipeline comes with. Stable Diffusion's pipeline takes no FlowMatchEulerDiscreteScheduler."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
        final_sigmas_type="zero",
        steps_offset=1,
    )


@torch.no_grad()
def sample(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    """(N, C, H, W) noise -> latents, by `new_scheduler`."""
    scheduler = new_scheduler()
    scheduler.set_timesteps(steps)
    states = noise
    for timestep in scheduler.timesteps:
        times = torch.full((len(states),), float(timestep) / scheduler.config.num_train_timesteps)
        states = scheduler.step(velocity(states, times).float(), timestep, states).prev_sample
    return states


def guided(velocity: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], text: Tensor, mask: Tensor,
           empty: Tensor, empty_mask: Tensor, scale: float) -> Velocity:  # fmt: skip
    """Classifier-free guidance in one call of twice the rows, negative first.

    Args:
        velocity: (states, times, text, mask) -> velocities.
        text, mask: (N, L, D) and (N, L); `empty`, `empty_mask`: (1, L, D) and (1, L) of the empty caption.
    """
    both = torch.cat([empty.expand_as(text), text])
    both_masks = torch.cat([empty_mask.expand_as(mask), mask])

    def call(states: Tensor, times: Tensor) -> Tensor:
        out = velocity(torch.cat([states, states]), torch.cat([times, times]), both, both_masks)
        negative, positive = out.chunk(2)
        return negative + scale * (positive - negative)

    return call
