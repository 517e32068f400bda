"""From one setting's images to its figures: every metric called once, for all prompts and band by band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Yardstick:
    """What images are measured by, the same for every setting of a bench.

    Attributes:
        perception: what looks at them.
        reference: real images; None leaves the distances out.
        groups: for each threshold, the groups that diversity is measured in, also for independent sampling.
        bands: for each threshold, its groups by similarity.
    """

    perception: Perception
    reference: Reference | None
    groups: dict[float, list[list[int]]]
    bands: dict[float, list[Band]]


def measure(
    images: Tensor, prompts: Sequence[str], threshold: float, yardstick: Yardstick
) -> tuple[Figures, list[dict[str, Any]]]:
    """The figures of all images, and those of each band.

    Args:
        images: (N, 3, H, W) in [0, 1], one per prompt.
        threshold: whose groups diversity and bands are taken from.
    """
    look = yardstick.perception
    features, aligned = look.features(images), look.alignment(images, prompts)
    right = look.accuracy(images, prompts) if isinstance(look, Judging) else {}
    figures = _figures(features, aligned, right, yardstick.groups[threshold], yardstick.reference)
    bands = []
    for band in yardstick.bands[threshold]:
        chosen = band.prompts
        real = yardstick.reference
        if real is not None and real.paired:
            real = Reference(real.features[chosen], paired=True)
        place = {prompt: i for i, prompt in enumerate(chosen)}
        part = _figures(
            features[chosen],
            aligned[chosen],
            {name: flags[chosen] for name, flags in right.items()},
            [[place[i] for i in group] for group in band.groups],
            real,
        )
        # a band's few images would raise the Frechet distance by their number alone
        part.pop("frechet", None)
        bands.append({"low": band.low, "high": band.high, "prompts": chosen, **part})
    return figures, bands


def _figures(
    features: Tensor,
    aligned: Tensor,
    right: dict[str, Tensor],
    groups: Sequence[Sequence[int]],
    reference: Reference | None,
) -> Figures:
    distances: Figures = {"frechet": None, "kernel": None}
    if reference is not None and min(len(features), len(reference.features)) > 1:
        distances = {
            "frechet": frechet_distance(features, reference.features),
            "kernel": kernel_distance(features, reference.features, paired=reference.paired),
        }
    if not len(features):
        return distances | {"clip_score": None, "diversity": None, "vendi": None} | dict.fromkeys(right)
    return {
        **distances,
        "clip_score": float(aligned.double().mean()),
        "diversity": group_diversity(features, groups),
        "vendi": group_vendi(features, groups),
        **{f"accuracy_{name}": float(np.mean(flags.numpy())) for name, flags in right.items()},
    }
