"""Prometheus metrics. Each server has a registry of its own, so that several fit into one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sagediff.serving.engine.model_thread import WaveReport

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Metrics:
    """Metrics of one server.

    Args:
        waiting: length of the queue; called whenever metrics are read.
        cache_bytes: bytes that the trajectory cache holds; called whenever metrics are read.
    """

    def __init__(
        self, waiting: Callable[[], float] = lambda: 0.0, cache_bytes: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.registry = registry = CollectorRegistry()
        count = partial(Counter, registry=registry)
        sizes = partial(Histogram, buckets=_SIZES, registry=registry)
        seconds = partial(Histogram, buckets=_SECONDS, registry=registry)
        self._requests = count("sagediff_images", "Images asked for, by what became of them", ["outcome"])
        self._refused = count("sagediff_refused", "Requests refused, by the reason's code", ["reason"])
        self._rows = count("sagediff_evaluations", "Denoiser rows run")
        self._saved = count("sagediff_evaluations_saved", "Denoiser rows that sharing left out")
        self._waves = sizes("sagediff_wave_size", "Requests in a wave")
        self._groups = sizes("sagediff_group_size", "Requests in a group")
        self._waited = seconds("sagediff_waited_seconds", "From arrival to the wave's begin")
        self._sampling = seconds("sagediff_wave_seconds", "From a wave's begin to its end")
        self._encoding = seconds("sagediff_encode_seconds", "Making files of one answer's images")
        self._answers = seconds(
            "sagediff_request_seconds", "From a request's arrival to its answer's end", ["route"]
        )
        self._looked = count(
            "sagediff_cache_lookups",
            "Requests that looked into the trajectory cache, by whether they replayed",
            ["found"],
        )
        for found in ("hit", "miss"):
            self._looked.labels(found)  # there from the start, at 0
        self._replayed = count(
            "sagediff_cache_evaluations_saved",
            "Denoiser rows that replaying left out; part of those that sharing did",
        )
        held = Gauge("sagediff_cache_bytes", "Bytes that the trajectory cache holds", registry=registry)
        held.set_function(cache_bytes)
        queue = Gauge("sagediff_waiting", "Requests in the queue", registry=registry)
        queue.set_function(waiting)

    def wave_done(self, report: WaveReport) -> None:
        for outcome, count in report.outcomes.items():
            self._requests.labels(outcome).inc(count)
        self._rows.inc(report.evaluations)
        self._saved.inc(max(0, report.evaluations_independent - report.evaluations))
        self._waves.observe(len(report.waited))
        for size in report.group_sizes:
            self._groups.observe(size)
        for seconds in report.waited:
            self._waited.observe(max(0.0, seconds))
        self._sampling.observe(report.seconds)
        self._looked.labels("hit").inc(report.cache_hits)
        self._looked.labels("miss").inc(report.cache_misses)
        self._replayed.inc(report.evaluations_replayed)

    def encoded(self, seconds: float) -> None:
        self._encoding.observe(seconds)

    def answered(self, route: str, seconds: float) -> None:
        """Args: route: one of a fixed few, as each becomes a series that is kept for ever."""
        self._answers.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
