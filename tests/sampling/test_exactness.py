"""The two properties that hold exactly, on every family and solver: nothing shared, and equal prompts, change
no image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import RECIPES, Tiny, tiny
from tiny.parts import count_words

from sagediff.denoiser.condition import mean_condition
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling

CASES = [(family, scheduler) for family, recipe in RECIPES.items() for scheduler in recipe.schedulers]
NEVER_GUIDED = {"flux2"}  # by negative rows: their guidance is an input of the model
GUIDED = [family for family in RECIPES if family not in NEVER_GUIDED]
STEPS = 5
GROUPS = [[0, 2, 3], [1]]
EQUAL = [7, 8, 7, 7]  # the members of each group have the same prompt
DIFFERENT = [3, 4, 5, 6]
TOLERANCE = 1e-5


def run_shared(case: Tiny, plan: SharePlan, prompts: list[int], guided: bool, **options: Any) -> torch.Tensor:
    """Latents under sharing; the cost is checked in three ways: the plan's, the run's, and rows seen inside
    the denoiser."""
    seen = 0

    def count(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal seen
        seen += len(args[0])

    handles = [module.register_forward_pre_hook(count) for module in case.counted]
    try:
        with shared_sampling(case.pipe, plan, **options) as run:
            images = case(prompts, plan.num_steps, plan.generators(0), guided)
    finally:
        for handle in handles:
            handle.remove()
    assert run.evaluations == run.plan.evaluations == seen
    assert run.plan.evaluations_independent >= run.evaluations
    assert run.step == plan.num_steps
    assert run.plan.rows_per_prompt == (2 if guided and case.family not in NEVER_GUIDED else 1)
    return images


def make_plan(ratio: float, shared_guidance: float | None = None) -> SharePlan:
    return SharePlan.from_groups(GROUPS, num_steps=STEPS, share_ratio=ratio, shared_guidance=shared_guidance)


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "unguided"])
@pytest.mark.parametrize(("family", "scheduler"), CASES)
def test_equal_to_the_untouched_pipeline(family: str, scheduler: str, guided: bool) -> None:
    case = tiny(family, scheduler)

    nothing = make_plan(0.0)
    expected = case(DIFFERENT, STEPS, nothing.generators(0), guided)
    torch.testing.assert_close(run_shared(case, nothing, DIFFERENT, guided), expected, rtol=0, atol=TOLERANCE)

    expected = case(EQUAL, STEPS, make_plan(0.4).generators(0), guided)
    for ratio in (0.4, 1.0) if guided else (0.4,):
        images = run_shared(case, make_plan(ratio), EQUAL, guided)
        torch.testing.assert_close(images, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("family", "scheduler"), CASES)
def test_micro_batches_and_guidance_off_cost_what_the_plan_says(family: str, scheduler: str) -> None:
    case = tiny(family, scheduler)
    plan = make_plan(0.4, shared_guidance=1.0)
    images = run_shared(case, plan, DIFFERENT, True)
    for size in (1, 3) if scheduler == case.recipe.schedulers[0] else (3,):
        torch.testing.assert_close(
            run_shared(case, plan, DIFFERENT, True, micro_batch_size=size), images, rtol=0, atol=TOLERANCE
        )
    assert not torch.allclose(images[0], images[2], atol=1e-3)  # members part after the branch point
    unshared = case(DIFFERENT, STEPS, plan.generators(0))
    torch.testing.assert_close(images[1], unshared[1], rtol=0, atol=TOLERANCE)  # the outsider is not affected


def test_guidance_off_while_shared_is_the_cheapest() -> None:
    case = tiny("sd", "ddim")
    rows = []
    for guidance in (None, 1.0, 2.0):
        plan = make_plan(0.4, shared_guidance=guidance)
        with shared_sampling(case.pipe, plan) as run:
            case(DIFFERENT, STEPS, plan.generators(0))
        rows.append(run.evaluations)
    # 2 shared steps of 2 nodes, then 3 steps of 4 prompts, 2 rows each; guidance 1.0 drops the shared node's
    # negative row
    assert rows == [2 * 4 + 3 * 8, 2 * 3 + 3 * 8, 2 * 4 + 3 * 8]


@pytest.mark.parametrize("family", GUIDED)
def test_shared_guidance_one_is_the_unguided_pipeline(family: str) -> None:
    case = tiny(family)
    plan = make_plan(1.0, shared_guidance=1.0)
    guided = run_shared(case, plan, EQUAL, True)
    unguided = case(EQUAL, STEPS, plan.generators(0), False)
    torch.testing.assert_close(guided[[0, 2, 3]], unguided[[0, 2, 3]], rtol=0, atol=TOLERANCE)
    alone = case(EQUAL, STEPS, plan.generators(0), True)
    torch.testing.assert_close(guided[1], alone[1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", GUIDED)
def test_unguided_steps_leave_out_the_negative_rows_of_everyone(family: str) -> None:
    case = tiny(family)
    alone = [[0], [1], [2], [3]]
    all_steps = SharePlan.from_groups(alone, num_steps=STEPS, share_ratio=0.0, unguided_steps=STEPS)
    images = run_shared(case, all_steps, DIFFERENT, True)
    expected = case(DIFFERENT, STEPS, all_steps.generators(0), False)
    torch.testing.assert_close(images, expected, rtol=0, atol=TOLERANCE)
    some = SharePlan.from_groups(GROUPS, STEPS, 0.4, unguided_steps=3)
    run_shared(case, some, DIFFERENT, True)
    assert some.evaluations == 2 * 2 + 1 * 4 + 2 * 8


@pytest.mark.parametrize(
    "family", ["sd", "sdxl", "sd3", "sana", "auraflow", "hunyuandit", "kandinsky2.2", "ltx", "z-image"]
)
def test_another_shared_guidance_is_that_guidance(family: str) -> None:
    case = tiny(family)
    plan = make_plan(1.0, shared_guidance=2.0)
    shared = run_shared(case, plan, EQUAL, True)
    own = {"z-image": 1.0}.get(family, 2.0)  # what the pipeline calls a guidance of 2
    expected = case(EQUAL, STEPS, plan.generators(0), True, guidance_scale=own)
    torch.testing.assert_close(shared[[0, 2, 3]], expected[[0, 2, 3]], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        ("sd", "euler_a"),
        ("sd3", "flow"),
        ("flux", "flow"),
        ("qwen-image", "flow"),
        ("z-image", "flow"),
        ("wan2.2", "unipc_flow"),
    ],
)
def test_a_group_of_all_prompts(family: str, scheduler: str) -> None:
    """No node is left that runs for itself: FLUX's negative call then runs nothing at all."""
    case = tiny(family, scheduler)
    plan = SharePlan.from_groups([[0, 1, 2, 3]], num_steps=STEPS, share_ratio=1.0, shared_guidance=1.0)
    images = run_shared(case, plan, DIFFERENT, True)
    assert (images == images[:1]).all()


@pytest.mark.parametrize("family", [family for family, recipe in RECIPES.items() if recipe.words])
def test_what_is_merged_tells_words_from_padding(family: str) -> None:
    case = tiny(family)
    prompts = [3, 4, 5, 5]  # 1, 2 and 3 words
    seen: list[dict[str, list[int]]] = []

    def spy(conditions: Any, masks: Any, words: Any) -> dict[str, torch.Tensor]:
        merged = mean_condition(conditions, masks, words)
        for name, rows in words.items():  # past the words of all but one, the group has that one's own
            longest = int(rows.sum(dim=1).argmax())
            last = int(rows[longest].sum()) - 1
            assert rows[:, last].sum() > 1 or torch.equal(
                merged[name][0, last], conditions[name][longest, last]
            )
        seen.append({name: rows.sum(dim=1).tolist() for name, rows in words.items()})
        return merged

    plan = SharePlan.from_groups([[0, 1, 2], [3]], num_steps=STEPS, share_ratio=0.4)
    run_shared(case, plan, prompts, True, group_condition=spy)
    assert {name for counts in seen for name in counts} == set(case.recipe.words)
    lengths = [count_words(prompt) for prompt in prompts[:3]]
    negative = [count_words(-1)] * 3
    assert all(count in (lengths, negative) for counts in seen for count in counts.values())
    assert any(count == lengths for counts in seen for count in counts.values())


def test_a_condition_of_ones_own_is_what_the_group_runs_on() -> None:
    def second(conditions: Any, masks: Any, words: Any) -> dict[str, torch.Tensor]:
        return {name: rows[1:2] for name, rows in {**conditions, **masks}.items()}

    case = tiny("sdxl", "euler")
    plan = SharePlan.from_groups([[0, 1, 2]], num_steps=STEPS, share_ratio=1.0)
    images = run_shared(case, plan, [5, 6, 6], True, group_condition=second)
    expected = case([6, 6, 6], STEPS, plan.generators(0))
    torch.testing.assert_close(images, expected, rtol=0, atol=TOLERANCE)
