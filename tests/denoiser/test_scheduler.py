"""What is known of schedulers: their noise levels, what predictions mean, and that no other module recognises them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny import SCHEDULERS

import sagediff
from sagediff.denoiser.scheduler import NOISE_LEVELS, noise_in, prediction_type


@pytest.mark.parametrize(
    "name", sorted(set(SCHEDULERS) - {"pndm", "pndm_prk", "ddpm", "ddpm_learned", "lcm", "scm"})
)
def test_noise_levels_are_the_schedulers_own(name: str) -> None:
    """A perfect denoiser (it knows x0 and e) must stay on a x0 + s e at the table's levels, at every call."""
    scheduler = SCHEDULERS[name]()
    levels = NOISE_LEVELS[type(scheduler).__name__]
    scheduler.set_timesteps(6)
    if name in ("euler_a", "dpmpp_sde"):
        return  # they renoise; covered by the deterministic members of their kind
    x0, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    alpha, sigma, *_ = levels(scheduler, 0)
    state = alpha * x0 + sigma * noise
    calls = len(scheduler.timesteps)
    for call, timestep in enumerate(scheduler.timesteps):
        alpha, sigma, *following = levels(scheduler, call)
        torch.testing.assert_close(state, alpha * x0 + sigma * noise, rtol=1e-3, atol=1e-3)
        prediction = noise - x0 if name.endswith("flow") else noise
        state = scheduler.step(prediction, timestep, state).prev_sample
        if call + 1 < calls:
            assert following == pytest.approx(levels(scheduler, call + 1)[:2], rel=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_noise_in_reads_every_prediction(kind: str, alpha: float) -> None:
    sigma = 0.8
    x0, noise = torch.randn(2, 3), torch.randn(2, 3)
    norm = (alpha**2 + sigma**2) ** 0.5
    velocity = (alpha * noise - sigma * x0) / norm
    prediction = {"epsilon": noise, "sample": x0, "v_prediction": velocity}[kind]
    torch.testing.assert_close(noise_in(alpha * x0 + sigma * noise, prediction, alpha, sigma, kind), noise)


def test_noise_in_reads_flow() -> None:
    x0, noise = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(
        noise_in(0.3 * x0 + 0.7 * noise, noise - x0, 0.3, 0.7, "flow_prediction"), noise
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("ddim", "epsilon"), ("flow", "flow"), ("dpmpp_flow", "flow"), ("unipc_flow", "flow")]
)
def test_prediction_types(name: str, kind: str) -> None:
    assert prediction_type(SCHEDULERS[name]()) == kind


def test_no_other_module_recognises_schedulers() -> None:
    package = Path(sagediff.__file__).parent
    told = re.compile(r"""["'](\w+Scheduler|FlowMatch|epsilon|flow_prediction)["']|\.prediction_type\b""")
    elsewhere = (
        "denoiser/scheduler.py",
        "training/forward_process.py",
        "builtin/",
    )  # targets, and models made here
    found = [
        name
        for path in sorted(package.rglob("*.py"))
        if not (name := path.relative_to(package).as_posix()).startswith(elsewhere)
        and told.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []
