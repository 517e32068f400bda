"""What Prometheus reads of a fleet, beside what `Metrics` has of all replicas together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

from prometheus_client import Counter, Gauge

from sagediff.serving.affinity import How
from sagediff.serving.engine import WaveReport
from sagediff.serving.metrics import Metrics


class FleetMetrics:
    """A `FleetWatch` that counts.

    Args:
        metrics: of the server; gets every wave too, and its registry what is counted here.
        replicas: how many there are, numbered from 0.
        loads: asked for the requests in hand of each whenever metrics are read.
    """

    def __init__(self, metrics: Metrics, replicas: int, loads: Callable[[], dict[int, int]]) -> None:
        self._metrics, registry = metrics, metrics.registry
        self._cache_bytes: defaultdict[int, int] = defaultdict(int)
        in_hand = Gauge(
            "sagediff_replica_in_hand",
            "Pictures that wait or run at a replica",
            ["replica"],
            registry=registry,
        )
        self._rows = Counter(
            "sagediff_replica_evaluations", "Denoiser rows that a replica ran", ["replica"], registry=registry
        )
        self._saved = Counter(
            "sagediff_replica_evaluations_saved",
            "Denoiser rows that sharing left out at a replica",
            ["replica"],
            registry=registry,
        )
        self._lost = Counter(
            "sagediff_replica_deaths", "Times that a replica died", ["replica"], registry=registry
        )
        self._routed = Counter(
            "sagediff_routed",
            "Pictures by how their replica was chosen: home, founded, spilled or anywhere",
            ["how"],
            registry=registry,
        )
        for number in range(replicas):
            in_hand.labels(str(number)).set_function(partial(_load, loads, number))
            for counter in (self._rows, self._saved, self._lost):
                counter.labels(str(number))  # there from the start, at 0
        for how in ("home", "founded", "spilled", "anywhere"):
            self._routed.labels(how)

    def cache_bytes(self) -> int:
        """What all trajectory caches held after their replicas' last waves."""
        return sum(self._cache_bytes.values())

    def routed(self, how: How) -> None:
        self._routed.labels(how).inc()

    def waved(self, replica: int, report: WaveReport, cache_bytes: int) -> None:
        self._metrics.wave_done(report)
        self._rows.labels(str(replica)).inc(report.evaluations)
        self._saved.labels(str(replica)).inc(max(0, report.evaluations_independent - report.evaluations))
        self._cache_bytes[replica] = cache_bytes

    def lost(self, replica: int) -> None:
        self._lost.labels(str(replica)).inc()
        self._cache_bytes[replica] = 0


def _load(loads: Callable[[], dict[int, int]], replica: int) -> float:
    return loads().get(replica, 0)
