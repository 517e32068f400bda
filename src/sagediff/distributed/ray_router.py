"""Ray Serve's router, which asks the dispatcher. It leans on `ray.serve.request_router`, which is public but alpha:
`tests/distributed/test_ray_replicas.py` tests every part of it that is used here.

Serve makes the router itself, in the process that makes the calls, from a pickled copy of this module, and passes it
nothing but JSON: so this module holds no state, and the dispatcher is found by name. Only calls from that process are
dispatched; others go to the replica that Serve finds least busy.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from sagediff.distributed.dispatch import registered

log = logging.getLogger(__name__)


class ServeRouter(RequestRouter):  # type: ignore[misc]
    """Sends a call with a keyword argument `call` to the replica that the dispatcher chooses."""

    def initialize_state(self, **state: Any) -> None:
        """Args: state: `dispatcher`, the name of one."""
        self._dispatcher = registered(state.get("dispatcher", ""))

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The dispatcher's choice, or all candidates where there is no dispatcher."""
        if self._dispatcher is None or pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        # else Serve would ask again at once, and again, as long as that one is full
        pending_request.routing_context.should_backoff = True
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        try:
            return [
                [by_name[self._dispatcher.choose(pending_request.kwargs.get("call", ""), by_name.keys())]]
            ]
        except Exception:  # an error here would end Serve's routing, and the call would wait for ever
            log.exception("a call could not be dispatched; Ray Serve chooses its replica")
            return [candidate_replicas]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Serve with all replicas that there are."""
        super().update_replicas(replicas)
        self._pass_on()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Called when a call found a replica dead before Serve did."""
        super().on_replica_actor_died(replica_id)
        self._pass_on()

    def _pass_on(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.set_replicas([replica.unique_id for replica in self.curr_replicas])
