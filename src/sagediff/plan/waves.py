"""A plan's waves: which whole groups are carried at once, and all that decides their images. Pure.

Waves are formed before anybody says where they run, so that the same batches come out on any number of workers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from sagediff.files.digest import number_of
from sagediff.plan.compatibility import Key, run_key
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.prompts.requests import ImageRequest


@dataclass(frozen=True)
class WaveTask:
    """What one wave needs, wherever it is run.

    Attributes:
        members: the requests' numbers in the whole plan, in the order of the rows.
        requests, noise_seeds, own_seeds, repeats: of those members, in that order; the last says whose prompt equals an
            earlier one's of its group.
        plan: the whole plan's part for them.
        num_inference_steps: of the pipeline's call, of which a strength below 1 leaves out the first; None: the plan's.
    """

    members: list[int]
    requests: list[ImageRequest]
    plan: SharePlan
    noise_seeds: list[int]
    own_seeds: list[int]
    repeats: list[bool]
    num_inference_steps: int | None = None


class Waves:
    """The waves of a plan; each one's task is put together when it is asked for, so that many of them take no memory.

    Args:
        seed: every request's seed is derived from it, unless the request has one.
        wave_size: most requests of a wave, unless a group alone has more.
        read: for each request what the model's encoders read of its prompt (`repeats`).
        calls: for each request what else must be equal of all that run in one call; None: nothing.
        num_inference_steps: as `WaveTask` has it.

    Attributes:
        members: for each wave the numbers of its requests.
        noise_seeds: of the noise that each request starts from, (N,); equal within a group.
    """

    def __init__(
        self,
        requests: Sequence[ImageRequest],
        plan: SharePlan,
        seed: int,
        wave_size: int,
        read: Sequence[Hashable] | None = None,
        calls: Sequence[Hashable] | None = None,
        num_inference_steps: int | None = None,
    ) -> None:
        together: dict[Key, list[list[int]]] = {}  # groups that may run in one call
        for group in plan.groups:
            also = () if calls is None else (calls[group[0]],)
            together.setdefault((*run_key(requests[group[0]]), *also), []).append(group)
        by_loras: dict[Hashable, list[list[list[int]]]] = {}  # so that LoRAs are switched as seldom as can be
        for groups in together.values():
            by_loras.setdefault(requests[groups[0][0]].lora, []).append(groups)
        ordered = [groups for each in by_loras.values() for groups in each]
        self.members = [wave for groups in ordered for wave in wave_members(groups, wave_size)]
        self._own = own_seeds(requests, seed)
        self.noise_seeds = noise_seeds(requests, self._own, plan.groups)
        self._requests, self._plan = requests, plan
        self._num_inference_steps = num_inference_steps
        self._repeats = repeats(requests, plan.groups, read)

    def __len__(self) -> int:
        return len(self.members)

    def without(self, done: Sequence[int]) -> Waves:
        """The waves that are left when these requests are finished.

        One with a member that is not stays whole, since images differ by rounding with the batch that they are made in,
        and those made later should not.
        """
        finished, left = set(done), copy.copy(self)
        left.members = [wave for wave in self.members if not finished.issuperset(wave)]
        return left

    def costs(self) -> list[float]:
        """Denoiser rows of each wave."""
        return [float(self._plan.prompt_evaluations[members].sum()) for members in self.members]

    def seeds(self, sharing_of: Callable[[ImageRequest], Sharing]) -> list[int]:
        """The seed of each image's noise, (N,), for those who want to know what made it.

        That of the noise that its group starts from; for copies of a prompt, which get noise of their own when they
        leave the group, their own.  Where copies get none their images are equal, and so are their seeds.
        """
        steps = self._plan.num_steps
        return [
            mine if again and 0 < branch < steps and sharing_of(request).sets_members_apart else start
            for request, mine, start, again, branch in zip(
                self._requests,
                self._own,
                self.noise_seeds,
                self._repeats,
                self._plan.branch_steps,
                strict=True,
            )
        ]

    def task(self, number: int) -> WaveTask:
        members = self.members[number]
        return WaveTask(
            members,
            [self._requests[i] for i in members],
            self._plan.subset(members),
            [self.noise_seeds[i] for i in members],
            [self._own[i] for i in members],
            [self._repeats[i] for i in members],
            self._num_inference_steps,
        )


def own_seeds(requests: Sequence[ImageRequest], seed: int) -> list[int]:
    """Each request's seed; where it names none, 63 bits from `seed`, its prompt and images, and how often those came
    before with the same LoRAs: the same prompt has the same noise with any."""
    seen: dict[tuple[str, Hashable], int] = {}
    out = []
    for request in requests:
        identity = request.identity
        key = identity, request.lora
        occurrence = seen[key] = seen.get(key, -1) + 1
        derived = number_of(f"{seed}\0{occurrence}\0{identity}") >> 1
        out.append(derived if request.seed is None else request.seed)
    return out


def noise_seeds(
    requests: Sequence[ImageRequest], own: Sequence[int], groups: Sequence[Sequence[int]]
) -> list[int]:
    """The seed of each request's initial noise: its group's first member's by prompt, whatever the order."""
    out = [0] * len(requests)
    for group in groups:
        first = min(group, key=lambda i: (requests[i].prompt, i))
        for i in group:
            out[i] = own[first]
    return out


def wave_members(groups: Sequence[Sequence[int]], wave_size: int) -> Iterator[list[int]]:
    """Whole groups packed in order, at most `wave_size` requests per wave unless one group alone has more."""
    wave: list[int] = []
    for group in groups:
        if wave and len(wave) + len(group) > wave_size:
            yield wave
            wave = []
        wave = [*wave, *group]
    if wave:
        yield wave


def repeats(
    requests: Sequence[ImageRequest],
    groups: Sequence[Sequence[int]],
    read: Sequence[Hashable] | None = None,
) -> list[bool]:
    """Whether a member's prompt equals that of an earlier member of its group, so that their images would be equal.

    Args:
        read: for each request what the model's encoders read of its prompt: prompts of which they read the same are
            equal.  None: its text.
    """
    prompts: Sequence[Hashable] = [request.prompt for request in requests] if read is None else read
    out = [False] * len(requests)
    for group in groups:
        seen: set[Hashable] = set()
        for i in sorted(group, key=lambda i: (requests[i].prompt, i)):  # as `noise_seeds` has them
            out[i] = prompts[i] in seen
            seen.add(prompts[i])
    return out
