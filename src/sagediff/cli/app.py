"""The commands, and what an error looks like: one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import sagediff
from sagediff.cli import options
from sagediff.errors import InputError, SagediffError

# typer stood on the package click, and now brings a click of its own: either way its errors derive from this one
_UsageError: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

app = typer.Typer(
    name="sagediff",
    help="Generate many pictures from text, sharing the early denoising steps of prompts that mean nearly the same.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    pass


@app.command()
def version() -> None:
    """Print the version."""
    print(sagediff.__version__)


@app.command()
def generate(
    prompts: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    model: options.Model = "demo",
    lora: options.Lora = None,
    no_lora: options.NoLora = False,
    out: Annotated[
        Path, typer.Option(help="Folder for pictures, metadata, report and contact sheet.")
    ] = Path("out"),
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
    """Generate one picture for every prompt."""
    from sagediff.cli.generate import GenerateRequest, micro_batch_option, run_generate
    from sagediff.cli.scale import ScaleOptions, pool_options
    from sagediff.cli.settings import chosen_lora, preferred_scheduler, run_settings
    from sagediff.prompts import gather_prompts

    texts = gather_prompts(prompts or [], prompt_file)
    lora = chosen_lora(model, lora, no_lora)
    if lora is None:
        scheduler = scheduler or preferred_scheduler(model, steps)
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


@app.command()
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
    from sagediff.cli.settings import chosen_lora, preferred_scheduler, run_settings
    from sagediff.prompts import gather_prompts

    texts = gather_prompts(prompts or [], prompt_file)
    lora = chosen_lora(model, lora, no_lora)
    if lora is None:
        scheduler = scheduler or preferred_scheduler(model, steps)
    settings = run_settings(
        model=model, steps=steps, guidance=guidance, threshold=threshold, share_ratio=share_ratio,
        shared_guidance=shared_guidance, unguided=unguided, max_group_size=max_group_size,
        scheduler=scheduler, encoder=encoder, lora=lora, policy_file=policy,
    )  # fmt: skip
    run_plan(texts, settings, as_json, None if work is None else ScaleOptions(work, jobs))


@app.command()
def train(
    data: Annotated[
        str,
        typer.Option(
            help="Folder with metadata.jsonl (file_name, text), a `datasets` folder, or a hub name."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the weights, the log and the checkpoints.")],
    model: options.Model = "demo",
    objective: Annotated[
        str, typer.Option(help="'sage', or 'standard': the plain fine-tuning baseline.")
    ] = "sage",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Train all weights, not a LoRA.")] = False,
    lora_layers: Annotated[
        str | None, typer.Option(help="'attention', or 'all' linears and convolutions.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    train_batch_size: Annotated[int | None, typer.Option(help="Pictures a batch, in whole groups.")] = None,
    gradient_accumulation_steps: Annotated[int | None, typer.Option(help="Batches a step.")] = None,
    lr_warmup_steps: Annotated[int | None, typer.Option(help="Steps of the warm-up.")] = None,
    snr_gamma: Annotated[float | None, typer.Option(help="min-SNR-gamma weighting [default: none]")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Decay of the running mean that is saved.")] = None,
    caption_dropout: Annotated[float | None, typer.Option(help="Part trained on the empty prompt.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Least cosine in a training group.")] = None,
    max_group_size: Annotated[int | None, typer.Option(help="Most members of a training group.")] = None,
    branch_range: Annotated[
        tuple[float, float] | None, typer.Option(help="Share ratios that the branch point is drawn from.")
    ] = None,
    pool_size: Annotated[int | None, typer.Option(help="Captions that are grouped at once.")] = None,
    shared_weight: Annotated[float, typer.Option(help="Weight of the shared phase's target.")] = 0.0,
    soft_weight: Annotated[float, typer.Option(help="Weight of the soft target.")] = 0.0,
    branch_weight: Annotated[float, typer.Option(help="Weight of the branch phase.")] = 1.0,
    handover_weight: Annotated[float, typer.Option(help="Weight of the hand-over.")] = 1.0,
    handover_rate: Annotated[
        float, typer.Option(help="Part of the branch examples that are handed over.")
    ] = 0.75,
    rollout_rate: Annotated[
        float, typer.Option(help="Part of the hand-over states that the model itself samples.")
    ] = 1.0,
    resolution: Annotated[
        int | None, typer.Option(help="Side of the pictures [default: the model's]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything drawn.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, fp16 or bf16.")] = None,
    checkpointing_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    checkpoints_total_limit: Annotated[int | None, typer.Option(help="Checkpoints kept.")] = None,
    validation_steps: Annotated[
        int | None, typer.Option(help="Steps between validation pictures [default: only at the end]")
    ] = None,
    validation_guidance: Annotated[
        float | None, typer.Option(help="Guidance scale of validation pictures [default: the pipeline's]")
    ] = None,
    report_to: Annotated[str | None, typer.Option(help="tensorboard, wandb or none.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint, exactly.")
    ] = False,
) -> None:
    """Teach a model to share: train a LoRA on groups of captioned pictures."""
    from sagediff.cli.train import TrainRequest, run_train

    run_train(TrainRequest(model, data, {
        "out": out, "objective": objective, "steps": steps, "rank": 0 if full else rank,
        "lora_layers": lora_layers, "learning_rate": learning_rate, "train_batch_size": train_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps, "lr_warmup_steps": lr_warmup_steps,
        "snr_gamma": snr_gamma, "ema_decay": ema_decay, "caption_dropout": caption_dropout,
        "threshold": threshold, "group_size": None if max_group_size is None else (1, max_group_size),
        "branch_range": branch_range, "pool_size": pool_size, "resolution": resolution, "seed": seed,
        "mixed_precision": mixed_precision, "checkpointing_steps": checkpointing_steps,
        "checkpoints_total_limit": checkpoints_total_limit, "validation_steps": validation_steps,
        "validation_guidance": validation_guidance, "report_to": report_to, "resume": resume,
    }, {
        "shared": shared_weight, "soft": soft_weight, "branch": branch_weight, "handover": handover_weight,
        "handover_rate": handover_rate, "rollout_rate": rollout_rate,
    }))  # fmt: skip


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="Folder for cells, tables and plots.")] = Path("out/bench"),
    model: options.Model = "demo",
    lora: Annotated[
        Path | None,
        typer.Option(help="LoRA after SAGE training [default: the demo's own]", show_default=False),
    ] = None,
    no_lora: options.NoLora = False,
    baseline_lora: Annotated[Path | None, typer.Option(help="LoRA after standard fine-tuning.")] = None,
    prompts: options.PromptFile = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with metadata.jsonl (file_name, text): captions are prompts, pictures real."
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of real pictures to measure against.")
    ] = None,
    captions: Annotated[
        int | None,
        typer.Option(help="Prompts to use [default: all; 256 held-out ones of the demo]", show_default=False),
    ] = None,
    share_ratio: options.Ratios = None,
    threshold: options.Thresholds = None,
    steps: options.StepCounts = None,
    unguided: options.Unguided = None,
    seeds: options.Seeds = None,
    guidance: options.Guidance = None,
    shared_guidance: options.SharedGuidance = None,
    handover_noise: options.BenchHandoverNoise = None,
    max_group_size: options.MaxGroupSize = None,
    policy: options.PolicyFile = None,
    scheduler: options.Scheduler = None,
    encoder: options.Encoder = None,
    features: Annotated[
        str | None,
        typer.Option(help="'inception', or a DINOv2 or CLIP model [default: facebook/dinov2-base]"),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP model of the score [default: openai/clip-vit-base-patch16]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a bench that was stopped.")] = False,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'mps' ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="'auto', float32, float16 or bfloat16.")] = "auto",
) -> None:
    """Compare independent and shared sampling, before and after training, in one table."""
    from sagediff.cli.bench import BenchRequest, run_bench_command
    from sagediff.cli.settings import chosen_lora

    run_bench_command(BenchRequest(
        model, out, chosen_lora(model, lora, no_lora), baseline_lora, prompts, data, reference, captions,
        share_ratio or (), threshold or (), steps or (), unguided or (), seeds or (), shared_guidance, guidance,
        max_group_size, scheduler, encoder, features, clip, resume, device, dtype, handover_noise, policy,
    ))  # fmt: skip


@app.command()
def tune(
    out: Annotated[Path, typer.Option(help="The policy file to write.")] = Path("policy.json"),
    prompts: options.PromptFile = None,
    model: options.Model = "demo",
    lora: options.Lora = None,
    no_lora: options.NoLora = False,
    captions: Annotated[
        int | None, typer.Option(help="Prompts to use [default: all; 128 held-out ones of the demo]")
    ] = None,
    budget: Annotated[
        float, typer.Option(help="Part of independent sampling's quality that may be lost.")
    ] = 0.01,
    metric: Annotated[
        str | None,
        typer.Option(help="'accuracy' (built-in world) or 'clip' [default: accuracy where it can be judged]"),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            "--threshold",
            help="Grid of least cosines, with commas [default: 0,0.2,0.35,0.5,0.65 of the demo; "
            "0.6,0.7,0.8,0.9]",
            show_default=False,
        ),
    ] = None,
    share_ratio: Annotated[
        list[str] | None,
        typer.Option("--share-ratio", help="Grid, with commas [default: 0.1 to 0.8]", show_default=False),
    ] = None,
    families: Annotated[
        str, typer.Option(help="What is searched, with commas: fixed, together, tree.")
    ] = "fixed,together,tree",
    steps: options.Steps = 30,
    guidance: options.Guidance = None,
    shared_guidance: options.SharedGuidance = None,
    unguided: options.EarlyGuidanceOff = None,
    handover_noise: options.HandoverNoise = None,
    max_group_size: options.MaxGroupSize = None,
    scheduler: options.Scheduler = None,
    encoder: options.Encoder = None,
    seeds: options.Seeds = None,
    features: Annotated[str | None, typer.Option(help="As of `bench`.")] = None,
    clip: Annotated[str | None, typer.Option(help="As of `bench`.")] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'mps' ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="'auto', float32, float16 or bfloat16.")] = "auto",
) -> None:
    """Find the sharing that saves most within a quality budget, and write it as a file for --policy.

    Trials are kept beside the file: the same command goes on after a stop.
    """
    from sagediff.cli.settings import chosen_lora, preferred_scheduler, run_settings
    from sagediff.cli.tune import TuneGrid, run_tune, tune_request

    lora = chosen_lora(model, lora, no_lora)
    if lora is None:
        scheduler = scheduler or preferred_scheduler(model, steps)
    settings = run_settings(
        model=model, steps=steps, guidance=guidance, threshold=None, share_ratio=None,
        shared_guidance=shared_guidance, unguided=unguided, max_group_size=max_group_size,
        scheduler=scheduler, encoder=encoder, lora=lora, handover_noise=handover_noise,
    )  # fmt: skip
    grid = TuneGrid(threshold or (), share_ratio or (), families, budget)
    run_tune(tune_request(
        settings, prompts, captions, grid, seeds or (), metric, out, features, clip, device, dtype
    ))  # fmt: skip


@app.command()
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
            "later pictures.",
            show_default=False,
        ),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Most pictures sampled at once [default: 16]", show_default=False)
    ] = None,
    max_queue: Annotated[
        int | None,
        typer.Option(help="Most pictures waiting; more are refused [default: 256]", show_default=False),
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
            help="Let clients of different API keys share; their pictures then tell of each other's prompts.",
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
            "grouping threshold, at least 0.5]. Higher: fewer replays, safer pictures.",
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
    from sagediff.cli.settings import chosen_lora, preferred_scheduler, run_settings

    lora = chosen_lora(model, lora, no_lora)
    if lora is None:
        scheduler = scheduler or preferred_scheduler(model, steps)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for wrong usage or input, 1 for a failure at work."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except typer.Abort:
        return _complain("stopped", 130)
    except _UsageError as error:
        error.show(file=sys.stderr)
        return int(error.exit_code)
    except InputError as error:
        return _complain(str(error), 2)
    except SagediffError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("stopped; what was finished is kept, --resume goes on", 130)
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    print(f"sagediff: {message}", file=sys.stderr)
    return code
