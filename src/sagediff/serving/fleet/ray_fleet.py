"""`sagediff serve --ray`: the server's engine in many replicas on Ray Serve, and a router in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

from sagediff.distributed.affinity import AffinityPolicy, AffinityRouter, Router, RouteReason
from sagediff.distributed.cluster import PoolOptions, check_resources, connected
from sagediff.distributed.dispatch import Dispatcher
from sagediff.distributed.ray_replicas import RayReplicas, Scaling, quiet_serve
from sagediff.files.claimed_folder import claimed_folder
from sagediff.pipelines.placement import open_pipeline
from sagediff.prompts.embeddings import embed_prompts, text_encoder
from sagediff.serving.config import ServeConfig
from sagediff.serving.engine.model_thread import Engine, WaveReport
from sagediff.serving.fleet.fleet_metrics import FleetMetrics
from sagediff.serving.fleet.messages import Command, Event
from sagediff.serving.fleet.replica_fleet import Fleet
from sagediff.serving.fleet.replica_host import ReplicaHost
from sagediff.serving.local_engine import ServeRequest, local_engine
from sagediff.serving.metrics import Metrics


@dataclass(frozen=True)
class ReplicaMaker:
    """Makes a replica, in its own process. Travels there; API keys stay behind."""

    request: ServeRequest
    config: ServeConfig

    def __call__(self) -> Callable[[Command], AsyncIterator[Event]]:
        return ReplicaHost(self.engine).answer

    def engine(self, observe: Callable[[WaveReport], None], on_failed: Callable[[Exception], None]) -> Engine:
        """The engine that a server of one process would have, with a cache of its own."""
        config = self.config
        if config.cache_dir is not None:
            config = config.model_copy(update={"cache_dir": claimed_folder(config.cache_dir)})
        # who may come in is decided at the fleet, which knows what all replicas have in hand
        return local_engine(self.request, config, 2**31, observe, on_failed)


@contextmanager
def ray_fleet(
    request: ServeRequest,
    config: ServeConfig,
    metrics: Metrics,
    options: PoolOptions,
    on_failed: Callable[[Exception], None],
    tell: Callable[[str], None],
    router: Router | None = None,
) -> Iterator[Fleet]:
    """A fleet on Ray that is not started yet.

    Args:
        options: as many workers as there may be replicas at most; there are `request.least_replicas` at least.
        tell: told in a sentence if the cluster has less than the replicas ask for.
        router: where requests go; by default to the replica that last served similar prompts.

    Raises:
        InputError: Ray is not installed, cannot be reached, or has not what the replicas ask for.
    """
    guard = round(config.affinity_guard * config.max_batch)
    threshold = config.affinity_threshold
    if threshold is None:
        threshold = request.settings.sharing.threshold
    router = AffinityRouter(AffinityPolicy(threshold, guard)) if router is None else router
    target = config.max_batch if config.scale_target is None else config.scale_target
    seconds = config.scale_up_s, config.scale_down_s, config.scale_look_back_s
    scaling = Scaling(request.least_replicas, options.workers, target, *seconds)
    quiet_serve()
    with connected(options, serve=True) as ray:
        check_resources(ray, options, tell)
        counts = FleetMetrics(metrics, lambda: dispatcher.loads(), get_args(RouteReason))
        dispatcher = Dispatcher(router, counts.routed, counts.set_replicas)
        own = config.model_copy(update={"api_keys": ()})
        replicas: RayReplicas[Command, Event] = RayReplicas(
            ReplicaMaker(request, own), dispatcher, options, scaling,
            # what the fleet lets in never fills a replica, so that nothing waits where nobody sees it
            max_in_flight=config.max_queue * options.workers + guard, drain_s=config.drain_s,
        )  # fmt: skip
        fleet = Fleet(
            replicas, max_batch=config.max_batch, max_queue=config.max_queue,
            load_embed=partial(load_embed, request), watch=counts, on_failed=on_failed,
        )  # fmt: skip
        try:
            yield fleet
        finally:
            replicas.close()  # also where the server never came to start or stop the fleet


def load_embed(request: ServeRequest) -> Callable[[list[str]], Any]:
    """What the fleet routes by: the encoder that replicas group by, here on the CPU, and nothing else of the model."""
    settings = request.settings
    pipe = None
    if settings.sampling.encoder is None:
        # how the denoiser runs on the replicas' devices, this one may not be able to do
        model = replace(settings.model, quantize=None, offload=None, cache=None, compile=False)
        pipe = open_pipeline(replace(model, device="cpu", dtype="float32"))
    encoder = text_encoder(pipe, settings.sampling.encoder)
    del pipe  # the denoiser is the replicas'
    return lambda texts: embed_prompts(texts, encoder=encoder.encode).vectors
