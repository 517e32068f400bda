"""Batches hold whole groups of different captions, as many images as asked for, each image once."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagediff.errors import InputError
from sagediff.training.batches import GroupCounts, GroupSchedule, schedule_warnings
from sagediff.training.train_config import SageWeights, TrainConfig
from sagediff.training.trained import Trained, counts_record

OUT = Path("out")


def schedule(counts: list[int], kinds: int = 2, **options: Any) -> GroupSchedule:
    """Captions with so many images each, the neighbours among them alike."""
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(kinds, 16))
    rows = middles[np.arange(len(counts)) % kinds] + 0.3 * rng.normal(size=(len(counts), 16))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    ends = np.cumsum([0, *counts])
    images = [list(range(a, b)) for a, b in pairwise(ends)]
    given: dict[str, Any] = {
        "threshold": 0.5,
        "group_size": (1, 4),
        "pool_size": 512,
        "batch_size": 8,
        "seed": 0,
    } | options
    return GroupSchedule(vectors, images, **given)


@pytest.mark.parametrize(
    ("counts", "batch_size", "held"),
    [
        ([8], 8, 8),  # one caption for all images
        ([20], 8, 8),
        ([3, 1], 8, 4),  # no more images than that
        ([5, 2, 2], 8, 8),
        ([1] * 40, 8, 8),
        ([1] * 4, 16, 4),
    ],
)
def test_a_batch_is_as_large_as_asked_if_there_are_as_many_images(
    counts: list[int], batch_size: int, held: int
) -> None:
    made = schedule(counts, batch_size=batch_size)
    caption_of = {image: caption for caption, images in enumerate(made.images) for image in images}
    seen: set[int] = set()
    for number in range(30):
        groups = made.batch(number)
        members = [image for group in groups for image in group]
        assert len(members) == len(set(members)) == held == made.images_per_batch()
        for group in groups:
            captions = [caption_of[image] for image in group]
            assert len(captions) == len(set(captions))  # images of one caption are never in one group
        assert made.batch(number) == groups
        seen.update(members)
    assert seen == set(caption_of)


def test_alike_captions_are_grouped_in_every_layer_of_copies() -> None:
    groups = schedule([4, 4], kinds=1, group_size=(4, 4)).batch(0)
    assert [len(group) for group in groups] == [2, 2, 2, 2]


def test_the_largest_size_falls_from_pool_to_pool() -> None:
    made = schedule([1] * 16, kinds=1, batch_size=16, threshold=-1.0)
    assert [max(map(len, made.batch(number))) for number in range(6)] == [4, 3, 2, 1, 4, 3]
    assert made.counts(1) == GroupCounts(16, 4, 16, 4)
    assert made.counts(1000) == GroupCounts(64, 4 + 6 + 8 + 16, 16 + 15 + 16, 4)  # every size once


@pytest.mark.parametrize("part", [0.25, 0.5, 1.0])
def test_the_threshold_that_is_named_groups_as_many_as_it_says(part: float) -> None:
    made = schedule([1] * 40, kinds=6, batch_size=40, group_size=(4, 4), threshold=0.99)
    found = made.threshold_that_groups(part)
    assert found is not None
    shares = []
    for threshold in (found, found + 0.01):
        counts = schedule([1] * 40, 6, batch_size=40, group_size=(4, 4), threshold=threshold).counts(1)
        shares.append(counts.in_groups / counts.images)
    assert shares[0] >= part > shares[1]


def test_few_groups_and_small_batches_are_told_before_the_run() -> None:
    config = TrainConfig(OUT, train_batch_size=8)
    assert schedule_warnings(schedule([1] * 40), config, 40) == []
    few = schedule_warnings(schedule([1] * 40, kinds=20, threshold=0.95), config, 40)
    assert len(few) == 1 and "at threshold 0.95" in few[0] and "would put at least 50% into groups" in few[0]
    plain = TrainConfig(OUT, "standard", train_batch_size=8)
    assert schedule_warnings(schedule([1] * 40, 20, threshold=0.95), plain, 40) == []
    pool = schedule_warnings(schedule([1] * 40, pool_size=4), config, 40)
    assert pool == [
        "a step trains on 4 images and not on 8 (--train-batch-size): 4 captions (--pool-size) have no more"
    ]
    one = schedule_warnings(schedule([8]), config, 8)
    assert len(one) == 1 and "all captions are equal" in one[0]
    small = schedule_warnings(schedule([1] * 4, 1), config, 4)
    assert small == ["a step trains on 4 images and not on 8 (--train-batch-size): the data holds 4"]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 10, "lr_warmup_steps": 10},
        {"group_size": (1, 1)},
        {"train_batch_size": 1},
        {"weights": SageWeights(branch=0.0, handover=0.0)},
        {"weights": SageWeights(branch=0.0, handover_rate=0.0)},
        {"seed": -1},
        {"resolution": 0},
    ],
)
def test_runs_that_could_not_train_what_they_are_for(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        TrainConfig(OUT, **options)


def test_plain_fine_tuning_needs_no_groups() -> None:
    TrainConfig(OUT, "standard", train_batch_size=1, group_size=(1, 1))


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (6, 1), (100, 25), (2000, 50)])
def test_the_warm_up_is_shorter_than_the_run(steps: int, warmup: int) -> None:
    config = TrainConfig(OUT, steps=steps)
    assert config.warmup_steps == warmup == config.record()["lr_warmup_steps"]
    assert TrainConfig(OUT, steps=100, lr_warmup_steps=99).warmup_steps == 99


def test_what_was_trained_is_read_off_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [
        {"step": n + 1, "learning_rate": 0.1, "branch": 0.5, "handover": handover, **counts_record(counts)}
        for n, (handover, counts) in enumerate([(0.0, GroupCounts.of([1, 1])), (0.2, GroupCounts.of([1, 3]))])
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "bran')
    trained = Trained.read(log)
    assert trained == Trained(2, GroupCounts(6, 4, 3, 3), {"branch": 0, "handover": 1})
    assert trained.words() == (
        "2 steps of 3 images on average; 50% of the images in groups of two or more; mean group size 1.5, largest 3; "
        "steps in which a term was 0: `handover` in 1 of 2."
    )
    config = TrainConfig(OUT)
    assert config.sharing(trained.counts.largest)["max_group_size"] == 3
    assert config.sharing(1)["max_share_ratio"] == 0.0 and config.sharing()["max_group_size"] == 8
