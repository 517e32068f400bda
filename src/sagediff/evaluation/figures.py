"""From images to figures: every metric called once, for all prompts and band by band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from sagediff.evaluation.diversity import group_diversity
from sagediff.evaluation.frechet import frechet_distance
from sagediff.evaluation.kernel import kernel_distance
from sagediff.evaluation.perception import Judging, Perception
from sagediff.evaluation.reference import Reference
from sagediff.evaluation.similarity import Band
from sagediff.evaluation.vendi import group_vendi

Figures = dict[str, float | None]
Groups = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Yardstick:
    """What images are measured by, the same for every setting of a bench.

    Attributes:
        perception: what looks at them.
        reference: real images; None leaves the distances out.
        groups: for each grouping (`Setting.grouping`), the groups that diversity is measured in, also for
            independent sampling.
        bands: for each grouping, its groups by similarity.
    """

    perception: Perception
    reference: Reference | None
    groups: dict[tuple[float, int], list[list[int]]]
    bands: dict[tuple[float, int], list[Band]]


@dataclass(frozen=True)
class Seen:
    """What a perception sees in N images.

    Attributes:
        features: (N, D).
        aligned: (N,) cosines of image and prompt.
        right: bools (N,) by what is judged; empty where nothing can be.
    """

    features: Tensor
    aligned: Tensor
    right: dict[str, Tensor]

    @classmethod
    def by(cls, perception: Perception, images: Tensor, prompts: Sequence[str]) -> Seen:
        """Look at (N, 3, H, W) in [0, 1], one image per prompt."""
        right = perception.accuracy(images, prompts) if isinstance(perception, Judging) else {}
        return cls(perception.features(images), perception.alignment(images, prompts), right)

    def part(self, chosen: Sequence[int]) -> Seen:
        """The same of some of the images."""
        right = {name: flags[chosen] for name, flags in self.right.items()}
        return Seen(self.features[chosen], self.aligned[chosen], right)

    def figures(self, groups: Groups, reference: Reference | None = None) -> Figures:
        """Every metric.

        Args:
            groups: numbers of images among which diversity is measured.
            reference: real images; None leaves the distances out.
        """
        distances: Figures = {"frechet": None, "kernel": None}
        features = self.features
        if reference is not None and min(len(features), len(reference.features)) > 1:
            distances = {
                "frechet": frechet_distance(features, reference.features),
                "kernel": kernel_distance(features, reference.features, paired=reference.paired),
            }
        right = {f"accuracy_{name}": flags for name, flags in self.right.items()}
        if not len(features):
            return distances | dict.fromkeys(("clip_score", "diversity", "vendi", *right))
        return {
            **distances,
            "clip_score": float(self.aligned.double().mean()),
            "diversity": group_diversity(features, groups),
            "vendi": group_vendi(features, groups),
            **{name: float(np.mean(flags.numpy())) for name, flags in right.items()},
        }


def measure(
    images: Tensor, prompts: Sequence[str], grouping: tuple[float, int], yardstick: Yardstick
) -> tuple[Figures, list[dict[str, Any]]]:
    """The figures of all images, and those of each band.

    Args:
        images: (N, 3, H, W) in [0, 1], one per prompt.
        grouping: whose groups diversity and bands are taken from.
    """
    seen, real = Seen.by(yardstick.perception, images, prompts), yardstick.reference
    bands = []
    for band in yardstick.bands[grouping]:
        chosen = band.prompts
        part_of_real = replace(real, features=real.features[chosen]) if real and real.paired else real
        place = {prompt: i for i, prompt in enumerate(chosen)}
        groups = [[place[i] for i in group] for group in band.groups]
        part = seen.part(chosen).figures(groups, part_of_real)
        # a band's few images would raise the Frechet distance by their number alone
        part.pop("frechet", None)
        bands.append({"low": band.low, "high": band.high, "prompts": chosen, **part})
    return seen.figures(yardstick.groups[grouping], real), bands
