"""What a bench is asked for, checked before torch is imported: settings, prompts and files of real images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sagediff.cli.comparison_options import BenchOptions, MeasuringOptions, numbers
from sagediff.errors import InputError
from sagediff.evaluation.grid import Arm, Grid, Weights
from sagediff.files.imagefolder import list_images, read_imagefolder
from sagediff.pipelines.run_settings import ModelOptions, RunSettings

_DEFAULT_SEEDS = (0, 1, 2)
_HELD_OUT = 256  # captions of a built-in model


@dataclass(frozen=True)
class Material:
    """What is sampled and what it is compared with.

    Attributes:
        prompts: one image each.
        real: files of real images; None where there are none, or those of the built-in world.
        paired: whether file i shows prompt i.
    """

    prompts: list[str]
    real: list[Path] | None
    paired: bool


Arms = Mapping[Weights, Mapping[int, RunSettings]]
"""For each set of weights, "base" first, how it is sampled with so many steps."""


@dataclass(frozen=True)
class BenchInputs:
    """All of a bench but the models.

    Attributes:
        arms: each with the LoRA that makes its weights, and the sharing of its settings but for the lists in the grid.
        prompts: those named; None for held-out captions of the built-in model, which are made with its world.
        real, paired: as in `Material`.
    """

    arms: Arms
    grid: Grid
    seeds: tuple[int, ...]
    prompts: list[str] | None
    real: list[Path] | None
    paired: bool

    @classmethod
    def of(
        cls, arms: Arms, options: BenchOptions, measuring: MeasuringOptions, prompts: Path | None
    ) -> BenchInputs:
        """From the command's options.

        Args:
            prompts: file of prompts; None for the data's captions, or the built-in model's.

        Raises:
            InputError: a value out of range, or a file that is not there.
        """
        if prompts is not None and options.data is not None:
            raise InputError("give --prompts or --data, not both")
        grid, seeds = _grid(arms, options), measuring.seeds_or(_DEFAULT_SEEDS)
        real = None if options.reference is None else list_images(options.reference)
        if options.data is not None:
            folder = read_imagefolder(options.data)
            captions = measuring.first_of(folder.captions)
            return cls(arms, grid, seeds, captions, real or folder.files[: len(captions)], real is None)
        texts = measuring.named_prompts(
            prompts, model_of(arms, "base"), ", or --data FOLDER with metadata.jsonl"
        )
        return cls(arms, grid, seeds, texts, real, False)

    def material(self, measuring: MeasuringOptions) -> Material:
        """With the built-in model's captions where no prompts were named."""
        prompts = self.prompts
        if prompts is None:
            prompts = measuring.world_prompts(model_of(self.arms, "base"), _HELD_OUT)
        return Material(prompts, self.real, self.paired)


def model_of(arms: Arms, weights: Weights) -> ModelOptions:
    return next(iter(arms[weights].values())).model


def _grid(arms: Arms, options: BenchOptions) -> Grid:
    ratios = numbers("--share-ratio", options.share_ratio, float)
    thresholds = numbers("--threshold", options.threshold, float)

    def arm(by_steps: Mapping[int, RunSettings]) -> Arm:
        settings = next(iter(by_steps.values()))
        sharing = settings.sharing
        return Arm(
            # who names either gets a fixed split, as elsewhere
            replace(sharing, rungs=()) if ratios or thresholds else sharing,
            ratios or ((sharing.share_ratio,) if sharing.share_ratio else ()),
            thresholds or (sharing.threshold,),
            settings.sampling.guidance_scale,
            {steps: each.model.scheduler for steps, each in by_steps.items()},
        )

    found = {weights: arm(by_steps) for weights, by_steps in arms.items()}
    base = found["base"]
    return Grid(
        options.step_counts(),
        base.share_ratios,
        base.thresholds,
        numbers("--unguided", options.unguided, float),
        base.sharing,
        tuple(weights for weights in found if weights != "base"),
        found,
    )
