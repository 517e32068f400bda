"""What is said of a run: figures, groups, the time left, lines for a log; and a word where sharing found little."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sagediff.cli.telling.image_progress import ImageProgress, LogLines, image_progress
from sagediff.cli.telling.run_words import after, before, duration
from sagediff.cli.telling.thresholds import AtThreshold, around, curve_table, hint
from sagediff.cli.telling.told_groups import group_rows, largest, loosest, size_words
from sagediff.plan.grouping import group_prompts
from sagediff.plan.share_plan import SharePlan

PLAN = SharePlan.from_groups([[0, 1, 2], [3, 4], [5]], 10, 0.4, 1.0)


def circle(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_the_tables_hold_the_plans_figures() -> None:
    first = before(PLAN, 0, Path("out"))
    lines = dict(line.split(None, 1) for line in first.splitlines())
    assert list(lines) == ["images", "evaluations", "saving", "time", "written"]
    assert lines["images"] == "6: 2 groups of 2 to 3, 1 alone"
    # 4 steps: 2 groups at one row, 1 alone at two; 6 steps: 6 prompts at two
    assert lines["evaluations"] == "88 of 120: 8 shared, 40 own, 40 for guidance"
    assert lines["saving"].startswith(f"{PLAN.cost_saving:.1%} saved: 12 by sharing")
    assert "2 images" in before(PLAN, 2, Path("out"))
    last = after(PLAN, 6, 88, (2.0, 30.0), "out/images", [("largest", "a\x1b[2Jcat")])
    assert "6 made" in last and "30 s for the images, 12.0 images per minute; 2.0 s before them" in last
    assert "\x1b" not in last and "evaluated now" not in last
    assert "evaluated now  20" in after(PLAN, 1, 20, (2.0, 30.0), "out/images")


@pytest.mark.parametrize(
    "seconds, words",
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"),
     (3599.6, "1 h 00 min"), (7500, "2 h 05 min"), (400_000, "111 h 07 min")],
)  # fmt: skip
def test_durations_are_read_at_once(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_largest_and_loosest_groups_are_named_by_their_least_alike_pair() -> None:
    vectors = circle(0, 5, 30, 100, 150, 200)
    assert largest(PLAN) == [[0, 1, 2], [3, 4]]
    (first, least, pair), (second, _, _) = loosest(PLAN, vectors)
    assert (first, pair) == ([3, 4], (3, 4)) and least == pytest.approx(np.cos(np.radians(50)), abs=1e-6)
    assert second == [0, 1, 2] and loosest(PLAN, vectors)[1][2] == (0, 2)
    assert loosest(PLAN, None) == []
    prompts = ["a cat", "b", "\u202egod a", "x" * 500, "a tree", "alone"]
    rows = group_rows(PLAN, prompts, vectors)
    assert [name for name, _ in rows] == ["largest", "", "loosest", ""]
    assert all(len(text) <= 100 and "\u202e" not in text for _, text in rows)
    assert rows[0][1] == "3 prompts: 'a cat' and others" and "'a tree'" in rows[2][1]
    assert size_words(SharePlan.from_groups([[0], [1]])) == "all alone"


# -- saving against threshold


def figures(vectors: np.ndarray, threshold: float) -> AtThreshold:
    return AtThreshold.of(threshold, SharePlan.from_groups(group_prompts(vectors, threshold), 10))


def test_a_hint_names_what_another_threshold_would_give() -> None:
    vectors = circle(*(42 * number for number in range(8)))  # neighbours are 0.743 alike
    used = figures(vectors, 0.8)
    assert used.alone == 8
    words = hint(used, lambda threshold: figures(vectors, threshold))
    assert words == (
        "8 of 8 prompts are alone at 0.80; at 0.70 it would be 0: see sagediff plan --threshold 0.70"
    )
    assert figures(vectors, 0.7).alone == 0
    assert hint(used, lambda threshold: None) is None  # no vectors at hand
    assert hint(used, lambda threshold: used) is None  # no better
    assert hint(figures(vectors, 0.7), lambda threshold: figures(vectors, threshold)) is None  # none alone
    assert hint(figures(vectors[:1], 0.8), lambda threshold: used) is None
    assert hint(figures(vectors, -1), lambda threshold: used) is None


def test_the_curve_marks_the_threshold_in_use_and_saves_more_below_it() -> None:
    vectors = circle(*(42 * number for number in range(8)))
    assert around(0.8) == [0.6, 0.7, 0.75, 0.8, 0.85, 0.9]
    assert around(0.95) == [0.75, 0.85, 0.9, 0.95, 1.0] and around(-1) == [-1, -0.95, -0.9]
    curve = [figures(vectors, threshold) for threshold in around(0.75)]
    savings = [each.sharing_saving for each in curve]
    assert savings == sorted(savings, reverse=True) and savings[0] > savings[-1]
    lines = curve_table(curve, 0.75, 0.4).splitlines()
    assert [line for line in lines if "*" in line] == [next(line for line in lines if "0.75" in line)]
    assert len({len(line) for line in lines[1:]}) == 1


# -- while images are made


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_counts_images_and_says_the_time_left_once_two_steps_are_measured() -> None:
    clock, shown = Clock(), list[str]()
    progress = ImageProgress(16, 160, lambda line, fraction: shown.append(line), clock=clock)
    for _ in range(2):
        clock.now += 3
        progress.step(16)
    assert shown == ["0 of 16 images", "0 of 16 images, 32.0 per minute, 24 s left"]
    for _ in range(8):
        clock.now += 3
        progress.step(16)
    progress.made(16)
    assert shown[-1] == "16 of 16 images, 32.0 per minute, 0.0 s left"


@pytest.mark.parametrize("step_seconds, at_least, at_most", [(0.01, 1, 1), (1, 5, 11), (60, 10, 24)])
def test_a_log_gets_few_lines(step_seconds: float, at_least: int, at_most: int) -> None:
    clock, lines = Clock(), list[tuple[float, str]]()
    log = LogLines(lambda line: lines.append((clock.now, line)), clock)
    progress = ImageProgress(100, 100, log, "videos", clock)
    for _ in range(100):
        clock.now += step_seconds
        progress.step(1)
        progress.made(1)
    assert at_least <= len(lines) <= at_most
    times = [when for when, _ in lines]
    assert all(later - earlier >= 10 for earlier, later in pairwise(times))
    assert all(line.isprintable() for _, line in lines)


def test_a_log_holds_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with image_progress(2, 20) as progress:
        for _ in range(10):
            progress.step(2)
        progress.made(2)
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.strip().isprintable()
