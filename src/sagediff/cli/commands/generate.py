"""What `sagediff generate` and `sagediff plan` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagediff.cli import options


def generate(
    prompts: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    model: options.Model = "demo",
    lora: options.Lora = None,
    no_lora: options.NoLora = False,
    out: Annotated[Path, typer.Option(help="Folder for images, metadata, report and contact sheet.")] = Path(
        "out"
    ),
    steps: options.Steps = 30,
    guidance: options.Guidance = None,
    threshold: options.Threshold = None,
    share_ratio: options.ShareRatio = None,
    shared_guidance: options.SharedGuidance = None,
    unguided: options.EarlyGuidanceOff = None,
    handover_noise: options.HandoverNoise = None,
    max_group_size: options.MaxGroupSize = None,
    policy: options.PolicyFile = None,
    seed: Annotated[int, typer.Option(help="Every prompt's seed is derived from it.")] = 0,
    scheduler: options.Scheduler = None,
    encoder: options.Encoder = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    wave_size: Annotated[
        int, typer.Option(help="Most prompts carried at once; whole groups stay together.")
    ] = 64,
    micro_batch: Annotated[
        str | None,
        typer.Option(
            help="Most denoiser rows run at once, or 'auto' to measure what is fastest and fits [default: all]. "
            "Smaller takes less memory.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'mps' ...")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="'auto' (float16 on an accelerator, else float32), float32, float16 or bfloat16."),
    ] = "auto",
    work: options.Work = None,
    jobs: options.Jobs = None,
    ray: options.Ray = None,
    workers: options.Workers = None,
    worker_cpus: options.WorkerCpus = None,
    worker_gpus: options.WorkerGpus = 0.0,
    shard_size: options.ShardSize = None,
) -> None:
    """Generate one image for every prompt."""
    from sagediff.cli.generate import GenerateRequest, micro_batch_option, run_generate
    from sagediff.cli.scale import ScaleOptions, pool_options
    from sagediff.cli.settings import lora_and_scheduler, run_settings
    from sagediff.prompts.prompt_files import gather_prompts

    texts = gather_prompts(prompts or [], prompt_file)
    lora, scheduler = lora_and_scheduler(model, lora, no_lora, scheduler, steps)
    settings = run_settings(
        model=model, steps=steps, guidance=guidance, threshold=threshold, share_ratio=share_ratio,
        shared_guidance=shared_guidance, unguided=unguided, max_group_size=max_group_size,
        scheduler=scheduler, encoder=encoder, lora=lora, handover_noise=handover_noise, policy_file=policy,
    )  # fmt: skip
    run_generate(GenerateRequest(
        texts, settings, out, seed, resume, wave_size, micro_batch_option(micro_batch), device, dtype,
        None if work is None else ScaleOptions(work, jobs), pool_options(ray, workers, worker_cpus, worker_gpus),
        shard_size,
    ))  # fmt: skip


def plan(
    prompts: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    model: options.Model = "demo",
    lora: options.Lora = None,
    no_lora: options.NoLora = False,
    steps: options.Steps = 30,
    guidance: options.Guidance = None,
    threshold: options.Threshold = None,
    share_ratio: options.ShareRatio = None,
    shared_guidance: options.SharedGuidance = None,
    unguided: options.EarlyGuidanceOff = None,
    max_group_size: options.MaxGroupSize = None,
    policy: options.PolicyFile = None,
    scheduler: options.Scheduler = None,
    encoder: options.Encoder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures and groups as JSON.")] = False,
    work: options.Work = None,
    jobs: options.Jobs = None,
) -> None:
    """Say how prompts would be grouped and what that saves; the denoiser is not loaded."""
    from sagediff.cli.plan import run_plan
    from sagediff.cli.scale import ScaleOptions
    from sagediff.cli.settings import lora_and_scheduler, run_settings
    from sagediff.prompts.prompt_files import gather_prompts

    texts = gather_prompts(prompts or [], prompt_file)
    lora, scheduler = lora_and_scheduler(model, lora, no_lora, scheduler, steps)
    settings = run_settings(
        model=model, steps=steps, guidance=guidance, threshold=threshold, share_ratio=share_ratio,
        shared_guidance=shared_guidance, unguided=unguided, max_group_size=max_group_size,
        scheduler=scheduler, encoder=encoder, lora=lora, policy_file=policy,
    )  # fmt: skip
    run_plan(texts, settings, as_json, None if work is None else ScaleOptions(work, jobs))
