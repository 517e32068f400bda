"""What `bench` and `tune` take alike: lists of numbers, prompts, and what looks at the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sagediff.errors import InputError
from sagediff.options import option
from sagediff.pipelines.run_settings import ModelOptions
from sagediff.prompts.prompt_files import read_prompts

if TYPE_CHECKING:
    from sagediff.evaluation.perception import Perception

_T = TypeVar("_T", int, float)


@dataclass(frozen=True)
class MeasuringOptions:
    """Which images are measured, and what looks at them."""

    captions: int | None = option(
        None, "Prompts to use [default: all; of the demo's held-out ones 256 in bench, 128 in tune]."
    )
    seeds: tuple[str, ...] = option((), "Seeds, with commas [default: 0,1,2 in bench, 0 in tune].")
    features: str | None = option(
        None, "'inception', or a DINOv2 or CLIP model [default: facebook/dinov2-base]."
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
        if model.name != "demo":
            raise InputError(f"--model of your own needs --prompts FILE{instead}")
        from sagediff.builtin.scenes.scene_perception import held_out_captions

        return held_out_captions(held_out if self.captions is None else self.captions)

    def world_judges(self, model: ModelOptions) -> bool:
        """Whether the built-in judge looks at the images: at those of its world, unless networks are named."""
        return model.name == "demo" and self.features is None and self.clip is None

    def perception(self, model: ModelOptions, device: str) -> Perception:
        """What looks at the images."""
        if self.world_judges(model):
            from sagediff.builtin.scenes.scene_perception import WorldPerception

            return WorldPerception()
        from sagediff.evaluation.perception import DEFAULT_CLIP, DEFAULT_FEATURES, NetworkPerception

        return NetworkPerception(self.features or DEFAULT_FEATURES, self.clip or DEFAULT_CLIP, device)


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
