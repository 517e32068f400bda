"""`sagediff serve --ray`: the server's engine in many Ray actors, and a router in front of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sagediff.cli.pipelines import open_pipeline
from sagediff.cli.serve import ServeRequest, local_engine
from sagediff.cli.settings import quiet_libraries
from sagediff.distributed.actors import ActorLink
from sagediff.distributed.cluster import PoolOptions, check_resources, connected
from sagediff.embeddings import embed_prompts, text_encoder

if TYPE_CHECKING:
    from sagediff.serving.config import ServeConfig
    from sagediff.serving.engine import Engine, WaveReport
    from sagediff.serving.fleet import Fleet
    from sagediff.serving.messages import Command, Event
    from sagediff.serving.metrics import Metrics
    from sagediff.serving.replica import Link, Start


@dataclass(frozen=True)
class ReplicaMaker:
    """Makes a replica, in its own process. Travels there; API keys stay behind."""

    request: ServeRequest
    config: ServeConfig
    number: int

    def __call__(self, emit: Callable[[Event], None]) -> Callable[[Command], None]:
        from sagediff.serving.host import Host

        quiet_libraries()
        return Host(self.engine, emit).handle

    def engine(
        self, observe: Callable[[WaveReport], None], on_failed: Callable[[Exception], None]
    ) -> tuple[Engine, Callable[[], int]]:
        """The engine that a server of one process would have, with a cache of its own."""
        # who may come in is decided at the fleet, which knows all replicas' queues
        return local_engine(self.request, self.config, 2**31, observe, on_failed)


@contextmanager
def ray_fleet(
    request: ServeRequest,
    config: ServeConfig,
    metrics: Metrics,
    options: PoolOptions,
    on_failed: Callable[[Exception], None],
    tell: Callable[[str], None],
) -> Iterator[tuple[Fleet, Callable[[], int]]]:
    """A fleet on Ray that is not started yet, and what says how many bytes its caches hold.

    Args:
        tell: told in a sentence if the cluster has less than the replicas ask for.

    Raises:
        InputError: Ray is not installed, cannot be reached, or has not what the replicas ask for.
    """
    from sagediff.serving.affinity import AffinityPolicy, AffinityRouter
    from sagediff.serving.fleet import Fleet
    from sagediff.serving.fleetmetrics import FleetMetrics

    guard = round(config.affinity_guard * config.max_batch)
    threshold = config.affinity_threshold
    if threshold is None:
        threshold = request.settings.policy.threshold
    with connected(options) as ray:
        check_resources(ray, options, tell)
        counts = FleetMetrics(metrics, options.workers, lambda: fleet.loads())
        fleet = Fleet(
            ray_replicas(ray, request, config, options), options.workers,
            AffinityRouter(AffinityPolicy(threshold, guard)),
            max_batch=config.max_batch, max_queue=config.max_queue,
            load_embed=partial(load_embed, request), watch=counts, on_failed=on_failed,
        )  # fmt: skip
        yield fleet, counts.cache_bytes


def ray_replicas(ray: Any, request: ServeRequest, config: ServeConfig, options: PoolOptions) -> Start:
    """What starts a replica of a number as an actor."""

    def start(number: int, on_event: Callable[[Event], None], on_died: Callable[[str], None]) -> Link:
        # a folder is used by one cache at a time
        folder = None if config.cache_dir is None else config.cache_dir / f"replica-{number}"
        own = config.model_copy(update={"api_keys": (), "cache_dir": folder})
        link: ActorLink[Command, Event] = ActorLink(
            ray, ReplicaMaker(request, own, number), options, on_event, on_died
        )
        return link

    return start


def load_embed(request: ServeRequest) -> Callable[[list[str]], Any]:
    """What the fleet routes by: the encoder that replicas group by, here on the CPU, and nothing else of the model."""
    settings = request.settings
    pipe = None
    if settings.encoder is None:
        pipe = open_pipeline(settings.model, settings.scheduler, "cpu", "float32", settings.lora)
    encoder = text_encoder(pipe, settings.encoder)
    del pipe  # the denoiser is the replicas'
    return lambda texts: embed_prompts(texts, encoder=encoder.encode).vectors
