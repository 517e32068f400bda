"""Who has what in hand, and where the next call goes. Pure: no Ray, no clock.

Calls announce themselves here with what they mean; the router asks where each goes; whoever made a call says when it
has ended. What a replica has in hand is counted from that alone, so nothing is counted for ever if a call is cancelled
on its way. Replicas are numbered in the order in which they appear, and a number is never used again.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection

from sagediff.distributed.affinity import How, Router, Vector

_DESKS: dict[str, Desk] = {}


def post(name: str, desk: Desk) -> None:
    """Let a router of this process find the desk by its name."""
    _DESKS[name] = desk


def desk_of(name: str) -> Desk | None:
    """The desk that was posted under this name, in this process."""
    return _DESKS.get(name)


def withdraw(name: str) -> bool:
    """Whether there was one."""
    return _DESKS.pop(name, None) is not None


class Desk:
    """Safe between threads.

    Args:
        router: where calls go.
        on_routed: told how a call's replica was chosen, once a call; must be quick.
        on_replicas: told the numbers of all replicas that there are, whenever that changes; must be quick.
    """

    def __init__(
        self,
        router: Router,
        on_routed: Callable[[How], None] = lambda how: None,
        on_replicas: Callable[[frozenset[int]], None] = lambda numbers: None,
    ) -> None:
        self._router, self._on_routed, self._on_replicas = router, on_routed, on_replicas
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}  # of the replicas that there are, by Ray's name of each
        self._known = 0
        self._meant: dict[str, Vector | None] = {}  # by call
        self._sent: dict[str, int] = {}  # call -> its replica

    def announce(self, call: str, vector: Vector | None) -> None:
        """A call that is about to be made, and what it means: (D,) of unit length; None for nothing to go by."""
        with self._lock:
            self._meant[call] = vector

    def end(self, call: str) -> None:
        """It has ended, in whatever way. Ending it again does nothing."""
        with self._lock:
            self._meant.pop(call, None)
            self._sent.pop(call, None)

    def replicas(self, names: Collection[str]) -> None:
        """These, and no others, take calls now. Who is missing has gone, with what it had at home."""
        with self._lock:
            gone = self._numbers.keys() - set(names)
            new = [name for name in names if name not in self._numbers]
            for name in gone:
                self._router.remove(self._numbers.pop(name))
            for name in new:
                self._numbers[name] = self._known
                self._known += 1
            there = frozenset(self._numbers.values())
        if gone or new:
            self._on_replicas(there)

    def choose(self, call: str, names: Collection[str]) -> str:
        """Which of the replicas, at least one, a call goes to. A call that is asked for again was not taken."""
        with self._lock:
            loads = self._loads()
            open_to = {self._numbers[name]: name for name in names if name in self._numbers}
            again = self._sent.pop(call, None)
            if again is not None and again in loads:
                loads[again] -= 1
            if (
                call not in self._meant or not open_to
            ):  # ended meanwhile, or all have gone: Ray finds that out
                return next(iter(names))
            choice = self._router.route(
                self._meant[call], {number: loads[number] for number in sorted(open_to)}
            )
            self._sent[call] = choice.replica
        if again is None:
            self._on_routed(choice.how)
        return open_to[choice.replica]

    def loads(self) -> dict[int, int]:
        """Calls in hand of every replica that there is."""
        with self._lock:
            return self._loads()

    def number(self, name: str) -> int | None:
        """Of the replica that Ray calls so; None once it has gone."""
        with self._lock:
            return self._numbers.get(name)

    def _loads(self) -> dict[int, int]:
        sent = Counter(self._sent.values())
        return {number: sent[number] for number in self._numbers.values()}
