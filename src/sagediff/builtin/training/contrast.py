"""Contrastive losses (CLIP, arXiv 2103.00020): within a batch, and against every caption of a world."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_terms(
    text: Tensor, image: Tensor, log_scale: Tensor, captions: Sequence[str]
) -> dict[str, Tensor]:
    """Cross-entropy of texts over images and of images over texts, halved each.

    Equal captions count as right for one another: they share the target evenly.

    Args:
        text, image: (N, D), of any length.
        log_scale: logarithm of the inverse temperature, a scalar; the temperature stays above 0.01.
        captions: N texts, to find equal ones.
    """
    logits = similarities(text, image, log_scale)  # (N, N)
    _, same = np.unique(list(captions), return_inverse=True)
    ids = torch.from_numpy(same).to(logits.device)
    target = (ids[:, None] == ids[None]).float()
    target = target / target.sum(1, keepdim=True)
    return {"text": F.cross_entropy(logits, target) / 2, "image": F.cross_entropy(logits.T, target) / 2}


def choice_terms(image: Tensor, texts: Tensor, log_scale: Tensor, which: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of images over all captions: the hardest negatives are always among them.

    Args:
        image: (N, D); texts: (M, D); of any length.
        which: (N,) the number of each image's caption.
    """
    return {"choice": F.cross_entropy(similarities(image, texts, log_scale), which)}


def similarities(rows: Tensor, columns: Tensor, log_scale: Tensor) -> Tensor:
    """Cosines over the temperature, (N, D) and (M, D) -> (N, M)."""
    with torch.autocast(
        rows.device.type, enabled=False
    ):  # in bfloat16 all near captions would be equally near
        rows, columns = F.normalize(rows.float(), dim=-1), F.normalize(columns.float(), dim=-1)
        return rows @ columns.T * log_scale.exp().clamp(max=100.0)
