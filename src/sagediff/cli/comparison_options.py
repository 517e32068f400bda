"""What `bench` and `tune` take: what is compared or searched, on which prompts, and what looks at the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from cyclopts import Parameter

from sagediff.cli.options import GROUPS
from sagediff.errors import InputError
from sagediff.evaluation.search import Family, Search
from sagediff.options import check, option
from sagediff.pipelines.model_source import BUILT_IN
from sagediff.pipelines.run_settings import ModelOptions, RunSettings
from sagediff.prompts.image_list import prompt_texts

if TYPE_CHECKING:
    from sagediff.evaluation.perception import Perception

_T = TypeVar("_T", int, float)
_Value = TypeVar("_Value")
_Output = Annotated[_Value, Parameter(group=GROUPS["Output"])]
_DEFAULT_STEPS = (6, 8, 10, 12, 16, 20)


@dataclass(frozen=True)
class MeasuringOptions:
    """Which images are measured, and what looks at them."""

    prompt_column: str | None = option(None, "Column of the prompts. [default: `prompt`, or one like it]")
    captions: int | None = option(
        None, "Prompts to use. [default: all; of a built-in model's own 256]", low=1
    )
    seeds: tuple[str, ...] = option((), "Seeds, with commas. [default: 0,1,2 in bench, 0 in tune]")
    features: str | None = option(None, "Network of the features, by name. [default: facebook/dinov2-base]")
    clip: str | None = option(None, "CLIP model of the score. [default: openai/clip-vit-base-patch16]")

    def __post_init__(self) -> None:
        check(self)

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

    def named_prompts(self, file: Path | None, model: ModelOptions, instead: str = "") -> list[str] | None:
        """Those of a file; None without one, for `world_prompts`.

        Args:
            instead: what beside a file may name prompts, for the message.

        Raises:
            InputError: no file and a model of the user's own, or fewer prompts than are wanted.
        """
        if file is not None:
            return self.first_of(prompt_texts(file, self.prompt_column))
        if model.name not in BUILT_IN:
            raise InputError(f"--model of your own needs --prompts FILE{instead}")
        return None

    def world_prompts(self, model: ModelOptions, held_out: int) -> list[str]:
        """So many held-out captions of the built-in model, unless --captions says another number."""
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

    out: _Output[Path] = option(Path("out/bench"), "Folder for cells, tables and plots.")
    resume: _Output[bool] = option(False, "Go on with a bench that was stopped.")
    baseline_lora: Path | None = option(None, "LoRA after standard fine-tuning. [default: none]")
    data: Path | None = option(
        None, "Folder with metadata.jsonl, of prompts and real images. [default: none]"
    )
    reference: Path | None = option(None, "Folder of real images to measure against. [default: none]")
    steps: tuple[str, ...] = option((), "Step counts, with commas. [default: 6,8,10,12,16,20]")
    share_ratio: tuple[str, ...] = option(
        (), "Fractions of the steps to share, with commas. [default: the model's own]"
    )
    threshold: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = option(
        (), "Minimum similarities, with commas. [default: the model's own]"
    )
    unguided: tuple[str, ...] = option(
        (),
        "Baselines without early guidance: fractions of the steps. [default: none]",
    )

    def step_counts(self) -> tuple[int, ...]:
        return numbers("--steps", self.steps, int) or _DEFAULT_STEPS


@dataclass(frozen=True)
class TuneOptions:
    """What is searched, and where the policy goes; lists as they were given."""

    out: _Output[Path] = option(Path("policy.json"), "The policy file to write.")
    by: Literal["quality", "predictions"] = option(
        "quality",
        "'predictions' takes no images and no judge.",
    )
    budget: float | None = option(
        None,
        "Quality, or error of predictions, to lose. [default: 0.01; the model's]",
    )
    evaluations: int | None = option(None, "By predictions: most denoiser rows to run. [default: 600]", low=1)
    apart: float | None = option(
        None,
        "How unlike images of a prompt stay; 1: as of two seeds. [default: 0.25]",
    )
    confidence: float | None = option(
        None,
        "How sure that must be, 0.5 to 1. Higher: more prompts. [default: 0.8]",
    )
    metric: Literal["accuracy", "clip"] | None = option(
        None, "What is quality. [default: accuracy for a built-in model, else clip]"
    )
    threshold: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = option(
        (),
        "Thresholds to try. [default: 0.6,0.7,0.8,0.9, lower for demo]",
    )
    share_ratio: tuple[str, ...] = option((), "Share ratios to try. [default: 0.1,0.2 to 0.8]")
    max_group_size: tuple[str, ...] = option((), "Largest sizes of a group to try. [default: 8,32]")
    families: str = option("fixed,together,tree", "Kinds of plan to try.")

    def __post_init__(self) -> None:
        check(self)

    def search(self, settings: RunSettings, further: tuple[float, ...] = ()) -> Search:
        """What is searched.

        By predictions the model's own split is tried too, and share ratios between, as it costs nothing.

        Args:
            further: thresholds beside those that are tried where none are named.

        Raises:
            InputError: a value out of range.
        """
        own, demo = settings.sharing, settings.model.name == "demo"
        thresholds: tuple[float, ...] = (-1.0, 0.0, 0.2, 0.35, 0.5) if demo else (0.6, 0.7, 0.8, 0.9)
        ratios = tuple(k / 10 for k in range(1, 9))
        sizes: tuple[int, ...] = (8, 32)
        if self.by == "predictions":
            further = (*further, own.threshold)
            ratios = tuple(sorted({*(k / 20 for k in range(1, 17)), own.share_ratio} - {0.0}))
            sizes = tuple(sorted({*sizes, own.max_group_size} - {1}))
        given: dict[str, Any] = {"budget": self.budget, "apart": self.apart, "confidence": self.confidence}
        if self.by == "predictions":
            given["budget"] = None  # of another kind
        return Search(
            own,
            numbers("--threshold", self.threshold, float) or tuple(sorted({*thresholds, *further})),
            numbers("--share-ratio", self.share_ratio, float) or ratios,
            families=cast("tuple[Family, ...]", tuple(self.families.split(","))),  # Search checks them
            sizes=numbers("--max-group-size", self.max_group_size, int) or sizes,
            **{name: value for name, value in given.items() if value is not None},
        )

    def check_way(
        self, settings: RunSettings, measuring: MeasuringOptions, prompts: Sequence[str] | None
    ) -> None:
        """Options go with the way to tune.

        Args:
            prompts: None for the built-in model's captions.

        Raises:
            InputError: an option of the other way; by predictions, copies that are to share.
        """
        if self.by == "quality":
            if self.evaluations is not None:
                raise InputError("--evaluations bounds --by predictions; name that, or leave it out")
            return
        judging = {
            "--metric": self.metric,
            "--apart": self.apart,
            "--confidence": self.confidence,
            "--features": measuring.features,
            "--clip": measuring.clip,
        }
        if given := [name for name, value in judging.items() if value is not None]:
            raise InputError(
                f"{', '.join(given)} is for judging images, of which --by predictions makes none; leave it out, or "
                f"tune --by quality"
            )
        if self.budget is not None and not 0 <= self.budget < math.inf:
            raise InputError(f"--budget must be at least 0, got {self.budget}")
        if settings.sharing.repeats_may_share and len(set(prompts or ())) < len(prompts or ()):
            raise InputError(
                "some prompts repeat, and copies that share (--repeats share) have equal predictions, which cannot "
                "tell whether their images stay apart: tune --by quality, or leave copies separate"
            )


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
