"""diffusers' caches on the denoiser while prompts share: what they remember follows its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    FluxTransformer2DModel,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    TextKVCacheConfig,
)
from tiny import Tiny, tiny
from tiny.parts import WIDTH

from sagediff.errors import UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling

STEPS = 8
EQUAL = [7, 8, 7, 8]
HALVES = [
    [0, 2],
    [1, 3],
]  # of one size: a mean over nodes, by which FirstBlockCache decides, is that over members
DIFFERENT = [3, 4, 5, 6]
TOLERANCE = 1e-5


def timestep(case: Tiny) -> Callable[[], int]:
    return lambda: int(case.pipe.current_timestep)


# cache -> its configuration for a pipeline; each leaves out part of the 8 steps, before and after the branch point
CACHES: dict[str, Callable[[Tiny], Any]] = {
    "first block": lambda case: FirstBlockCacheConfig(threshold=0.5),
    "magnitudes": lambda case: MagCacheConfig(
        threshold=0.5,
        max_skip_steps=1,
        retention_ratio=0.2,
        num_inference_steps=STEPS,
        mag_ratios=[0.9] * STEPS,
    ),
    "attention": lambda case: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=3,
        spatial_attention_timestep_skip_range=(0, 990),
        current_timestep_callback=timestep(case),
    ),
    "taylor": lambda case: TaylorSeerCacheConfig(
        cache_interval=3, disable_cache_before_step=2, taylor_factors_dtype=torch.float32
    ),
    "taylor lite": lambda case: TaylorSeerCacheConfig(
        cache_interval=3, disable_cache_before_step=2, taylor_factors_dtype=torch.float32, use_lite_mode=True
    ),
    "faster": lambda case: FasterCacheConfig(
        spatial_attention_block_skip_range=3,
        spatial_attention_timestep_skip_range=(0, 950),
        current_timestep_callback=timestep(case),
        attention_weight_callback=lambda _: 0.5,
        tensor_format="BCHW",
        is_guidance_distilled=True,
    ),
}
TWO_CALLS = [
    "first block",
    "magnitudes",
    "taylor",
    "taylor lite",
]  # the others do not tell a step's calls apart


def deep() -> Tiny:
    """FLUX with blocks enough that something is left out."""
    case = tiny("flux")
    torch.manual_seed(0)
    case.pipe.transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    return case


def plan_of(groups: list[list[int]], ratio: float, **options: Any) -> SharePlan:
    return SharePlan.from_groups(groups, num_steps=STEPS, share_ratio=ratio, **options)


def shared(case: Tiny, plan: SharePlan, prompts: list[int], guided: bool) -> torch.Tensor:
    with shared_sampling(case.pipe, plan) as run:
        images = case(prompts, STEPS, plan.generators(0), guided)
    assert run.evaluations == run.plan.evaluations
    return images


@pytest.mark.parametrize(
    ("cache", "guided"),
    [(name, False) for name in CACHES] + [(name, True) for name in TWO_CALLS],
)
def test_exact_with_a_cache_on(cache: str, guided: bool) -> None:
    """Nothing shared, and equal prompts, change nothing; the memory goes over to the members at the branch point."""
    case = deep()
    nothing = plan_of(HALVES, 0.0)
    plain = case(DIFFERENT, STEPS, nothing.generators(0), guided)
    case.denoiser.enable_cache(CACHES[cache](case))
    expected = case(DIFFERENT, STEPS, nothing.generators(0), guided)
    assert not torch.allclose(expected, plain, atol=1e-3)  # the cache does something
    torch.testing.assert_close(shared(case, nothing, DIFFERENT, guided), expected, rtol=0, atol=TOLERANCE)

    same_noise = plan_of(HALVES, 0.5)
    expected = case(EQUAL, STEPS, same_noise.generators(0), guided)
    for ratio in (0.25, 0.375, 0.5, 0.625, 1.0):  # wherever the branch point falls among steps left out
        plan = plan_of(HALVES, ratio)
        assert plan.evaluations < plan.evaluations_independent
        torch.testing.assert_close(shared(case, plan, EQUAL, guided), expected, rtol=0, atol=TOLERANCE)
    found_again = case(EQUAL, STEPS, same_noise.generators(0), guided)
    torch.testing.assert_close(found_again, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("cache", [name for name in CACHES if name != "first block"])
def test_groups_of_different_size_part_into_their_own_members(cache: str) -> None:
    """These caches leave out by the number of the step alone, so that no prompt's cache depends on the others."""
    case = deep()
    case.denoiser.enable_cache(CACHES[cache](case))
    plan = plan_of([[0, 2, 3], [1]], 0.5)
    prompts = [7, 8, 7, 7]
    expected = case(prompts, STEPS, plan.generators(0), False)
    torch.testing.assert_close(shared(case, plan, prompts, False), expected, rtol=0, atol=TOLERANCE)
    images = shared(case, plan, DIFFERENT, False)
    assert not torch.allclose(images[0], images[2], atol=1e-3)
    alone = case(DIFFERENT, STEPS, plan.generators(0), False)
    torch.testing.assert_close(images[1], alone[1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "cache"),
    [
        ("ltx", "taylor"),
        ("ltx", "attention"),
        ("qwen-image", "taylor"),
        ("wan", "taylor"),
        ("wan2.2", "taylor"),
    ],
)
def test_other_families(family: str, cache: str) -> None:
    """Both halves in one batch (LTX), a second call, and two transformers one after the other (Wan 2.2)."""
    case = tiny(family)
    for denoiser in case.denoisers:
        denoiser.enable_cache(CACHES[cache](case))
    plan = plan_of([[0, 2, 3], [1]], 0.5)
    prompts = [7, 8, 7, 7]
    expected = case(prompts, STEPS, plan.generators(0))
    torch.testing.assert_close(shared(case, plan, prompts, True), expected, rtol=0, atol=TOLERANCE)
    nothing = plan_of([[0, 2, 3], [1]], 0.0)
    expected = case(DIFFERENT, STEPS, nothing.generators(0))
    torch.testing.assert_close(shared(case, nothing, DIFFERENT, True), expected, rtol=0, atol=TOLERANCE)
    off = plan_of([[0, 2, 3], [1]], 0.5, shared_guidance=1.0)
    assert shared(case, off, DIFFERENT, True).isfinite().all()


@pytest.mark.parametrize("cache", TWO_CALLS)
def test_negative_rows_that_begin_at_the_branch_point_compute_in_full(cache: str) -> None:
    """With guidance off while sharing there is no memory for them, and the group beside has one."""
    case = deep()
    case.denoiser.enable_cache(CACHES[cache](case))
    for groups in ([[0, 1, 2, 3]], [[0, 2, 3], [1]]):
        plan = plan_of(groups, 0.5, shared_guidance=1.0)
        images = shared(case, plan, DIFFERENT, True)
        assert images.isfinite().all()
        assert not torch.allclose(images[0], images[2], atol=1e-3)


def test_an_aborted_run_leaves_nothing_in_the_cache() -> None:
    case = deep()
    case.denoiser.enable_cache(CACHES["first block"](case))
    plan = plan_of(HALVES, 0.5)
    expected = case(DIFFERENT, STEPS, plan.generators(0), False)

    def stop(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("stopped")

    with shared_sampling(case.pipe, plan):
        with pytest.raises(RuntimeError, match="stopped"):
            case(DIFFERENT, STEPS, plan.generators(0), False, callback_on_step_end=stop)
        images = case(EQUAL, STEPS, plan.generators(0), False)
        with pytest.raises(RuntimeError, match="stopped"):
            case(DIFFERENT, STEPS, plan.generators(0), False, callback_on_step_end=stop)
    torch.testing.assert_close(images, case(EQUAL, STEPS, plan.generators(0), False), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(
        case(DIFFERENT, STEPS, plan.generators(0), False), expected, rtol=0, atol=TOLERANCE
    )


# -- refusals --------------------------------------------------------------------------------------


def test_micro_batches_with_a_cache_are_refused() -> None:
    case = deep()
    case.denoiser.enable_cache(CACHES["first block"](case))
    forward = case.denoiser.forward
    with (
        pytest.raises(UnsupportedPipelineError, match="micro-batch would overwrite"),
        shared_sampling(case.pipe, plan_of([[0, 1]], 0.5), micro_batch_size=2),
    ):
        pass
    assert case.denoiser.forward == forward
    case.denoiser.disable_cache()
    with shared_sampling(case.pipe, plan_of([[0, 1]], 0.5), micro_batch_size=2):
        pass


@pytest.mark.parametrize("cache", ["attention", "faster"])
def test_one_memory_for_both_calls_of_a_step_is_refused(cache: str) -> None:
    case = deep()
    case.denoiser.enable_cache(CACHES[cache](case))
    with pytest.raises(UnsupportedPipelineError, match="second call"):
        shared(case, plan_of([[0, 1], [2, 3]], 0.5), DIFFERENT, True)


def test_caches_that_cannot_share_are_refused() -> None:
    case = deep()
    config = CACHES["faster"](case)
    config.is_guidance_distilled = False
    case.denoiser.enable_cache(config)
    with (
        pytest.raises(UnsupportedPipelineError, match="is_guidance_distilled=True"),
        shared_sampling(case.pipe, plan_of([[0, 1]], 0.5)),
    ):
        pass
    case.denoiser.disable_cache()
    case.denoiser.enable_cache(TextKVCacheConfig())
    with (
        pytest.raises(UnsupportedPipelineError, match="MEMORIES"),
        shared_sampling(case.pipe, plan_of([[0, 1]], 0.5)),
    ):
        pass
