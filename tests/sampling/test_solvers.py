"""Every solver that pipelines of diffusion, or of flow matching, take: the same seed, the same image, shared or not."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers import KarrasDiffusionSchedulers
from tiny import RECIPES

from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling

STEPS = 4
PROMPTS = [7, 8, 7]  # the members of the group have the same prompt
# Milder than Stable Diffusion's, as in `tiny.parts`
BETAS: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.002, "beta_schedule": "linear"}
REFUSED = {"DPMSolverSDEScheduler"}  # one noise for a whole batch (`test_noise.py`)
DIFFUSION = {
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "EDMDPMSolverMultistepScheduler",
    "IPNDMScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    *(
        kind.name for kind in KarrasDiffusionSchedulers
    ),  # what Stable Diffusion's pipelines say that they take
}
FLOW = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"}
NOISE_WITHOUT_SEED = {
    "FlowMatchLCMScheduler"
}  # Stable Diffusion 3's pipeline hands it no generators, sharing does


@cache
def pipe_of(family: str) -> Any:
    torch.manual_seed(0)
    pipe = RECIPES[family].build(diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("family", "solver"),
    [
        *(("sd", name) for name in sorted(DIFFUSION - REFUSED)),
        *(("sd3", name) for name in sorted(FLOW)),
    ],
)
def test_the_same_seed_gives_the_same_image_shared_or_not(family: str, solver: str) -> None:
    kind, pipe = getattr(diffusers, solver), pipe_of(family)
    taken = inspect.signature(kind).parameters
    pipe.scheduler = kind(**{name: value for name, value in BETAS.items() if name in taken})
    half, nothing = (SharePlan.from_groups([[0, 2], [1]], STEPS, ratio) for ratio in (0.5, 0.0))

    def images() -> torch.Tensor:
        inputs = RECIPES[family].inputs(PROMPTS, True) | {"height": 16, "width": 16, "output_type": "latent"}
        out = pipe(num_inference_steps=STEPS, generator=half.generators(0), **inputs)
        return torch.as_tensor(out.images)

    if solver in NOISE_WITHOUT_SEED:
        with shared_sampling(pipe, nothing):
            expected = images()
    else:
        expected = images()
    with shared_sampling(pipe, half) as run:
        found = images()
    assert run.evaluations == run.plan.evaluations < run.plan.evaluations_independent
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
