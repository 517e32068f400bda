"""What a training run is: options, checked before anything is loaded. Names as in diffusers' own scripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sagediff.errors import InputError
from sagediff.training.objective import SageWeights

OBJECTIVES = ("sage", "standard")


@dataclass(frozen=True)
class TrainConfig:
    """One run of `sagediff train`.

    Attributes:
        out: folder of the result, the log and the checkpoints.
        objective: "sage" or "standard".
        steps: optimizer steps.
        rank: LoRA rank; 0 trains all of the denoiser's weights.
        lora_layers: "attention" (attention projections) or "all" (every linear and convolution of the blocks).
        learning_rate: peak rate, after a warm-up and before a cosine decay to nothing.
        train_batch_size: images per step and process, before accumulation, in groups; one that does not fit is cut.
        gradient_accumulation_steps: batches per step.
        lr_warmup_steps: steps of the linear warm-up.
        adam_weight_decay, max_grad_norm: as in AdamW; the gradient's norm is cut there.
        snr_gamma: min-SNR-gamma weighting (arXiv 2303.09556); None for none.
        ema_decay: decay of the running mean that is saved; 0 saves the last weights.
        caption_dropout: part of the examples trained on the empty prompt, for classifier-free guidance.
        threshold: least cosine between members of a training group.
        group_size: (least, most) members of a group; the most is drawn anew for each pool.
        branch_range: (least, most) share ratio that the branch point is drawn from.
        pool_size: captions that are grouped at once; as many as a user's own job has give groups like its.
        weights: of the terms of the SAGE objective.
        resolution: side of the images in pixels; None takes the model's own.
        seed: of everything drawn.
        mixed_precision: "no", "fp16" or "bf16".
        checkpointing_steps, checkpoints_total_limit: how often to save, and how many to keep.
        validation_steps: how often images are drawn, independent beside shared; 0 only at the end.
        validation_guidance: guidance scale of those images; None takes the pipeline's own.
        cache_limit: gigabytes that encoded images and prompts may take; beyond it they are encoded anew.
        report_to: "tensorboard", "wandb" or "none".
        resume: go on from the last checkpoint in `out`.

    Raises:
        InputError: a value out of range.
    """

    out: Path
    objective: str = "sage"
    steps: int = 1000
    rank: int = 16
    lora_layers: str = "attention"
    learning_rate: float = 1e-4
    train_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    lr_warmup_steps: int = 50
    adam_weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    snr_gamma: float | None = None
    ema_decay: float = 0.99
    caption_dropout: float = 0.1
    threshold: float = 0.8
    group_size: tuple[int, int] = (1, 8)
    branch_range: tuple[float, float] = (0.2, 0.6)
    pool_size: int = 512
    weights: SageWeights = field(default_factory=SageWeights)
    resolution: int | None = None
    seed: int = 0
    mixed_precision: str = "no"
    checkpointing_steps: int = 250
    checkpoints_total_limit: int = 2
    validation_steps: int = 0
    validation_guidance: float | None = None
    cache_limit: float = 4.0
    report_to: str = "tensorboard"
    resume: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.lora_layers not in ("attention", "all"):
            raise InputError(f"lora_layers must be attention or all, got {self.lora_layers!r}")
        if self.mixed_precision not in ("no", "fp16", "bf16"):
            raise InputError(f"mixed_precision must be no, fp16 or bf16, got {self.mixed_precision!r}")
        if self.report_to not in ("tensorboard", "wandb", "none"):
            raise InputError(f"report_to must be tensorboard, wandb or none, got {self.report_to!r}")
        least = {
            "steps": 1, "rank": 0, "train_batch_size": 1, "gradient_accumulation_steps": 1, "lr_warmup_steps": 0,
            "pool_size": 1, "checkpointing_steps": 1, "checkpoints_total_limit": 1, "validation_steps": 0,
        }  # fmt: skip
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.snr_gamma is not None and not self.snr_gamma > 0:
            raise InputError(f"snr_gamma must be above 0, got {self.snr_gamma}")
        for name, top in (("ema_decay", 1.0), ("caption_dropout", 1.0)):
            if not 0 <= getattr(self, name) < top:
                raise InputError(f"{name} must lie in [0, {top:g}), got {getattr(self, name)}")
        if not -1 <= self.threshold <= 1:
            raise InputError(f"threshold must lie in [-1, 1], got {self.threshold}")
        if not 1 <= self.group_size[0] <= self.group_size[1]:
            raise InputError(f"group_size must be two growing numbers of at least 1, got {self.group_size}")
        if not 0 < self.branch_range[0] <= self.branch_range[1] < 1:
            raise InputError(f"branch_range must be two growing numbers in (0, 1), got {self.branch_range}")

    def record(self) -> dict[str, Any]:
        """What a resumed run must repeat: everything but where to, how often to save and how to report."""
        left_out = {
            "out", "resume", "checkpointing_steps", "checkpoints_total_limit", "validation_steps",
            "validation_guidance", "report_to", "cache_limit",
        }  # fmt: skip
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in left_out
        }

    def sharing(self) -> dict[str, Any]:
        """The sharing that the weights are trained for, saved with them; `generate --lora` warns beyond it."""
        return {
            "objective": self.objective,
            "share_ratio": round(sum(self.branch_range) / 2, 2) if self.objective == "sage" else 0.0,
            "max_share_ratio": self.branch_range[1] if self.objective == "sage" else 0.0,
            "max_group_size": self.group_size[1] if self.objective == "sage" else 1,
            "threshold": self.threshold,
            "steps": self.steps,
        }
