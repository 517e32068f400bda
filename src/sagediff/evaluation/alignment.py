"""CLIP score: how well images fit their prompts (Hessel et al., arXiv 2104.08718), here the plain cosine.

The paper's score is 2.5 times the cosine, cut at 0; other libraries show 100 times. Multiply to compare.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sagediff.errors import InputError
from sagediff.evaluation.arrays import Floats, unit_rows


def clip_scores(image_vectors: Any, text_vectors: Any) -> Floats:
    """Cosine of each image with its prompt, (N,), from two arrays (N, D).

    Raises:
        InputError: the shapes differ.
    """
    images, texts = unit_rows(image_vectors, "image vectors"), unit_rows(text_vectors, "text vectors")
    if images.shape != texts.shape:
        raise InputError(f"image vectors {images.shape} and text vectors {texts.shape} must have one shape")
    return np.asarray((images * texts).sum(1))


def clip_score(image_vectors: Any, text_vectors: Any) -> float:
    """Mean of `clip_scores`.

    Raises:
        InputError: the shapes differ, or there are no images.
    """
    scores = clip_scores(image_vectors, text_vectors)
    if not len(scores):
        raise InputError("the CLIP score needs at least one image")
    return float(scores.mean())
