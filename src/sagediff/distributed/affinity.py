"""Which replica a request goes to: where its meaning is at home, unless that one is too busy. Pure: no Ray, no clock.

Replicas group what waits together and replay what they made before, so both are worth most where requests that mean
nearly the same meet. Centres are learnt as requests come: the first prompt that is near to none founds one, at the
replica that was asked for least of late. Whoever is near to it later goes there too. A home that is busier than the
least busy replica by more than the guard is passed over: the request goes to the centre's next home, which the least
busy one becomes if there is none, so that what is asked for most spreads over as many replicas as it needs and meets
there again.

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
How: TypeAlias = Literal["home", "founded", "spilled", "anywhere"]

_REMEMBERED = 0.99  # of what a replica was asked for, after each further request
_TEXTS_A_CENTRE = 16  # how many distinct prompts are remembered for each centre, on the average


class Choice(NamedTuple):
    """Where a request goes, and why: its meaning is at home there ("home"), or is from now on ("founded"); its homes
    are too busy ("spilled"); or it has no meaning to go by ("anywhere")."""

    replica: int
    how: How


class Router(Protocol):
    """Where requests go."""

    def route(self, vector: Vector | None, loads: Mapping[int, int]) -> Choice:
        """See `AffinityRouter.route`."""

    def remove(self, replica: int) -> None:
        """See `AffinityRouter.remove`."""


@dataclass(frozen=True)
class AffinityPolicy:
    """How requests find their homes.

    Attributes:
        threshold: least cosine to a centre for its homes, in [-1, 1]. Higher: more centres, spread more evenly; fewer
            requests meet those that they could share with.
        guard: requests by which a home may be busier than the least busy replica. Higher: more sharing, longer queues.
        max_centres: most centres remembered; the one that was asked for longest ago goes first.

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
    """A meaning and its homes, the first one first. `row` is where its vector stands."""

    row: int
    homes: list[int] = field(default_factory=list)


class AffinityRouter:
    """Load-guarded affinity. The same requests and loads give the same choices. Not safe between threads."""

    def __init__(self, policy: AffinityPolicy = AffinityPolicy()) -> None:
        self.policy = policy
        self._centres: OrderedDict[int, _Centre] = (
            OrderedDict()
        )  # by a number never used again; least recent first
        self._vectors: Vector = np.zeros((0, 0), np.float32)  # (rows, D)
        self._of_row: list[int] = []  # which centre stands in a row
        self._texts: OrderedDict[str, int] = OrderedDict()  # digest of a prompt's vector -> its centre
        self._asked: dict[int, float] = {}  # of each replica, of late
        self._founded = 0

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
            loads: requests in hand of every replica that takes any.

        Raises:
            InputError: no replica, or a vector that cannot be right.
        """
        if not loads:
            raise InputError("there is no replica to send a request to")
        choice = self._choose(vector, loads)
        self._asked = {number: asked * _REMEMBERED for number, asked in self._asked.items()}
        self._asked[choice.replica] = self._asked.get(choice.replica, 0.0) + 1.0
        return choice

    def remove(self, replica: int) -> None:
        """It has gone, and what it kept with it: centres lose it as a home, and those that had no other are founded
        anew when they are next asked for. Other homes stay."""
        self._asked.pop(replica, None)
        for centre in self._centres.values():
            if replica in centre.homes:
                centre.homes.remove(replica)

    def _choose(self, vector: Vector | None, loads: Mapping[int, int]) -> Choice:
        least = min(loads.values())
        if vector is None:
            return Choice(self._least_busy(loads), "anywhere")
        bearable = {number: load for number, load in loads.items() if load <= least + self.policy.guard}
        centre = self._centre_of(vector)
        for home in centre.homes:
            if home in bearable:
                return Choice(home, "home")
        if centre.homes:
            chosen = self._least_busy(loads)
            # a home that is only full or starting keeps its place before the new one
            centre.homes.append(chosen)
            return Choice(chosen, "spilled")
        # queues of this moment say little: among those that could take it, whoever was asked for least
        chosen = min(bearable, key=lambda n: (self._asked.get(n, 0.0), loads[n], n))
        centre.homes.append(chosen)
        return Choice(chosen, "founded")

    def _least_busy(self, loads: Mapping[int, int]) -> int:
        return min(loads, key=lambda number: (loads[number], self._asked.get(number, 0.0), number))

    def _centre_of(self, vector: Vector) -> _Centre:
        """The one of its prompt if that has come before, else the nearest, else a new one."""
        unit = np.ascontiguousarray(vector, np.float32)
        if unit.ndim != 1 or not math.isclose(float(np.linalg.norm(unit)), 1.0, abs_tol=1e-3):
            raise InputError(f"the router needs a unit vector (D,), got shape {unit.shape}")
        if self._centres and unit.shape[0] != self._vectors.shape[1]:
            raise InputError(
                f"the router was given {unit.shape[0]} dimensions, and {self._vectors.shape[1]} before: "
                "all prompts must be embedded by one encoder"
            )
        text = bytes_digest(unit.tobytes())
        number = self._texts.get(text)
        if number is None or number not in self._centres:
            number = self._nearest(unit)
            if number is None:
                number = self._found(unit)
        # without this a centre founded later and nearer would take a prompt away from where its shared phase is kept
        self._texts[text] = number
        self._texts.move_to_end(text)
        if len(self._texts) > _TEXTS_A_CENTRE * self.policy.max_centres:
            self._texts.popitem(last=False)
        self._centres.move_to_end(number)
        return self._centres[number]

    def _nearest(self, unit: Vector) -> int | None:
        """The nearest centre's number, if it is near enough; of equals the first row's."""
        if not self._centres:
            return None
        alike = self._vectors[: len(self._of_row)] @ unit  # (centres,)
        row = int(np.argmax(alike))
        return self._of_row[row] if alike[row] >= self.policy.threshold else None

    def _found(self, unit: Vector) -> int:
        number = self._founded
        self._founded += 1
        if len(self._centres) >= self.policy.max_centres:
            _, oldest = self._centres.popitem(last=False)
            row = oldest.row
            self._of_row[row] = number
        else:
            row = len(self._of_row)
            self._of_row.append(number)
            if row >= len(self._vectors):  # doubled, so that founding stays cheap
                grown = np.zeros((min(max(64, 2 * row), self.policy.max_centres), len(unit)), np.float32)
                if row:
                    grown[:row] = self._vectors[:row]
                self._vectors = grown
        self._vectors[row] = unit
        self._centres[number] = _Centre(row)
        return number
