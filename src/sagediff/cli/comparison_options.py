"""What `bench` and `tune` take: what is compared or searched, on which prompts, and what looks at the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from cyclopts import Parameter

from sagediff.errors import InputError
from sagediff.options import check, option
from sagediff.pipelines.loading import BUILT_IN
from sagediff.pipelines.run_settings import ModelOptions
from sagediff.prompts.prompt_files import read_prompts

if TYPE_CHECKING:
    from sagediff.evaluation.perception import Perception

_T = TypeVar("_T", int, float)
_DEFAULT_STEPS = (6, 8, 10, 12, 16, 20)


@dataclass(frozen=True)
class MeasuringOptions:
    """Which images are measured, and what looks at them."""

    captions: int | None = option(
        None, "Prompts to use [default: all; of a built-in model's held-out ones 256]."
    )
    seeds: tuple[str, ...] = option((), "Seeds, with commas [default: 0,1,2 in bench, 0 in tune].")
    features: str | None = option(
        None, "'inception', 'efficientnet-lite0', or a DINOv2 or CLIP model [default: facebook/dinov2-base]."
    )
    clip: str | None = option(None, "CLIP model of the score [default: openai/clip-vit-base-patch16].")

    def seeds_or(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """The seeds as numbers.

        Raises:
            InputError: one is no whole number, or there twice.
        """
        seeds = numbers("--seeds", self.seeds, int) or default
        if len(set(seeds)) != len(seeds):
            raise InputError(f"every --seeds must be given once; got {', '.join(map(str, seeds))}")
        return seeds

    def first_of(self, prompts: list[str]) -> list[str]:
        """As many prompts as are wanted."""
        count = self.captions
        if count is not None and not 1 <= count <= len(prompts):
            raise InputError(
                f"--captions must lie in [1, {len(prompts)}], the prompts there are; got {count}"
            )
        return prompts[:count]

    def prompts(self, file: Path | None, model: ModelOptions, held_out: int, instead: str = "") -> list[str]:
        """Those of a file, else so many held-out captions of the built-in model.

        Args:
            instead: what beside a file may name prompts, for the message.

        Raises:
            InputError: no file and another model, or fewer prompts than are wanted.
        """
        if file is not None:
            return self.first_of(read_prompts(file))
        if model.name not in BUILT_IN:
            raise InputError(f"--model of your own needs --prompts FILE{instead}")
        from sagediff.builtin.world_judges import judge_of

        return judge_of(model.name).held_out_captions(held_out if self.captions is None else self.captions)

    def world_judges(self, model: ModelOptions) -> bool:
        """Whether the built-in judge looks at the images: at those of its world, unless networks are named."""
        return model.name in BUILT_IN and self.features is None and self.clip is None

    def perception(self, model: ModelOptions, device: str) -> Perception:
        """What looks at the images."""
        if self.world_judges(model):
            from sagediff.builtin.world_judges import judge_of

            return judge_of(model.name).perception(device)
        from sagediff.evaluation.perception import DEFAULT_CLIP, DEFAULT_FEATURES, NetworkPerception

        return NetworkPerception(self.features or DEFAULT_FEATURES, self.clip or DEFAULT_CLIP, device)


@dataclass(frozen=True)
class BenchOptions:
    """What is compared, with what, and where the table goes; lists as they were given."""

    out: Path = option(Path("out/bench"), "Folder for cells, tables and plots.")
    resume: bool = option(False, "Go on with a bench that was stopped.")
    baseline_lora: Path | None = option(None, "LoRA after standard fine-tuning.")
    data: Path | None = option(
        None, "Folder with metadata.jsonl (file_name, text): captions are prompts, images real."
    )
    reference: Path | None = option(None, "Folder of real images to measure against.")
    steps: tuple[str, ...] = option((), "Step counts, with commas [default: 6,8,10,12,16,20].")
    share_ratio: tuple[str, ...] = option(
        (), "Fractions of the steps to share, with commas [default: the model's own]."
    )
    threshold: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = option(
        (), "Minimum similarities of a group, with commas [default: the model's own]."
    )
    unguided: tuple[str, ...] = option(
        (),
        "Baseline with guidance off early: fractions of the steps, with commas [default: left out].",
    )

    def step_counts(self) -> tuple[int, ...]:
        return numbers("--steps", self.steps, int) or _DEFAULT_STEPS


@dataclass(frozen=True)
class TuneOptions:
    """What is searched, and where the policy goes; lists as they were given."""

    out: Path = option(Path("policy.json"), "The policy file to write.")
    by: Literal["quality", "predictions"] = option(
        "quality",
        "What decides: 'quality' makes images with every policy tried and judges them; 'predictions' asks the model "
        "itself how long its predictions for similar prompts agree: no images and no judge, some hundred evaluations.",
    )
    budget: float | None = option(
        None,
        "What may be lost: by quality the fraction of independent sampling's [default: 0.01]; by predictions the error "
        "of sharing [default: that of the model's own threshold and share ratio].",
    )
    evaluations: int | None = option(
        None,
        "By predictions: most denoiser rows to run, over all seeds [default: 600]. Higher: a surer fit.",
        low=1,
    )
    apart: float | None = option(
        None,
        "By quality: how far apart the images of equal prompts have to stay, as a fraction of what two of independent "
        "sampling are [default: 0.25].",
    )
    confidence: float | None = option(
        None,
        "By quality: how sure it must be that no more is lost, 0.5 to 1. Higher: more prompts are needed, less is "
        "saved [default: 0.8].",
    )
    metric: Literal["accuracy", "clip"] | None = option(
        None, "'accuracy' (built-in models) or 'clip' [default: accuracy where it can be judged]."
    )
    threshold: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = option(
        (),
        "Grid of minimum similarities, with commas [default: -1,0,0.2,0.35,0.5 of the demo, else 0.6,0.7,0.8,0.9; "
        "and 0.99 where prompts repeat and their copies may share].",
    )
    share_ratio: tuple[str, ...] = option(
        (), "Grid, with commas [default: 0.1 to 0.8, by predictions also what lies between]."
    )
    max_group_size: tuple[str, ...] = option(
        (), "Grid of the largest size of a group, with commas [default: 8,32]."
    )
    families: str = option("fixed,together,tree", "What is searched, with commas: fixed, together, tree.")

    def __post_init__(self) -> None:
        check(self)

    def thresholds(self, model: ModelOptions, own: float | None = None) -> tuple[float, ...]:
        """The grid of thresholds; `own` belongs to it unless another was named.

        Raises:
            InputError: one is no number.
        """
        usual = (-1.0, 0.0, 0.2, 0.35, 0.5) if model.name == "demo" else (0.6, 0.7, 0.8, 0.9)
        default = usual if own is None else tuple(sorted({*usual, own}))
        return numbers("--threshold", self.threshold, float) or default


def numbers(name: str, texts: Sequence[str], kind: Callable[[str], _T]) -> tuple[_T, ...]:
    """Values of an option given several times, or once with commas.

    Raises:
        InputError: one is no number of that kind.
    """
    try:
        return tuple(kind(part) for text in texts for part in text.split(","))
    except ValueError:
        whole = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{name} takes {whole}, several with commas; got {', '.join(texts)}") from None
