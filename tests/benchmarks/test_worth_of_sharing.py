"""What `benchmarks/worth_of_sharing.py` compares and says: settings within their budget, figures of known rows."""

from __future__ import annotations

import pytest
from worth_settings import (
    WORLDS,
    by_likeness,
    frontier_candidates,
    paper_candidates,
    setting,
    winners,
    within,
    worth,
)
from worth_tables import evaluations_for, plots, tables

from sagediff.evaluation.grid import Setting
from sagediff.evaluation.summary import Row, row
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing

WORLD = WORLDS["demo"]
GROUPS = [[0, 1, 2, 3], [4, 5, 6], [7], [8, 9]]


def plan_of(sharing: Sharing, steps: int, guided: bool) -> SharePlan:
    return sharing.plan_groups(GROUPS, steps, 2 if guided else 1)


def made(one: Setting, evaluations: float, frechet: float) -> Row:
    figures = {
        "evaluations_per_image": evaluations,
        "frechet": frechet,
        "clip_score": 0.5,
        "diversity": frechet / 10,
    }
    bands = [
        {"low": 0.1, "high": 0.4, "evaluations_per_image": evaluations, "kernel": 0.1, "clip_score": None}
    ]
    cells = [{"seed": seed, "figures": figures, "bands": bands} for seed in (0, 1)]
    return row(one, cells)


def test_settings_are_the_longest_within_their_budget() -> None:
    found = frontier_candidates(WORLD, plan_of, (6, 16))
    for budget, settings in found.items():
        assert {one.sharing.share_ratio > 0 for one in settings} == {True, False}
        assert len({one.key for one in settings}) == len(settings)
        for one in settings:
            guided = one.guidance_scale != 1.0
            costs = [plan_of(one.sharing, one.num_steps + more, guided).evaluations / 10 for more in (0, 1)]
            assert costs[0] <= budget * 1.02
            assert within(one, plan_of, budget) == one
    assert within(setting(WORLD, "c", "base", 1, 0.0), plan_of, 1) is None


def test_parts_a_b_and_d() -> None:
    candidates = paper_candidates(WORLD)
    assert len({one.key for one in candidates}) == len(candidates)
    assert {one.sharing.shared_steps(20) for one in candidates} == {8}
    alone, quarter, more = worth(WORLD, plan_of, 16)
    assert alone.sharing.share_ratio == 0 and alone.guidance_scale == more.guidance_scale == 1.0
    savings = [plan_of(one.sharing, 16, False).sharing_saving for one in (quarter, more)]
    shorter = [
        plan_of(
            setting(WORLD, "b", "sage", 16, one.sharing.share_ratio - 1 / 16).sharing, 16, False
        ).sharing_saving
        for one in (quarter, more)
    ]
    assert savings[0] >= 0.255 > shorter[0] and savings[1] >= 0.4 > shorter[1]
    plans = by_likeness(quarter, {"tree": Sharing(0.1, 0.2, rungs=((0.5, 0.4),))})
    assert [one.method for one in plans] == ["d: fixed", "d: tree"] and plans[0].sharing == quarter.sharing


def test_tables_say_the_papers_figures_and_the_ratio_of_evaluations() -> None:
    standard, sage = (setting(WORLD, "a", weights, 20, 0.4) for weights in ("standard", "sage"))
    alone = [setting(WORLD, "c", "base", steps, 0.0) for steps in (4, 8)]
    shared = setting(WORLD, "c", "sage", 8, 0.5)
    rows = [made(alone[0], 4, 4.0), made(alone[1], 16, 2.0), made(shared, 4, 3.0)]
    parts = {
        "a": [made(standard, 20, 4.0), made(sage, 20, 3.0)],
        "c 6": rows,
        "d": [made(Setting("d: fixed", "sage", 8, Sharing()), 5, 1.0)],
        "ablation: without both": [made(sage, 5, 1.0)],
    }
    assert winners(rows, True) == [shared] and winners(rows, False, 2) == alone[::-1]
    text = tables(parts, {"clip_score": 0.9}, (6,))
    assert "Frechet distance -25.0%" in text and "diversity in groups -25.0%" in text
    assert "at 4.00: 2.00 times" in text
    assert "| real artwork |" in text and "| d: fixed | 0.100 to 0.400 | 5.00 |" in text
    assert "without both" in text and "## What sharing itself" not in text
    assert all(image.startswith(b"\x89PNG") for image in plots(parts).values()) and len(plots(parts)) == 2


@pytest.mark.parametrize("distance, evaluations", [(5.0, 4), (4.0, 4), (2.0, 16), (1.9, None), (3.0, 8)])
def test_evaluations_for_a_distance(distance: float, evaluations: float | None) -> None:
    found = evaluations_for([(16, 2.0), (4, 4.0)], distance)
    assert found == (None if evaluations is None else pytest.approx(evaluations))
