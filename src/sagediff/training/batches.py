"""Which images a step sees: groups formed from the captions by the code that groups prompts for sampling.

Everything is drawn from (seed, pool number) and (seed, step), so that a resumed run sees what an uninterrupted
one would have.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sagediff.plan.grouping import group_prompts
from sagediff.training.train_config import TrainConfig

FEW = 0.5  # part of the images in groups, below which a run is warned of
_POOLS = 16  # at most, that are looked at before a run
_LOOKED_AT = 1000  # captions, at most, among which a threshold is looked for


@dataclass(frozen=True)
class GroupCounts:
    """How many images some batches hold, and how many of them share a group with others.

    Attributes:
        images, groups: in all batches together.
        in_groups: images in groups of two or more.
        largest: members of the largest group.
    """

    images: int
    groups: int
    in_groups: int
    largest: int

    @classmethod
    def of(cls, sizes: Sequence[int]) -> GroupCounts:
        """Of groups with these numbers of members."""
        together = [size for size in sizes if size > 1]
        return cls(sum(sizes), len(sizes), sum(together), max(sizes, default=0))


@dataclass
class GroupSchedule:
    """For each batch the groups of image numbers in it.

    Attributes:
        vectors: (P, D) embeddings of the distinct captions.
        images: for each distinct caption the numbers of its images.
        threshold, group_size, pool_size, batch_size: as in `TrainConfig`.
        seed: of everything drawn.

    A pool is a draw of captions, as many as a job might have, grouped at the threshold with a largest size
    from the range: the greatest in the first pool, one less in each that follows, and over again, so that short runs
    have groups too. Batches take groups from a pool in a drawn order until it is used up.

    Images of one caption are never in one group: nothing would tell the model to which of them the group's state
    should lead. Where there are fewer captions than a batch has images, further images of the captions form groups of
    their own, the second ones among each other and so on, until the batch is full or no image is left.
    """

    vectors: npt.NDArray[np.float32]
    images: list[list[int]]
    threshold: float
    group_size: tuple[int, int]
    pool_size: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        self.pool_size = min(self.pool_size, len(self.vectors))
        self._pool = lru_cache(maxsize=2)(self._make_pool)
        # every pool gives the same number of batches, so that a step's batch is found without those before it
        self._batches_per_pool = max(1, self.pool_size // self.batch_size)
        self._sizes = self.group_size[1] - self.group_size[0] + 1

    def _make_pool(self, number: int) -> list[list[list[int]]]:
        """The pool's batches, each a list of groups of captions."""
        rng = np.random.default_rng([self.seed, 1, number])
        chosen = rng.choice(len(self.vectors), size=self.pool_size, replace=False)
        largest = self.group_size[1] - number % self._sizes
        groups, held, copies = self._grouped(chosen, largest), len(chosen), 1
        while held < self.batch_size:
            again = [caption for caption in chosen if len(self.images[caption]) > copies]
            if not again:
                break
            groups += self._grouped(again, largest)
            held, copies = held + len(again), copies + 1
        order = rng.permutation(len(groups))
        batches: list[list[list[int]]] = [[]]
        room = self.batch_size
        for place in order:
            group = groups[int(place)]
            while group:
                part, group = group[:room], group[room:]
                batches[-1].append(part)
                room -= len(part)
                if room == 0:
                    batches.append([])
                    room = self.batch_size
        return [batch for batch in batches if batch][: self._batches_per_pool]

    def _grouped(self, captions: Sequence[int] | npt.NDArray[np.int64], largest: int) -> list[list[int]]:
        groups = group_prompts(self.vectors[captions], self.threshold, largest)
        return [[int(captions[i]) for i in group] for group in groups]

    def batch(self, number: int) -> list[list[int]]:
        """Groups of image numbers of the batch with that number; no image twice, no caption twice in a group."""
        pool, place = divmod(number, self._batches_per_pool)
        groups = self._pool(pool)[place]
        rng = np.random.default_rng([self.seed, 2, number])
        left = {
            caption: rng.permutation(self.images[caption]).tolist()
            for caption, times in Counter(caption for group in groups for caption in group).items()
            if times > 1
        }
        return [
            [int(left[c].pop() if c in left else rng.choice(self.images[c])) for c in group]
            for group in groups
        ]

    # -- what a run will see

    def counts(self, num_batches: int) -> GroupCounts:
        """Of the first batches; those of so many pools that each size was had are enough to know the rest."""
        numbers = range(min(num_batches, min(self._sizes, _POOLS) * self._batches_per_pool))
        pools = [divmod(number, self._batches_per_pool) for number in numbers]
        return GroupCounts.of([len(group) for pool, place in pools for group in self._pool(pool)[place]])

    def images_per_batch(self) -> int:
        """Of the first batch; fewer than `batch_size` where there are fewer images."""
        return sum(map(len, self.batch(0)))

    def threshold_that_groups(self, part: float) -> float | None:
        """The greatest threshold, in hundredths, at which at least that part of the captions is in groups of two or
        more; None where there is none."""
        rng = np.random.default_rng([self.seed, 3])
        vectors = self.vectors[rng.permutation(len(self.vectors))[: min(self.pool_size, _LOOKED_AT)]]
        if len(vectors) < 2:
            return None
        alike = vectors @ vectors.T
        np.fill_diagonal(alike, -1)
        # above this, too few captions have any other that is as similar; below it, sizes of groups decide
        highest = min(99, int(np.floor(100 * np.quantile(alike.max(axis=1), 1 - part))))

        def groups_enough(hundredths: int) -> bool:
            groups = group_prompts(vectors, hundredths / 100, max(2, self.group_size[1]))
            counts = GroupCounts.of(list(map(len, groups)))
            return counts.in_groups >= part * counts.images

        below = bisect_left(range(-highest, 101), True, key=lambda negative: groups_enough(-negative))
        return None if below == 101 + highest else (highest - below) / 100


def schedule_warnings(schedule: GroupSchedule, config: TrainConfig, num_images: int) -> list[str]:
    """What a run on these captions will not do although it was asked for, in words, before it runs."""
    words = []
    held = schedule.images_per_batch()
    if held < config.train_batch_size:
        few = (
            f"the data holds {num_images}"
            if held == num_images
            else f"{schedule.pool_size} captions (--pool-size) have no more"
        )
        words.append(
            f"a step trains on {held} images and not on {config.train_batch_size} (--train-batch-size): {few}"
        )
    counts = schedule.counts(config.steps * config.gradient_accumulation_steps)
    if config.objective == "sage" and counts.in_groups < FEW * counts.images:
        together = (
            f"only {counts.in_groups / counts.images:.0%} of the images are in groups of two or more "
            f"({counts.in_groups} of {counts.images} looked at)"
            if counts.in_groups
            else "no image is in a group of two or more"
        )
        learn = "hardly learn" if counts.in_groups else "do not learn"
        better = schedule.threshold_that_groups(FEW)
        advice = (
            "all captions are equal, and images of one caption are not grouped"
            if len(schedule.vectors) == 1
            else f"--threshold {better:g} would put at least {FEW:.0%} into groups"
            if better is not None and better < schedule.threshold
            else "larger batches or groups would hold more together"
        )
        words.append(
            f"at threshold {schedule.threshold:g} {together}, so the weights {learn} to share; {advice}"
        )
    return words
