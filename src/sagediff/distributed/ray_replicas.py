"""Replicas on Ray Serve that answer each message with a stream of events, and calls that a dispatcher sends to them.

Ray Serve starts replicas, replaces those that died, scales their number by load, and lets a replica finish its calls
before it is removed. It is used without its proxies: calls come from this process only. Messages are opaque here.
"""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sagediff.distributed.affinity import Vector
from sagediff.distributed.cluster import PoolOptions, last_line
from sagediff.distributed.dispatch import Dispatcher, register, unregister
from sagediff.distributed.maker import made_by, packed
from sagediff.errors import InputError, SagediffError

M = TypeVar("M")
E = TypeVar("E")

log = logging.getLogger(__name__)

_DEPLOYMENT = "replica"


@dataclass(frozen=True)
class Scaling:
    """How many replicas there are.

    Attributes:
        least, most: replicas; equal for a number that never changes.
        target: calls in flight per replica, on average, that scaling aims at.
        up_s, down_s: seconds for which more, or fewer, must have been wanted before some are added or removed.
        look_back_s: seconds over which calls in flight are averaged.

    Raises:
        InputError: a value out of range.
    """

    least: int
    most: int
    target: float = 16.0
    up_s: float = 10.0
    down_s: float = 300.0
    look_back_s: float = 15.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise InputError(
                f"replicas must be from 1 up, and the least not above the most, got {self.least} to {self.most}"
            )
        if self.target <= 0 or self.look_back_s <= 0 or min(self.up_s, self.down_s) < 0:
            raise InputError(
                "autoscaling needs a target and a look back above 0 and delays from 0 up, got "
                f"{self.target}, {self.look_back_s}, {self.up_s} and {self.down_s}"
            )


class RayReplicas(Generic[M, E]):
    """Starts with `open`, ends with `close`.

    Args:
        make: called once in every replica, where it may block until that is ready; returns the function that answers
            a message there. It is pickled, with everything it holds.
        dispatcher: chooses the replica of each call.
        options: resources of each replica.
        max_in_flight: calls that one replica takes at once; more wait in front of it.
        drain_s: seconds that a replica which is removed gets to finish its calls.
    """

    def __init__(
        self,
        make: Callable[[], Callable[[M], AsyncIterator[E]]],
        dispatcher: Dispatcher,
        options: PoolOptions,
        scaling: Scaling,
        *,
        max_in_flight: int = 1024,
        drain_s: float = 60.0,
    ) -> None:
        self._make, self._dispatcher, self._options, self._scaling = make, dispatcher, options, scaling
        self._max_in_flight, self._drain_s = max_in_flight, drain_s
        self._name = f"sagediff-{uuid.uuid4().hex[:8]}"
        self._handle: Any = None

    def open(self) -> None:
        """Start the least number of replicas, and wait until they are ready. Needs Ray connected.

        Raises:
            SagediffError: they could not be started.
        """
        serve, app = self._application()
        serve.start(proxy_location="Disabled")
        try:
            handle = serve.run(app, name=self._name, route_prefix=None)
        except RuntimeError as error:
            reason = self._reason(serve) or last_line(error)
            raise SagediffError(f"the replicas could not be started: {reason}") from error
        self._handle = handle.options(stream=True)

    def call(self, message: M, vector: Vector | None) -> Call[E]:
        """Send a message to the replica that the dispatcher chooses, without waiting.

        Args:
            vector: of the message's prompt, (D,) of unit length; None: any replica will do.
        """
        name = uuid.uuid4().hex
        self._dispatcher.announce(name, vector)
        return Call(self._handle.answer.remote(message, call=name), name, self._dispatcher)

    def loads(self) -> dict[int, int]:
        """Calls in flight at every replica that takes any."""
        return self._dispatcher.loads()

    def close(self) -> None:
        """End all replicas at once; calls in flight break off. Doing it again does nothing."""
        if unregister(self._name):
            if self._handle is not None:
                self._handle.shutdown()
            from ray import serve
            from ray.serve.exceptions import RayServeException

            with suppress(RayServeException):  # Serve has gone already, and they with it
                serve.delete(self._name)

    def _application(self) -> tuple[Any, Any]:
        """Ray Serve, and the application that it runs."""
        from ray import serve
        from ray.serve.config import AutoscalingConfig, RequestRouterConfig

        from sagediff.distributed.ray_router import ServeRouter

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        register(self._name, self._dispatcher)
        scaling, options = self._scaling, self._options
        size: dict[str, Any] = {"num_replicas": scaling.least}
        if scaling.most > scaling.least:
            with warnings.catch_warnings():
                # the interval is to become an environment variable; in the version that we know only the field works
                warnings.simplefilter("ignore", DeprecationWarning)
                growing = AutoscalingConfig(
                    min_replicas=scaling.least, max_replicas=scaling.most, target_ongoing_requests=scaling.target,
                    upscale_delay_s=scaling.up_s, downscale_delay_s=scaling.down_s,
                    look_back_period_s=scaling.look_back_s, metrics_interval_s=scaling.look_back_s / 5,
                )  # fmt: skip
            size = {"autoscaling_config": growing}
        deployment = serve.deployment(
            _Replica
        ).options(
            name=_DEPLOYMENT,
            ray_actor_options={"num_cpus": options.cpus_per_worker, "num_gpus": options.gpus},
            max_ongoing_requests=self._max_in_flight,
            max_constructor_retry_count=2,  # weights that cannot be read will not be readable at the twentieth try
            health_check_period_s=1.0,  # a dead replica is replaced after that
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=self._drain_s,
            request_router_config=RequestRouterConfig(
                request_router_class=ServeRouter, request_router_kwargs={"dispatcher": self._name}
            ),
            **size,
        )
        return serve, deployment.bind(packed(self._make))

    def _reason(self, serve: Any) -> str:
        """Serve's last message about the application, in one line."""
        found = serve.status().applications.get(self._name)
        deployments = [] if found is None else found.deployments.values()
        return " ".join(last_line(Exception(deployment.message)) for deployment in deployments).strip()


class Call(Generic[E]):
    """The events of one message, each with the number of the replica that sent it; None once that replica is gone.

    Must be iterated to its end, or cancelled. Iteration raises the error that broke the call off, most likely because
    the replica died.
    """

    def __init__(self, response: Any, name: str, dispatcher: Dispatcher) -> None:
        self._response, self._name, self._dispatcher = response, name, dispatcher

    async def __aiter__(self) -> AsyncIterator[tuple[int | None, E]]:
        complete = False
        try:
            async for replica, event in self._response:
                yield self._dispatcher.number(replica), event
            complete = True
        finally:
            self._dispatcher.end(self._name)
            if not complete:  # nobody listens any more
                self._response.cancel()

    def cancel(self) -> None:
        """Stop the call: the replica stops its work, and iteration raises an error."""
        self._response.cancel()


class _Replica:
    """What Serve runs in each replica's process."""

    def __init__(self, maker: bytes) -> None:
        from ray import serve

        self._name = serve.get_replica_context().replica_id.unique_id
        self._answer: Callable[[Any], AsyncIterator[Any]] = made_by(maker)

    async def answer(self, message: Any, call: str) -> AsyncIterator[tuple[str, Any]]:
        """The message's events. `call`, its name, is for the router."""
        events = self._answer(message)
        try:
            async for event in events:
                yield self._name, event
        finally:  # at once, not at garbage collection: nobody wants this work any more
            await events.aclose()  # type: ignore[attr-defined]


def quiet_serve() -> None:
    """Have Serve's processes write to Ray's log files and not to our stderr too; call before Ray starts."""
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
