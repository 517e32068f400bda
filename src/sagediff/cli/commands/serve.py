"""What `sagediff serve` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sagediff.cli import options


def serve(
    model: options.Model = "demo",
    lora: options.Lora = None,
    no_lora: options.NoLora = False,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen at [default: 127.0.0.1, this machine]", show_default=False),
    ] = None,
    port: Annotated[int | None, typer.Option(help="[default: 8000]", show_default=False)] = None,
    window_ms: Annotated[
        float | None,
        typer.Option(
            help="Milliseconds that a request waits for others to share with [default: 50]. Longer: more sharing, "
            "later images.",
            show_default=False,
        ),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Most images sampled at once [default: 16]", show_default=False)
    ] = None,
    max_queue: Annotated[
        int | None,
        typer.Option(help="Most images waiting; more are refused [default: 256]", show_default=False),
    ] = None,
    no_share: Annotated[
        bool, typer.Option("--no-share", help="Batch requests, but let each take all its steps alone.")
    ] = False,
    log_format: Annotated[
        str | None,
        typer.Option(
            help="Lines on stderr: json, text, or auto, which is text on a terminal only [default: auto]",
            show_default=False,
        ),
    ] = None,
    share_across_keys: Annotated[
        bool,
        typer.Option(
            "--share-across-keys",
            help="Let clients of different API keys share; their images then tell of each other's prompts.",
        ),
    ] = False,
    cache_mib: Annotated[
        float | None,
        typer.Option(
            help="Memory for shared phases that later requests replay, MiB; 0 switches that off [default: 256]",
            show_default=False,
        ),
    ] = None,
    cache_threshold: Annotated[
        float | None,
        typer.Option(
            help="Least cosine between a prompt and the middle of those that a shared phase was run for [default: the "
            "grouping threshold, at least 0.5]. Higher: fewer replays, safer images.",
            show_default=False,
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Folder where they are also kept for the next start.", show_default=False),
    ] = None,
    cache_variety: Annotated[
        int | None,
        typer.Option(
            help="How many of them there should be near a prompt before all requests replay [default: 3]. Higher: "
            "more compositions, fewer replays at first.",
            show_default=False,
        ),
    ] = None,
    steps: options.Steps = 30,
    guidance: options.Guidance = None,
    threshold: options.Threshold = None,
    share_ratio: options.ShareRatio = None,
    shared_guidance: options.SharedGuidance = None,
    unguided: options.EarlyGuidanceOff = None,
    handover_noise: options.HandoverNoise = None,
    max_group_size: options.MaxGroupSize = None,
    policy: options.PolicyFile = None,
    scheduler: options.Scheduler = None,
    encoder: options.Encoder = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Most denoiser rows run at once [default: all].", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'mps' ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="'auto', float32, float16 or bfloat16.")] = "auto",
    ray: options.ServeRay = None,
    replicas: options.Replicas = None,
    replica_cpus: options.ReplicaCpus = None,
    replica_gpus: options.ReplicaGpus = 0.0,
) -> None:
    """Serve the model as an OpenAI-compatible images server. API keys come from SAGEDIFF_API_KEYS, with commas."""
    from sagediff.cli.scale import pool_options, replica_range
    from sagediff.cli.serve import ServeRequest, run_serve
    from sagediff.cli.settings import lora_and_scheduler, run_settings

    lora, scheduler = lora_and_scheduler(model, lora, no_lora, scheduler, steps)
    given: dict[str, Any] = {
        "model": model, "steps": steps, "threshold": threshold, "share_ratio": share_ratio,
        "shared_guidance": shared_guidance, "unguided": unguided, "max_group_size": max_group_size,
        "scheduler": scheduler, "encoder": encoder, "lora": lora, "handover_noise": handover_noise,
        "policy_file": policy,
    }  # fmt: skip
    settings = run_settings(guidance=guidance, **given)
    # what a client's own guidance scale changes: nothing is then left out that belongs to the model's default
    guided = run_settings(
        guidance=1.0 if settings.guidance_scale is None else settings.guidance_scale, **given
    )
    least, most = replica_range(replicas)
    pool = pool_options(ray, None if replicas is None else most, replica_cpus, replica_gpus, "replica")
    run_serve(ServeRequest(settings, guided, micro_batch, device, dtype, {
        "host": host, "port": port, "window_ms": window_ms, "max_batch": max_batch, "max_queue": max_queue,
        "share": False if no_share else None, "share_across_keys": share_across_keys or None,
        "log_format": log_format,
        "cache_mib": cache_mib, "cache_threshold": cache_threshold, "cache_dir": cache_dir,
        "cache_variety": cache_variety,
    }, pool, least))  # fmt: skip
