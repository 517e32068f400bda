"""What members would have been predicted at their group's latents, on pipelines of several kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import Tiny, tiny

from sagediff.denoiser.scheduler import noise_in
from sagediff.errors import UnsupportedPipelineError
from sagediff.sampling.member_predictions import MemberPredictions, predicted_for_members

STEPS = 4
GROUPS = [[0, 2, 3], [1, 4]]
DIFFERENT = [3, 4, 5, 6, 7]
EQUAL = [7, 8, 7, 7, 8]
KINDS = [  # batched guidance for diffusion and for flow, two calls, a learned variance, two denoiser calls a step
    ("sd", "dpmpp_2m"), ("sd3", "flow"), ("pixart-alpha", "dpmpp_2m"), ("sd", "heun"), ("wan", "unipc_flow"),
]  # fmt: skip


def looked_at(case: Tiny, prompts: list[int], steps: tuple[int, ...], **options: Any) -> MemberPredictions:
    """The predictions; their evaluations are those that the denoiser saw."""
    seen = 0

    def count(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal seen
        seen += len(args[0])

    before = [dict(vars(module)) for module in modules(case)]
    handles = [module.register_forward_pre_hook(count) for module in case.counted]
    scale = case.recipe.inputs(prompts, True).get("guidance_scale")
    try:
        found = predicted_for_members(
            case.pipe, lambda generators: case(prompts, STEPS, generators, True), GROUPS, steps,
            num_steps=STEPS, guidance_scale=scale, **options,
        )  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    assert found.evaluations == seen
    assert [each.keys() for each in before] == [vars(module).keys() for module in modules(case)]
    return found


def modules(case: Tiny) -> list[torch.nn.Module]:
    return [getattr(case.pipe, name) for name in ("unet", "transformer") if getattr(case.pipe, name, None)]


@pytest.mark.parametrize(("family", "scheduler"), KINDS)
@pytest.mark.parametrize("shared_guidance", [None, 1.0])
def test_equal_prompts_have_no_gap_and_others_have_one(
    family: str, scheduler: str, shared_guidance: float | None
) -> None:
    case = tiny(family, scheduler)
    options = {"shared_guidance": shared_guidance}
    equal = looked_at(case, EQUAL, (0, 2), **options)
    other = looked_at(case, DIFFERENT, (0, 2), **options)
    assert [each.step for each in other.steps] == [0, 2]
    assert len(other.signal) == STEPS + 1 and list(other.signal) == sorted(other.signal)
    for same, apart in zip(equal.steps, other.steps, strict=True):
        assert max(*same.gap, *same.apart) < 1e-9
        assert min(*apart.gap, *apart.apart) > 1e-7
    assert looked_at(case, DIFFERENT, (0, 2), **options) == other


@pytest.mark.parametrize("shared_guidance", [None, 1.0, 2.5])
def test_the_gap_is_that_of_the_guided_predictions(
    shared_guidance: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = tiny("sd", "ddim")
    outputs: list[torch.Tensor] = []
    forward = case.pipe.unet.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        outputs.append(output[0])
        return output

    monkeypatch.setattr(case.pipe.unet, "forward", noted)
    found = looked_at(case, DIFFERENT, (0,), shared_guidance=shared_guidance)
    scale = case.recipe.inputs(DIFFERENT, True)["guidance_scale"]
    weight = scale if shared_guidance is None else shared_guidance
    rows = outputs[1] if shared_guidance == 1.0 else outputs[2] + weight * (outputs[1] - outputs[2])
    group = outputs[0][-2:]
    if shared_guidance != 1.0:
        negative, conditional = outputs[0].chunk(2)
        group = negative + weight * (conditional - negative)
    of = {member: number for number, members in enumerate(GROUPS) for member in members}
    scheduler = case.pipe.scheduler
    alpha = float(scheduler.alphas_cumprod[int(scheduler.timesteps[0])]) ** 0.5
    sigma = (1 - alpha**2) ** 0.5
    state = torch.randn_like(rows)

    def clean(prediction: torch.Tensor) -> torch.Tensor:
        return (state - sigma * noise_in(state, prediction, alpha, sigma, "epsilon")) / alpha

    expected = (clean(group[[of[i] for i in range(5)]]) - clean(rows)).square().flatten(1).mean(1)
    torch.testing.assert_close(torch.tensor(found.steps[0].gap), expected, rtol=1e-3, atol=1e-9)


def test_unguided_steps_are_looked_at_without_guidance() -> None:
    case = tiny("sd", "ddim")
    with_guidance = looked_at(case, DIFFERENT, (0, 1))
    without = looked_at(case, DIFFERENT, (0, 1), unguided_steps=1)
    assert without.evaluations < with_guidance.evaluations
    assert without.steps[0] == looked_at(case, DIFFERENT, (0,), shared_guidance=1.0).steps[0]


def test_a_solver_of_unknown_noise_levels_is_refused() -> None:
    case = tiny("sd", "pndm")
    with pytest.raises(UnsupportedPipelineError, match="noise levels of PNDMScheduler"):
        looked_at(case, DIFFERENT, (0,))
