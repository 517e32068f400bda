"""Captions that no built-in image model was trained on, and the features of their real images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sagediff.errors import InputError


def draw_captions(held_out: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """`count` of them, drawn without replacement, in their own order.

    Raises:
        InputError: there are not so many.
    """
    if not 1 <= count <= len(held_out):
        raise InputError(f"captions must lie in [1, {len(held_out)}], all that are held out, got {count}")
    order = np.random.default_rng(seed).permutation(len(held_out))[:count]
    return [held_out[i] for i in sorted(order)]


def features_of(held_out: Sequence[str], features: Tensor, captions: Sequence[str] | None) -> Tensor:
    """Rows of `features` (N, D), one for each held-out caption, in the order of `captions`; None for all.

    Raises:
        InputError: a caption that is not held out, and so has no image there.
    """
    if captions is None:
        return features
    place = {caption: i for i, caption in enumerate(held_out)}
    if unknown := [caption for caption in captions if caption not in place]:
        raise InputError(f"no render is shipped of {unknown[0]!r}; only of held-out captions")
    return features[[place[caption] for caption in captions]]
