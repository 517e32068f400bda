"""What `sagediff bench` and `sagediff tune` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagediff.cli import options


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
        typer.Option(help="Folder with metadata.jsonl (file_name, text): captions are prompts, images real."),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Folder of real images to measure against.")] = None,
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
    apart: Annotated[
        float,
        typer.Option(
            help="How far apart the images of equal prompts have to stay, as a part of what two of independent "
            "sampling are."
        ),
    ] = 0.25,
    metric: Annotated[
        str | None,
        typer.Option(help="'accuracy' (built-in world) or 'clip' [default: accuracy where it can be judged]"),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            "--threshold",
            help="Grid of least cosines, with commas [default: -1,0,0.2,0.35,0.5 of the demo, else "
            "0.6,0.7,0.8,0.9; and 0.99 where prompts repeat]",
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
    max_group_size: Annotated[
        list[str] | None,
        typer.Option(
            help="Grid of the most prompts of a group, with commas [default: 8,32]", show_default=False
        ),
    ] = None,
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
    from sagediff.cli.settings import lora_and_scheduler, run_settings
    from sagediff.cli.tune import TuneGrid, run_tune, tune_request

    lora, scheduler = lora_and_scheduler(model, lora, no_lora, scheduler, steps)
    settings = run_settings(
        model=model, steps=steps, guidance=guidance, threshold=None, share_ratio=None,
        shared_guidance=shared_guidance, unguided=unguided, max_group_size=None,
        scheduler=scheduler, encoder=encoder, lora=lora, handover_noise=handover_noise,
    )  # fmt: skip
    grid = TuneGrid(threshold or (), share_ratio or (), families, budget, max_group_size or (), apart)
    run_tune(tune_request(
        settings, prompts, captions, grid, seeds or (), metric, out, features, clip, device, dtype
    ))  # fmt: skip
