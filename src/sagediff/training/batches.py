"""Which images a step sees: groups formed from the captions by the code that groups prompts for sampling.

Everything is drawn from (seed, pool number) and (seed, step), so that a resumed run sees what an uninterrupted
one would have.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sagediff.plan.grouping import group_prompts


class GroupSchedule:
    """For each batch the groups of image numbers in it.

    Args:
        vectors: (P, D) embeddings of the distinct captions.
        images: for each distinct caption the numbers of its images.
        threshold, group_size, pool_size, batch_size: as in `TrainConfig`.
        seed: of everything drawn.

    A pool is a draw of captions, as many as a job might have, grouped at the threshold with a largest size
    drawn from the range. Batches take groups from a pool in a drawn order until it is used up.
    """

    def __init__(
        self,
        vectors: npt.NDArray[np.float32],
        images: list[list[int]],
        threshold: float,
        group_size: tuple[int, int],
        pool_size: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self._vectors, self._images = vectors, images
        self._threshold, self._group_size = threshold, group_size
        self._pool_size = min(pool_size, len(vectors))
        self._batch_size, self._seed = batch_size, seed
        self._pool = lru_cache(maxsize=2)(self._make_pool)
        # every pool gives the same number of batches, so that a step's batch is found without those before it
        self._batches_per_pool = max(1, self._pool_size // batch_size)

    def _make_pool(self, number: int) -> list[list[list[int]]]:
        """The pool's batches, each a list of groups of captions."""
        rng = np.random.default_rng([self._seed, 1, number])
        chosen = rng.choice(len(self._vectors), size=self._pool_size, replace=False)
        largest = int(rng.integers(self._group_size[0], self._group_size[1] + 1))
        groups = [
            [int(chosen[i]) for i in group]
            for group in group_prompts(self._vectors[chosen], self._threshold, largest)
        ]
        order = rng.permutation(len(groups))
        batches: list[list[list[int]]] = [[]]
        room = self._batch_size
        for place in order:
            group = groups[int(place)]
            while group:
                part, group = group[:room], group[room:]
                batches[-1].append(part)
                room -= len(part)
                if room == 0:
                    batches.append([])
                    room = self._batch_size
        full = [b for b in batches if b]
        return full[: self._batches_per_pool]

    def batch(self, number: int) -> list[list[int]]:
        """Groups of image numbers of the batch with that number; no caption twice in a pool."""
        pool, place = divmod(number, self._batches_per_pool)
        groups = self._pool(pool)[place]
        rng = np.random.default_rng([self._seed, 2, number])
        return [[int(rng.choice(self._images[caption])) for caption in group] for group in groups]
