"""`sagediff serve`: settings filled in as `generate` does, then handed to the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from sagediff.cli import options
from sagediff.cli.early_checks import check_settings
from sagediff.cli.job_options import ReplicaOptions
from sagediff.collector import importing
from sagediff.errors import InputError
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve

try:
    from sagediff.serving.config import ServeConfig, check_steps
except ImportError as error:
    raise InputError(f"serving needs {error.name}: pip install 'sagediff[serve]'") from error

if TYPE_CHECKING:
    GivenServer = Any
else:
    GivenServer = options.given_settings(
        ServeConfig,
        "host port window_ms max_batch max_queue share_across_keys cache_mib cache_threshold cache_dir "
        "cache_variety log_format",
    )


def serve(
    *,
    model: options.Model = ModelOptions(),  # noqa: B008 - frozen, as the others
    sampling: options.Sampling = SamplingOptions(),  # noqa: B008
    sharing: options.SharingOptions = None,
    policy: options.Policy = None,
    server: Annotated[GivenServer | None, options.flattened("Server")] = None,
    no_share: Annotated[bool, options.of("Server", help="Batch requests, but share no steps.")] = False,
    micro_batch: Annotated[
        int | None, options.of("Server", help="Most denoiser rows run at once. [default: all]")
    ] = None,
    replicas: Annotated[ReplicaOptions, options.flattened("Scale")] = ReplicaOptions(),  # noqa: B008
) -> None:
    """Serve the model as an OpenAI-compatible images server. API keys come from SAGEDIFF_API_KEYS, with commas."""
    named = options.named(sharing)
    settings = resolve(model, sampling, named, policy, cautious=True)
    check_settings(settings, "serve")
    # what a client's own guidance scale changes: nothing is then left out that belongs to the model's default
    scale = 1.0 if settings.sampling.guidance_scale is None else settings.sampling.guidance_scale
    steps, encoder = sampling.num_inference_steps, sampling.encoder
    guided = resolve(model, SamplingOptions(steps, scale, encoder), named, policy, cautious=True)
    config = options.named(server) | {"share": False if no_share else None}
    check_steps(ServeConfig.of(**config), steps)
    if micro_batch is not None and micro_batch < 1:
        raise InputError(f"--micro-batch must be at least 1, got {micro_batch}")
    pool, least = replicas.pool(), replicas.least()
    with importing():
        from sagediff.serving.local_engine import ServeRequest
        from sagediff.serving.run_server import run_serve

    run_serve(ServeRequest(settings, guided.sharing, micro_batch, config, pool, least))
