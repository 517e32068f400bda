"""Which images a step sees: groups formed from the captions by the code that groups prompts for sampling.

Everything is drawn from (seed, pool number) and (seed, step), so that a resumed run sees what an uninterrupted
one would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sagediff.plan.grouping import group_prompts


@dataclass
class GroupSchedule:
    """For each batch the groups of image numbers in it.

    Attributes:
        vectors: (P, D) embeddings of the distinct captions.
        images: for each distinct caption the numbers of its images.
        threshold, group_size, pool_size, batch_size: as in `TrainConfig`.
        seed: of everything drawn.

    A pool is a draw of captions, as many as a job might have, grouped at the threshold with a largest size
    drawn from the range. Batches take groups from a pool in a drawn order until it is used up.
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

    def _make_pool(self, number: int) -> list[list[list[int]]]:
        """The pool's batches, each a list of groups of captions."""
        rng = np.random.default_rng([self.seed, 1, number])
        chosen = rng.choice(len(self.vectors), size=self.pool_size, replace=False)
        largest = int(rng.integers(self.group_size[0], self.group_size[1] + 1))
        groups = [
            [int(chosen[i]) for i in group]
            for group in group_prompts(self.vectors[chosen], self.threshold, largest)
        ]
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

    def batch(self, number: int) -> list[list[int]]:
        """Groups of image numbers of the batch with that number; no caption twice in a pool."""
        pool, place = divmod(number, self._batches_per_pool)
        groups = self._pool(pool)[place]
        rng = np.random.default_rng([self.seed, 2, number])
        return [[int(rng.choice(self.images[caption])) for caption in group] for group in groups]
