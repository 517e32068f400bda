"""Prometheus metrics of a fleet, per replica; those of all replicas together are in `Metrics`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from prometheus_client import Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sagediff.serving.engine.model_thread import WaveReport
from sagediff.serving.metrics import Metrics


class FleetMetrics:
    """A `FleetObserver` that counts. The series of a replica that is gone end.

    Args:
        metrics: of the server; counts every wave too, and its registry takes the metrics made here.
        loads: requests in flight at each replica; called whenever metrics are read.
        reasons: for which a replica can be chosen.
    """

    def __init__(
        self, metrics: Metrics, loads: Callable[[], dict[int, int]], reasons: tuple[str, ...] = ()
    ) -> None:
        self._metrics, registry = metrics, metrics.registry
        self._lock = threading.Lock()
        self._cache_bytes: dict[int, int] = {}
        self._numbers: frozenset[int] = frozenset()
        registry.register(_InFlight(loads))
        replicas = Gauge("sagediff_replicas", "Replicas that take requests", registry=registry)
        replicas.set_function(lambda: len(loads()))
        count = partial(Counter, registry=registry)
        self._rows = count("sagediff_replica_evaluations", "Denoiser rows that a replica ran", ["replica"])
        self._saved = count(
            "sagediff_replica_evaluations_saved",
            "Denoiser rows that sharing left out at a replica",
            ["replica"],
        )
        self._broken = count(
            "sagediff_replica_calls_broken", "Images whose replica died, or was lost, while it made them"
        )
        self._routed = count(
            "sagediff_routed",
            "Images by how their replica was chosen: home, founded, spilled or anywhere",
            ["how"],
        )
        for reason in reasons:
            self._routed.labels(reason)  # there from the start, at 0

    def cache_bytes(self) -> int:
        """Bytes that all trajectory caches held after their replicas' last waves."""
        with self._lock:
            return sum(self._cache_bytes.values())

    def routed(self, reason: str) -> None:
        self._routed.labels(reason).inc()

    def set_replicas(self, numbers: frozenset[int]) -> None:
        """The replicas that there are now."""
        with self._lock:
            gone, self._numbers = self._numbers - numbers, numbers
            for number in gone:
                self._cache_bytes.pop(number, None)
                for counter in (self._rows, self._saved):
                    counter.remove(str(number))
            for number in numbers:
                for counter in (self._rows, self._saved):
                    counter.labels(str(number))

    def wave_done(self, replica: int | None, report: WaveReport, cache_bytes: int) -> None:
        self._metrics.wave_done(report)
        with self._lock:
            if replica not in self._numbers or replica is None:
                return
            self._rows.labels(str(replica)).inc(report.evaluations)
            self._saved.labels(str(replica)).inc(max(0, report.evaluations_independent - report.evaluations))
            self._cache_bytes[replica] = cache_bytes

    def call_broke(self, replica: int | None) -> None:
        self._broken.inc()


class _InFlight(Collector):
    """Counted when read, so that a replica that is gone has no line."""

    def __init__(self, loads: Callable[[], dict[int, int]]) -> None:
        self._loads = loads

    def collect(self) -> list[Metric]:
        family = GaugeMetricFamily(
            "sagediff_replica_in_hand", "Images that wait or run at a replica", labels=["replica"]
        )
        for number, load in sorted(self._loads().items()):
            family.add_metric([str(number)], load)
        return [family]
