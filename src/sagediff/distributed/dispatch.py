"""Which calls each replica has in flight, and which replica the next call goes to. Pure: no Ray, no clock.

A call is announced here with the vector of its prompt, the router asks which replica it goes to, and its caller reports
its end. A replica's load is counted from that alone, so a call that is cancelled on its way is not counted for ever.
Replicas are numbered in the order in which they appear; a number is never used again.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection

from sagediff.distributed.affinity import Router, RouteReason, Vector

_REGISTERED: dict[str, Dispatcher] = {}


def register(name: str, dispatcher: Dispatcher) -> None:
    """Let routers of this process find the dispatcher by its name."""
    _REGISTERED[name] = dispatcher


def registered(name: str) -> Dispatcher | None:
    """The dispatcher of this process that has this name."""
    return _REGISTERED.get(name)


def unregister(name: str) -> bool:
    """Whether there was one."""
    return _REGISTERED.pop(name, None) is not None


class Dispatcher:
    """Chooses a replica for each call and counts calls in flight. Safe between threads.

    Args:
        router: chooses among replicas by vector and load.
        on_routed: called once per call with the reason for its replica; must be quick.
        on_replicas: called with the numbers of all replicas whenever they change; must be quick.
    """

    def __init__(
        self,
        router: Router,
        on_routed: Callable[[RouteReason], None] = lambda reason: None,
        on_replicas: Callable[[frozenset[int]], None] = lambda numbers: None,
    ) -> None:
        self._router, self._on_routed, self._on_replicas = router, on_routed, on_replicas
        self._lock = threading.RLock()
        self._numbers: dict[str, int] = {}  # Ray's name of each replica -> its number
        self._next_number = 0
        self._vectors: dict[str, Vector | None] = {}  # call -> vector of its prompt
        self._replica_of: dict[str, int] = {}  # call -> number of its replica

    def announce(self, call: str, vector: Vector | None) -> None:
        """A call that is about to be made. `vector` of its prompt, (D,) of unit length; None: any replica will do."""
        with self._lock:
            self._vectors[call] = vector

    def end(self, call: str) -> None:
        """The call has ended, in whatever way. Ending it again does nothing."""
        with self._lock:
            self._vectors.pop(call, None)
            self._replica_of.pop(call, None)

    def set_replicas(self, names: Collection[str]) -> None:
        """These replicas, and no others, take calls now. The router forgets those that are gone."""
        with self._lock:
            gone = self._numbers.keys() - set(names)
            new = [name for name in names if name not in self._numbers]
            for name in gone:
                self._router.remove(self._numbers.pop(name))
            for name in new:
                self._numbers[name] = self._next_number
                self._next_number += 1
            numbers = frozenset(self._numbers.values())
        if gone or new:
            self._on_replicas(numbers)

    def choose(self, call: str, names: Collection[str]) -> str:
        """Which of these replicas, at least one, a call goes to. Asked again, the earlier choice did not take it."""
        with self._lock:
            loads = self.loads()
            candidates = {self._numbers[name]: name for name in names if name in self._numbers}
            earlier = self._replica_of.pop(call, None)
            if earlier is not None and earlier in loads:
                loads[earlier] -= 1
            if call not in self._vectors or not candidates:
                # the call has ended meanwhile, or all replicas are gone: Ray finds that out
                return next(iter(names))
            choice = self._router.route(
                self._vectors[call], {number: loads[number] for number in sorted(candidates)}
            )
            self._replica_of[call] = choice.replica
        if earlier is None:
            self._on_routed(choice.reason)
        return candidates[choice.replica]

    def loads(self) -> dict[int, int]:
        """Calls in flight at each replica."""
        with self._lock:
            sent = Counter(self._replica_of.values())
            return {number: sent[number] for number in self._numbers.values()}

    def number(self, name: str) -> int | None:
        """The number of the replica that has this name in Ray; None once it is gone."""
        with self._lock:
            return self._numbers.get(name)
