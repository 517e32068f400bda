"""An engine in this process, put together from the settings of a run and those of the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sagediff.distributed.cluster import PoolOptions
from sagediff.errors import InputError
from sagediff.files.lora_files import loras_digest
from sagediff.pipelines.placement import open_pipeline, weights_digest
from sagediff.pipelines.run_settings import RunSettings
from sagediff.plan.sharing import Sharing
from sagediff.prompts.embeddings import named_encoder
from sagediff.serving.config import ServeConfig
from sagediff.serving.engine.model_thread import Engine, WaveReport
from sagediff.serving.engine.reuse import CacheUse
from sagediff.serving.engine.trajectory_cache import TrajectoryCache
from sagediff.serving.engine.wave_runner import ModelSettings


@dataclass(frozen=True)
class ServeRequest:
    """What is served.

    Attributes:
        settings: of the model; its sharing holds where a request names no guidance scale.
        guided: the sharing where it does.
        config: what was named of the server's own settings, None where the environment or the default is to be taken.
    """

    settings: RunSettings
    guided: Sharing
    micro_batch_size: int | None
    config: dict[str, Any]
    pool: PoolOptions | None = None  # as many workers as replicas at most; None: one engine, in this process
    least_replicas: int = 1


def local_engine(
    request: ServeRequest,
    config: ServeConfig,
    max_queue: int,
    observe: Callable[[WaveReport], None],
    on_failed: Callable[[Exception], None],
) -> Engine:
    """An engine of this process, not started."""
    sampling = model_settings(request, config.share, config.share_across_keys)
    sampling = replace(sampling, reuse=cache_use(request, config))
    shares = any(each.share_ratio > 0 for each in (sampling.sharing, sampling.guided))
    policy = replace(config.batch_policy(shares), max_queue=max_queue)
    load = partial(open_pipeline, request.settings.model)
    return Engine(load, sampling, policy, observe=observe, on_failed=on_failed)


def model_settings(request: ServeRequest, share: bool, across_tenants: bool) -> ModelSettings:
    """What the engine needs of the settings."""
    sharing, guided = (
        each if share else replace(each, share_ratio=0.0, rungs=())
        for each in (request.settings.sharing, request.guided)
    )
    sampling = request.settings.sampling
    # loaded once, not for every wave
    encoder = None if sampling.encoder is None else named_encoder(sampling.encoder)[0]
    return ModelSettings(
        sharing, guided, sampling.guidance_scale, encoder, across_tenants, request.micro_batch_size
    )


def cache_use(request: ServeRequest, config: ServeConfig) -> CacheUse | None:
    """The trajectory cache that a `ServeConfig` asks for, as `CacheUse`; None for none.

    Raises:
        InputError: its folder cannot be used.
    """
    most = int(config.cache_mib * 2**20)
    if not most or not config.share:
        return None
    settings, name = request.settings, config.model_name
    if config.cache_dir is not None and settings.model.offload == "sequential":
        raise InputError(
            "--offload sequential leaves no weights to know the model by, which --cache-dir needs; take --offload group"
        )
    try:
        cache = TrajectoryCache(most, config.cache_dir, config.cache_variety)
    except OSError as error:
        raise InputError(f"the cache's folder {config.cache_dir} cannot be used: {error}") from error
    # the middle of a group lies nearer to its members than they to one another: 0.5 where they are 0.35 alike was
    # measured (benchmarks/trajectory_cache.py)
    threshold = config.cache_threshold
    if threshold is None:
        threshold = max(0.5, settings.sharing.threshold)

    def identify(pipe: Any) -> str:
        # in memory it meets no other weights, so only a folder is worth the seconds that hashing takes
        return name if config.cache_dir is None else f"{name} {weights_digest(pipe)}"

    lora = loras_digest(settings.model.loras()) or ""
    return CacheUse(cache, threshold, identify, lora, settings.sampling.encoder or "")
