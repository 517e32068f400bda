"""Which replica a request goes to: the one that last served similar prompts, unless it is too busy. Pure: no Ray, no
clock.

A replica groups the requests that wait there and replays shared phases that it ran before; both save most where similar
prompts arrive at the same replica. Centres are learnt online: a prompt that is near no centre becomes one, and its home
is the replica that got the fewest requests lately. Later prompts near that centre go to its home. A home that is busier
than the least busy replica by more than the guard is passed over for the centre's next home; if there is none, the
least busy replica becomes one. So a popular centre spreads over as many replicas as it needs.

Tenants are not told apart here: groups and caches do that inside each replica.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from sagediff.errors import InputError
from sagediff.files.digest import bytes_digest

Vector = npt.NDArray[np.float32]
RouteReason: TypeAlias = Literal["home", "founded", "spilled", "anywhere"]

_DECAY = 0.99  # of the count of recent requests at each replica, per further request
_PROMPTS_PER_CENTRE = 16  # distinct prompts remembered per centre, on average


class Choice(NamedTuple):
    """Where a request goes, and why.

    Attributes:
        replica: its number.
        reason: "home": a home of the prompt's centre; "founded": the prompt became a centre, or its centre had lost
            its homes, and this is its home from now on; "spilled": the homes are too busy, and this becomes another;
            "anywhere": the request has no vector.
    """

    replica: int
    reason: RouteReason


class Router(Protocol):
    """Chooses replicas for requests."""

    def route(self, vector: Vector | None, loads: Mapping[int, int]) -> Choice:
        """See `AffinityRouter.route`."""

    def remove(self, replica: int) -> None:
        """See `AffinityRouter.remove`."""


@dataclass(frozen=True)
class AffinityPolicy:
    """How requests are sent to replicas.

    Attributes:
        threshold: minimum cosine similarity of a prompt to a centre to go to its homes, in [-1, 1]. Higher: more
            centres, spread more evenly; fewer requests meet those that they could share with.
        guard: how many requests more than the least busy replica a home may have. Higher: more sharing, longer queues.
        max_centres: most centres remembered; the least recently used one is dropped first.

    Raises:
        InputError: a value out of range.
    """

    threshold: float = 0.5
    guard: int = 16
    max_centres: int = 4096

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise InputError(f"the router's threshold must lie in [-1, 1], got {self.threshold}")
        if self.guard < 0:
            raise InputError(f"the router's guard must be at least 0 requests, got {self.guard}")
        if self.max_centres < 1:
            raise InputError(f"the router needs room for at least one centre, got {self.max_centres}")


@dataclass
class _Centre:
    """A centre's row in the matrix of vectors, and its home replicas, in the order in which they became so."""

    row: int
    homes: list[int] = field(default_factory=list)


class AffinityRouter:
    """Load-guarded affinity. The same requests and loads give the same choices. Not safe between threads."""

    def __init__(self, policy: AffinityPolicy = AffinityPolicy()) -> None:
        self.policy = policy
        # by a number that is never used again; least recently used first
        self._centres: OrderedDict[int, _Centre] = OrderedDict()
        self._vectors: Vector = np.zeros((0, 0), np.float32)  # (rows, D)
        self._centre_in_row: list[int] = []
        # digest of a prompt's vector -> its centre
        self._centre_by_prompt: OrderedDict[str, int] = OrderedDict()
        self._recent: dict[int, float] = {}  # requests sent to each replica lately, decayed
        self._next_centre = 0

    def __len__(self) -> int:
        """Centres remembered."""
        return len(self._centres)

    def homes(self) -> dict[int, tuple[int, ...]]:
        """Every centre's homes, by a number that is never used again."""
        return {number: tuple(centre.homes) for number, centre in self._centres.items()}

    def route(self, vector: Vector | None, loads: Mapping[int, int]) -> Choice:
        """Choose for one request, and remember it.

        The chosen replica's load is at most the guard above the least.

        Args:
            vector: of its prompt, (D,) of unit length; None for one that may not share.
            loads: requests in flight at every replica that takes any.

        Raises:
            InputError: no replica, or a vector that cannot be right.
        """
        if not loads:
            raise InputError("there is no replica to send a request to")
        choice = self._choose(vector, loads)
        self._recent = {number: count * _DECAY for number, count in self._recent.items()}
        self._recent[choice.replica] = self._recent.get(choice.replica, 0.0) + 1.0
        return choice

    def remove(self, replica: int) -> None:
        """The replica is gone, and its cache with it: it is no centre's home any more. A centre that had no other home
        gets one with its next request."""
        self._recent.pop(replica, None)
        for centre in self._centres.values():
            if replica in centre.homes:
                centre.homes.remove(replica)

    def _choose(self, vector: Vector | None, loads: Mapping[int, int]) -> Choice:
        if vector is None:
            return Choice(self._least_busy(loads), "anywhere")
        most = min(loads.values()) + self.policy.guard
        eligible = {number: load for number, load in loads.items() if load <= most}
        centre = self._centre_of(vector)
        for home in centre.homes:
            if home in eligible:
                return Choice(home, "home")
        if centre.homes:
            chosen = self._least_busy(loads)
            # a home that is only full or starting keeps its place before the new one
            centre.homes.append(chosen)
            return Choice(chosen, "spilled")
        # queues of this moment say little: among those that could take it, the one with the fewest recent requests
        chosen = min(eligible, key=lambda n: (self._recent.get(n, 0.0), loads[n], n))
        centre.homes.append(chosen)
        return Choice(chosen, "founded")

    def _least_busy(self, loads: Mapping[int, int]) -> int:
        return min(loads, key=lambda number: (loads[number], self._recent.get(number, 0.0), number))

    def _centre_of(self, vector: Vector) -> _Centre:
        """The centre that this prompt had before, else the nearest, else a new one."""
        unit = np.ascontiguousarray(vector, np.float32)
        if unit.ndim != 1 or not math.isclose(float(np.linalg.norm(unit)), 1.0, abs_tol=1e-3):
            raise InputError(f"the router needs a unit vector (D,), got shape {unit.shape}")
        if self._centres and unit.shape[0] != self._vectors.shape[1]:
            raise InputError(
                f"the router was given {unit.shape[0]} dimensions, and {self._vectors.shape[1]} before: "
                "all prompts must be embedded by one encoder"
            )
        prompt = bytes_digest(unit.tobytes())
        number = self._centre_by_prompt.get(prompt)
        if number is None or number not in self._centres:
            number = self._nearest(unit)
            if number is None:
                number = self._new_centre(unit)
        # without this a nearer, later centre would take a prompt away from where its shared phase is cached
        self._centre_by_prompt[prompt] = number
        self._centre_by_prompt.move_to_end(prompt)
        if len(self._centre_by_prompt) > _PROMPTS_PER_CENTRE * self.policy.max_centres:
            self._centre_by_prompt.popitem(last=False)
        self._centres.move_to_end(number)
        return self._centres[number]

    def _nearest(self, unit: Vector) -> int | None:
        """The nearest centre's number, if it is near enough; of equals the first row's."""
        if not self._centres:
            return None
        alike = self._vectors[: len(self._centre_in_row)] @ unit  # (centres,)
        row = int(np.argmax(alike))
        return self._centre_in_row[row] if alike[row] >= self.policy.threshold else None

    def _new_centre(self, unit: Vector) -> int:
        number = self._next_centre
        self._next_centre += 1
        if len(self._centres) >= self.policy.max_centres:
            _, oldest = self._centres.popitem(last=False)
            row = oldest.row
            self._centre_in_row[row] = number
        else:
            row = len(self._centre_in_row)
            self._centre_in_row.append(number)
            if not row:  # zeros that are not written to take no memory, so it need not grow
                self._vectors = np.zeros((self.policy.max_centres, len(unit)), np.float32)
        self._vectors[row] = unit
        self._centres[number] = _Centre(row)
        return number
