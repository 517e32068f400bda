"""What judges the images of a built-in model: one entry per world, loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sagediff.evaluation.perception import Perception


@dataclass(frozen=True)
class WorldJudge:
    """How images of one world are evaluated.

    Attributes:
        perception: makes what looks at them, on a device.
        held_out_captions: as many captions that no image model was trained on.
        reference_features: features of real images of held-out captions, by the same perception.
    """

    perception: Callable[[str], Perception]
    held_out_captions: Callable[[int], list[str]]
    reference_features: Callable[[Sequence[str] | None], Tensor]


def judge_of(model: str) -> WorldJudge:
    """The judge of the built-in model of that name."""
    if model == "emoji":
        from sagediff.builtin.emoji import emoji_perception as emoji

        return WorldJudge(emoji.EmojiPerception, emoji.held_out_captions, emoji.reference_features)
    from sagediff.builtin.scenes import scene_perception as scenes

    # the scenes' networks are so small that they stay on the CPU
    return WorldJudge(
        lambda device: scenes.WorldPerception(), scenes.held_out_captions, scenes.reference_features
    )
