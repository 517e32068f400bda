"""`sagediff serve`: settings filled in as `generate` does, then handed to the server."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from sagediff.cli.settings import RunSettings, quiet_libraries
from sagediff.errors import InputError, SagediffError
from sagediff.pipelines.loading import supported_parts
from sagediff.pipelines.placement import file_digest, open_pipeline, placement, weights_digest
from sagediff.plan.sharing import SharePolicy
from sagediff.prompts.embeddings import named_encoder

if TYPE_CHECKING:
    from sagediff.distributed.cluster import PoolOptions
    from sagediff.serving.config import ServeConfig
    from sagediff.serving.engine.model_thread import Engine, WaveReport
    from sagediff.serving.image_service import ImageService
    from sagediff.serving.metrics import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeRequest:
    """`settings` where a request names no guidance scale, `guided` where it does; `config` holds what was given of the
    server's own settings, None where the environment or the default is to be taken."""

    settings: RunSettings
    guided: RunSettings
    micro_batch_size: int | None
    device: str
    dtype: str
    config: dict[str, Any]
    pool: PoolOptions | None = None  # as many workers as replicas at most; None: one engine, in this process
    least_replicas: int = 1


def run_serve(request: ServeRequest) -> None:
    """Load the model and serve until told to end.

    Raises:
        InputError: a setting that cannot work, the `serve` extra is missing, or the model cannot be loaded.
        SagediffError: the address is taken, or loading failed.
    """
    try:
        from sagediff.serving.config import ServeConfig
        from sagediff.serving.http.server import server_for
        from sagediff.serving.logs import configure_logs
        from sagediff.serving.metrics import Metrics
    except ImportError as error:
        raise InputError(f"serving needs {error.name}: pip install 'sagediff[serve]'") from error
    quiet_libraries()
    settings = request.settings
    path = PurePath(settings.model)
    name = (
        path.name if path.is_absolute() else settings.model
    )  # a folder on this machine is nobody's business
    config = ServeConfig.of(**request.config | {"model_name": name})
    if settings.num_steps > config.max_steps:
        raise InputError(
            f"--steps is {settings.num_steps}, but SAGEDIFF_MAX_STEPS allows {config.max_steps} a request"
        )
    supported_parts(settings.model)  # refused before gigabytes of weights are read
    if request.pool is None:  # else it is the replicas' machines that must have the device
        placement(request.device, request.dtype)
    put_back = configure_logs(config.log_format)
    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    keys = f"{len(config.api_keys)} API keys" if config.api_keys else "no API keys"
    try:
        with ExitStack() as stack:
            metrics = Metrics(lambda: engine.waiting, lambda: cache_bytes())
            engine, cache_bytes = _front(request, config, metrics, failed, stack)
            server = server_for(engine, config, metrics, settings.num_steps)
            log.info("serving %s at http://%s:%d (%s)", config.model_name, config.host, config.port, keys)
            if not config.api_keys and config.host not in ("127.0.0.1", "localhost", "::1"):
                log.warning("anyone who reaches this address may use it; set SAGEDIFF_API_KEYS")
            server.run()
    except SystemExit:  # uvicorn's way of saying that it could not listen; it has said why
        raise SagediffError(f"cannot listen at {config.host}:{config.port}; is the port taken?") from None
    finally:
        put_back()
    for failure in failures:
        if isinstance(failure, SagediffError):
            raise failure
        raise SagediffError(f"the model could not be loaded: {failure}") from failure


def _front(
    request: ServeRequest,
    config: ServeConfig,
    metrics: Metrics,
    failed: Callable[[Exception], None],
    stack: ExitStack,
) -> tuple[ImageService, Callable[[], int]]:
    """What makes the images, not started yet, and what says how many bytes its caches hold.

    Args:
        stack: ends what must be ended with the server.
    """
    if request.pool is not None:
        from sagediff.cli.serve_ray import ray_fleet

        return stack.enter_context(
            ray_fleet(request, config, metrics, request.pool, failed, lambda words: log.warning("%s", words))
        )
    return local_engine(request, config, config.max_queue, metrics.wave_done, failed)


def local_engine(
    request: ServeRequest,
    config: ServeConfig,
    max_queue: int,
    observe: Callable[[WaveReport], None],
    on_failed: Callable[[Exception], None],
) -> tuple[Engine, Callable[[], int]]:
    """An engine of this process, not started, and what says how many bytes its cache holds."""
    from sagediff.serving.engine.model_thread import Engine

    use, settings = cache_use(request, config), request.settings
    sampling = replace(model_settings(request, config.share, config.share_across_keys), reuse=use)
    sharing = any(r.policy.share_ratio > 0 for r in (sampling.recipe, sampling.guided))
    policy = replace(config.batch_policy(sharing), max_queue=max_queue)
    load = partial(
        open_pipeline, settings.model, settings.scheduler, request.device, request.dtype, settings.lora
    )
    engine = Engine(load, sampling, policy, observe=observe, on_failed=on_failed)
    return engine, lambda: 0 if use is None else use.cache.nbytes


def model_settings(request: ServeRequest, share: bool, across_tenants: bool) -> Any:
    """What the engine needs of the settings; its type comes with the `serve` extra."""
    from sagediff.serving.engine.wave_runner import ModelSettings, Recipe

    def recipe(settings: RunSettings) -> Recipe:
        policy: SharePolicy = (
            settings.policy if share else replace(settings.policy, share_ratio=0.0, rungs=())
        )
        return Recipe(policy, settings.handover_noise)

    settings = request.settings
    encoder: Callable[[list[str]], Any] | None = None
    if settings.encoder is not None:
        encoder = named_encoder(settings.encoder)[0]  # loaded once, not for every wave
    return ModelSettings(
        recipe(settings),
        recipe(request.guided),
        settings.guidance_scale,
        encoder,
        across_tenants,
        request.micro_batch_size,
    )


def cache_use(request: ServeRequest, config: Any) -> Any:
    """The trajectory cache that a `ServeConfig` asks for, as `CacheUse`; None for none.

    Raises:
        InputError: its folder cannot be used.
    """
    from sagediff.serving.engine.reuse import CacheUse
    from sagediff.serving.engine.trajectory_cache import TrajectoryCache

    most = int(config.cache_mib * 2**20)
    if not most or not config.share:
        return None
    settings, name = request.settings, config.model_name
    try:
        cache = TrajectoryCache(most, config.cache_dir, config.cache_variety)
    except OSError as error:
        raise InputError(f"the cache's folder {config.cache_dir} cannot be used: {error}") from error
    # the middle of a group lies nearer to its members than they to one another: 0.5 where they are 0.35 alike was
    # measured (benchmarks/trajectory_cache.py)
    threshold = config.cache_threshold
    if threshold is None:
        threshold = max(0.5, settings.policy.threshold)

    def identify(pipe: Any) -> str:
        # in memory it meets no other weights, so only a folder is worth the seconds that hashing takes
        return name if config.cache_dir is None else f"{name} {weights_digest(pipe)}"

    lora = "" if settings.lora is None else file_digest(settings.lora)
    return CacheUse(cache, threshold, identify, lora, settings.encoder or "")
