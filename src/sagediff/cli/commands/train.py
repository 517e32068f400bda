"""What `sagediff train` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagediff.cli import options


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
    train_batch_size: Annotated[int | None, typer.Option(help="Images a batch, in whole groups.")] = None,
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
    resolution: Annotated[int | None, typer.Option(help="Side of the images [default: the model's]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything drawn.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, fp16 or bf16.")] = None,
    checkpointing_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    checkpoints_total_limit: Annotated[int | None, typer.Option(help="Checkpoints kept.")] = None,
    validation_steps: Annotated[
        int | None, typer.Option(help="Steps between validation images [default: only at the end]")
    ] = None,
    validation_guidance: Annotated[
        float | None, typer.Option(help="Guidance scale of validation images [default: the pipeline's]")
    ] = None,
    report_to: Annotated[str | None, typer.Option(help="tensorboard, wandb or none.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint, exactly.")
    ] = False,
) -> None:
    """Teach a model to share: train a LoRA on groups of captioned images."""
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
