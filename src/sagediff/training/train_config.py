"""What a training run is: options, checked before anything is loaded. Names as in diffusers' own scripts."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sagediff.errors import InputError
from sagediff.options import OptionError, check, option
from sagediff.plan.sharing import Sharing


@dataclass(frozen=True)
class SageWeights:
    """Weights of the terms of the SAGE objective; 0 leaves a term out.

    The defaults are what measured best (docs/training.md): both targets of the shared phase are left out, which is
    then the model's own, while every hand-over is sampled from it.
    """

    shared: float = option(
        0.0,
        "Weight, shared phase: the target of the mean latent.",
        low=0,
        flag="shared-weight",
    )
    soft: float = option(
        0.0,
        "Weight, shared phase: the frozen model's mean prediction.",
        low=0,
        flag="soft-weight",
    )
    branch: float = option(1.0, "Weight, branch phase: the usual objective.", low=0, flag="branch-weight")
    handover: float = option(
        1.0,
        "Weight, branch phase: from the group's state to the prompt.",
        low=0,
        flag="handover-weight",
    )
    handover_rate: float = option(
        0.75,
        "Fraction of branch examples that are hand-over states.",
        low=0,
        high=1,
    )
    rollout_rate: float = option(
        1.0,
        "Fraction of hand-over states that the model samples.",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
        check(self)


WARMUP = 50  # steps, where a run is long enough


@dataclass(frozen=True)
class TrainConfig:
    """One run of `sagediff train`; what each option does is its `help`.

    Raises:
        InputError: a value of another type or out of range.
    """

    out: Path = option(MISSING, "Folder for the weights, the log and the checkpoints.")
    objective: str = option(
        "sage", "'sage', or 'standard': the plain fine-tuning baseline.", choices=("sage", "standard")
    )
    steps: int = option(1000, "Optimizer steps.", low=1)
    rank: int = option(16, "Rank of the LoRA; 0 trains all of the denoiser's weights.", low=0)
    lora_layers: str = option(
        "attention",
        "'attention', or 'all' layers of the blocks.",
        choices=("attention", "all"),
    )
    learning_rate: float = option(1e-4, "Peak learning rate; then a cosine decay.", above=0)
    train_batch_size: int = option(
        16,
        "Images per batch and process, in whole groups.",
        low=1,
    )
    gradient_accumulation_steps: int = option(1, "Batches per step.", low=1)
    lr_warmup_steps: int | None = option(
        None, f"Steps of the warm-up. [default: {WARMUP}, but at most a quarter of all]", low=0
    )
    adam_weight_decay: float = option(1e-2, "Weight decay of AdamW.", flag=False)
    max_grad_norm: float = option(1.0, "Norm that the gradient is cut to.", flag=False)
    snr_gamma: float | None = option(None, "Gamma of min-SNR-gamma weighting. [default: none]", above=0)
    ema_decay: float = option(0.99, "Decay of the saved mean; 0: the last weights.", low=0, below=1)
    caption_dropout: float = option(
        0.1,
        "Fraction of the examples with no prompt, for guidance.",
        low=0,
        below=1,
    )
    threshold: float | None = option(
        None,
        "Minimum similarity in a group. [default: the model's own, else 0.8]",
        low=-1,
        high=1,
    )
    group_size: tuple[int, int] = option(
        (1, 8),
        "Range of the most members of a group: the greatest in the first pool, one less in each that follows.",
        flag=False,
    )
    branch_range: tuple[float, float] = option((0.2, 0.6), "Range of the share ratios trained for.")
    pool_size: int = option(512, "Captions grouped at once; best as many as your jobs have.", low=1)
    weights: SageWeights = option(SageWeights(), "Weights of the terms of the SAGE objective.", flag=False)
    resolution: int | None = option(None, "Side of the images in pixels. [default: the model's own]", low=1)
    schedule_steps: int | None = option(
        None,
        "Train only on the timesteps of a run of so many steps: for few-step models. [default: all timesteps]",
        low=1,
    )
    seed: int = option(0, "Seed of everything drawn.", low=0, high=2**63 - 1)
    mixed_precision: str = option("no", "no, fp16 or bf16.", choices=("no", "fp16", "bf16"))
    checkpointing_steps: int = option(250, "Steps between checkpoints.", low=1)
    checkpoints_total_limit: int = option(2, "Checkpoints kept.", low=1)
    validation_steps: int = option(
        0,
        "Steps between validation images; 0: at the end only.",
        low=0,
    )
    validation_guidance: float | None = option(
        None, "Guidance of validation images. [default: the pipeline's]", low=0
    )
    cache_limit: float = option(
        4.0,
        "Gigabytes that encoded images and prompts may take; beyond it they are encoded anew.",
        flag=False,
    )
    report_to: str = option(
        "tensorboard", "tensorboard, wandb or none.", choices=("tensorboard", "wandb", "none")
    )
    resume: bool = option(False, "Go on from the last checkpoint in --out, exactly.")

    def __post_init__(self) -> None:
        check(self)
        if not 1 <= self.group_size[0] <= self.group_size[1]:
            raise InputError(f"group_size must be two growing numbers of at least 1, got {self.group_size}")
        if not 0 < self.branch_range[0] <= self.branch_range[1] < 1:
            raise InputError(f"branch_range must be two growing numbers in (0, 1), got {self.branch_range}")
        if self.lr_warmup_steps is not None and self.lr_warmup_steps >= self.steps:
            raise OptionError(
                "lr_warmup_steps",
                "must be below the number of steps, or the learning rate never reaches its peak; got "
                f"{self.lr_warmup_steps} of {self.steps}",
            )
        if self.objective == "sage":
            self._check_sage()

    def _check_sage(self) -> None:
        weights = self.weights
        if not (
            weights.shared or weights.soft or weights.branch or (weights.handover and weights.handover_rate)
        ):
            raise InputError("the weights of all terms are 0, so nothing would be trained; leave one above 0")
        for name, value in (
            ("max_group_size", self.group_size[1]),
            ("train_batch_size", self.train_batch_size),
        ):
            if value < 2:
                raise OptionError(
                    name,
                    f"must be at least 2, as sharing is learned from groups of two or more; got {value}. For plain "
                    "fine-tuning take the objective 'standard'",
                )

    def with_threshold(self, own: float) -> TrainConfig:
        """Itself, with a model's own threshold where none was named."""
        return self if self.threshold is not None else replace(self, threshold=own)

    @property
    def grouped_at(self) -> float:
        """The threshold, with the default of sharing where none was named."""
        return Sharing().threshold if self.threshold is None else self.threshold

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up, with the default filled in."""
        return min(WARMUP, self.steps // 4) if self.lr_warmup_steps is None else self.lr_warmup_steps

    def shared_as(self) -> Sharing:
        """The sharing in the middle of what the weights are trained for."""
        ratio = sum(self.branch_range) / 2
        return Sharing(self.grouped_at, ratio, max(2, self.group_size[1]))

    def record(self) -> dict[str, Any]:
        """What a resumed run must repeat: everything but where to, how often to save and how to report."""
        left_out = {
            "out", "resume", "checkpointing_steps", "checkpoints_total_limit", "validation_steps",
            "validation_guidance", "report_to", "cache_limit",
        }  # fmt: skip
        filled = {"threshold": self.grouped_at, "lr_warmup_steps": self.warmup_steps}
        found = {k: v for k, v in asdict(self).items() if k not in left_out} | filled
        return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}

    def sharing(self, largest_group: int | None = None) -> dict[str, Any]:
        """The sharing that the weights are trained for, saved with them; `generate --lora` warns beyond it.

        Args:
            largest_group: members of the largest group that was trained on, where that is known. Who saw none of two
                or more was not trained to share, whatever was meant.
        """
        largest = self.group_size[1] if largest_group is None else min(largest_group, self.group_size[1])
        shares = self.objective == "sage" and largest > 1
        return {
            "objective": self.objective,
            "share_ratio": round(sum(self.branch_range) / 2, 2) if shares else 0.0,
            "max_share_ratio": self.branch_range[1] if shares else 0.0,
            "max_group_size": largest if shares else 1,
            "threshold": self.grouped_at,
            "steps": self.steps,
        }
