"""A plan's evaluations by what they are for: the parts sum to what the plan says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sagediff.plan.cost_parts import CostParts
from sagediff.plan.share_plan import SharePlan


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.integers(1, 9),
    st.floats(0, 1),
    st.sampled_from([None, 1.0, 2.5]),
    st.integers(0, 9),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_parts_sum_to_the_plans_figures(
    sizes: list[int], steps: int, ratio: float, shared: float | None, unguided: int, rows: int, is_heun: bool
) -> None:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    groups = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    plan = SharePlan.from_groups(groups, steps, ratio, shared, min(unguided, steps), rows)
    if is_heun:
        plan = plan.recost(calls_per_step=[2] * (steps - 1) + [1])
    parts = CostParts.of(plan)
    assert parts.shared + parts.own + parts.guidance == plan.evaluations
    assert plan.evaluations + parts.saved_by_sharing == plan.evaluations_unshared
    assert plan.evaluations_unshared + parts.saved_by_guidance == plan.evaluations_independent
    assert min(parts.shared, parts.own, parts.guidance, parts.saved_by_sharing, parts.saved_by_guidance) >= 0
    if ratio == 0 or max(sizes) == 1:
        assert parts.shared == parts.saved_by_sharing == 0
    if rows == 1:
        assert parts.guidance == parts.saved_by_guidance == 0
