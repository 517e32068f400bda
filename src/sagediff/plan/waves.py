"""A plan's waves: which whole groups are carried at once, and all that decides their images. Pure.

Waves are formed before anybody says where they run, so that the same batches come out on any number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sagediff.plan.share_plan import SharePlan


@dataclass(frozen=True)
class WaveTask:
    """What one wave needs, wherever it is run.

    Attributes:
        members: prompt numbers in the whole plan, in the order of the rows.
        prompts, noise_seeds, own_seeds, repeats: of those members, in that order; the last says whose prompt equals an
            earlier one's of its group.
        plan: the whole plan's part for them.
    """

    members: list[int]
    prompts: list[str]
    plan: SharePlan
    noise_seeds: list[int]
    own_seeds: list[int]
    repeats: list[bool]


class Waves:
    """The waves of a plan; each one's task is put together when it is asked for, so that many of them take no memory.

    Args:
        seed: every prompt's seed is derived from it.
        wave_size: most prompts of a wave, unless a group alone has more.
        skip: prompts that are finished; a group all of whose members are is left out.

    Attributes:
        members: for each wave its prompt numbers.
        noise_seeds: for each prompt, (N,).
    """

    def __init__(
        self, prompts: Sequence[str], plan: SharePlan, seed: int, wave_size: int, skip: Sequence[int] = ()
    ) -> None:
        done = set(skip)
        left = [group for group in plan.groups if not set(group) <= done]
        self.members = list(wave_members(left, wave_size))
        self.noise_seeds = noise_seeds(prompts, plan, seed)
        self._prompts, self._plan = prompts, plan
        self._own, self._repeats = prompt_seeds(prompts, seed), repeats(prompts, plan)

    def __len__(self) -> int:
        return len(self.members)

    def costs(self) -> list[float]:
        """Denoiser rows of each wave."""
        return [float(self._plan.prompt_evaluations[members].sum()) for members in self.members]

    def task(self, number: int) -> WaveTask:
        members = self.members[number]
        return WaveTask(
            members,
            [self._prompts[i] for i in members],
            self._plan.subset(members),
            [self.noise_seeds[i] for i in members],
            [self._own[i] for i in members],
            [self._repeats[i] for i in members],
        )


def prompt_seeds(prompts: Sequence[str], seed: int) -> list[int]:
    """A seed of 63 bits for each prompt, from `seed`, its text, and how often that text came before."""
    seen: dict[str, int] = {}
    out = []
    for prompt in prompts:
        occurrence = seen[prompt] = seen.get(prompt, -1) + 1
        digest = hashlib.blake2b(f"{seed}\0{occurrence}\0{prompt}".encode(), digest_size=8).digest()
        out.append(int.from_bytes(digest, "big") >> 1)
    return out


def noise_seeds(prompts: Sequence[str], plan: SharePlan, seed: int) -> list[int]:
    """The seed of each prompt's initial noise: that of its group's first member by text, whatever the order."""
    own = prompt_seeds(prompts, seed)
    out = [0] * len(prompts)
    for group in plan.groups:
        first = min(group, key=lambda i: (prompts[i], i))
        for i in group:
            out[i] = own[first]
    return out


def wave_members(groups: Sequence[Sequence[int]], wave_size: int) -> Iterator[list[int]]:
    """Whole groups packed in order, at most `wave_size` prompts per wave unless one group alone has more."""
    wave: list[int] = []
    for group in groups:
        if wave and len(wave) + len(group) > wave_size:
            yield wave
            wave = []
        wave = [*wave, *group]
    if wave:
        yield wave


def repeats(prompts: Sequence[str], plan: SharePlan) -> list[bool]:
    """Whether a member's prompt equals that of an earlier member of its group."""
    out = np.zeros(len(prompts), dtype=bool)
    for group in plan.groups:
        seen: set[str] = set()
        for i in group:
            out[i] = prompts[i] in seen
            seen.add(prompts[i])
    return [bool(flag) for flag in out]
