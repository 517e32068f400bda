"""`run_serve`: load the model, here or in replicas, and serve it over HTTP until told to end."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import PurePath

from sagediff.errors import SagediffError
from sagediff.files.claim import claimed_output
from sagediff.pipelines.loading import check_makes_images
from sagediff.pipelines.placement import working_device
from sagediff.serving.config import ServeConfig, check_steps
from sagediff.serving.fleet.ray_fleet import ray_fleet
from sagediff.serving.http.server import server_for
from sagediff.serving.image_service import ImageService
from sagediff.serving.local_engine import ServeRequest, local_engine
from sagediff.serving.logs import configured_logs
from sagediff.serving.metrics import Metrics

log = logging.getLogger(__name__)


def run_serve(request: ServeRequest) -> None:
    """Load the model and serve until told to end.

    Raises:
        InputError: a setting that cannot work, or the model cannot be loaded.
        SagediffError: the address is taken, or loading failed.
    """
    settings = request.settings
    path = PurePath(settings.model.name)
    # clients need not know where a folder lies on this machine
    name = path.name if path.is_absolute() else settings.model.name
    config = ServeConfig.of(**request.config | {"model_name": name})
    steps = settings.sampling.num_inference_steps
    check_steps(config, steps)
    check_makes_images(settings.model.source, "serve")  # refused before gigabytes of weights are read
    if request.pool is None:  # else it is the replicas' machines that must have the device
        working_device(settings.model.device)
    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    keys = f"{len(config.api_keys)} API keys" if config.api_keys else "no API keys"
    try:
        with configured_logs(config.log_format), ExitStack() as stack:
            metrics = Metrics(lambda: engine.waiting, lambda: engine.cache_bytes)
            engine: ImageService
            if request.pool is None:
                if config.cache_dir is not None:  # replicas claim folders of their own below it
                    stack.enter_context(claimed_output(config.cache_dir, "--cache-dir", 0o700))
                engine = local_engine(request, config, config.max_queue, metrics.wave_done, failed)
            else:
                fleet = ray_fleet(request, config, metrics, request.pool, failed, log.warning)
                engine = stack.enter_context(fleet)
            server = server_for(engine, config, metrics, steps)
            log.info("serving %s at http://%s:%d (%s)", config.model_name, config.host, config.port, keys)
            if config.share and (note := settings.note()):
                log.warning("%s", note)
            if not config.api_keys and config.host not in ("127.0.0.1", "localhost", "::1"):
                log.warning("anyone who reaches this address may use it; set SAGEDIFF_API_KEYS")
            server.run()
    except SystemExit:  # uvicorn's way of saying that it could not listen; it has said why
        raise SagediffError(f"cannot listen at {config.host}:{config.port}; is the port taken?") from None
    for failure in failures:
        if isinstance(failure, SagediffError):
            raise failure
        raise SagediffError(f"the model could not be loaded: {failure}") from failure
