"""Ray Serve's router, asking a desk. Of Ray this leans on what `ray.serve.request_router` makes public, which is alpha:
`tests/distributed/test_ray_replicas.py` holds every part of it.

Serve makes the router by itself, in the process that makes the calls, from a copy of this module that it carries about
by value, and hands it nothing but JSON: so this module holds nothing, and the desk is found by name. Only calls from
that process are routed by meaning; others go where Serve finds least to do.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from sagediff.distributed.dispatch import desk_of

log = logging.getLogger(__name__)


class DeskRouter(RequestRouter):  # type: ignore[misc]
    """Sends a call with a keyword argument `call` where the desk says."""

    def initialize_state(self, **state: Any) -> None:
        """Args: state: `desk`, the name of one."""
        self._desk = desk_of(state.get("desk", ""))

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The one that the desk chooses, or all of them where it has no say."""
        if self._desk is None or pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        # else Serve would ask again at once, and again, as long as that one is full
        pending_request.routing_context.should_backoff = True
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        try:
            return [[by_name[self._desk.choose(pending_request.kwargs.get("call", ""), by_name.keys())]]]
        except Exception:  # an error here would end Serve's routing, and the call would wait for ever
            log.exception("a call could not be routed by meaning")
            return [candidate_replicas]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve says who there is."""
        super().update_replicas(replicas)
        self._tell()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A call found out that one has died, before Serve did."""
        super().on_replica_actor_died(replica_id)
        self._tell()

    def _tell(self) -> None:
        if self._desk is not None:
            self._desk.replicas([replica.unique_id for replica in self.curr_replicas])
