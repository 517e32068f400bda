"""The contrastive loss of the stages `encoder` and `score` (CLIP, arXiv 2103.00020)."""

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
    text, image = F.normalize(text.float(), dim=-1), F.normalize(image.float(), dim=-1)
    logits = text @ image.T * log_scale.exp().clamp(max=100.0)  # (N, N)
    _, same = np.unique(list(captions), return_inverse=True)
    ids = torch.from_numpy(same).to(logits.device)
    target = (ids[:, None] == ids[None]).float()
    target = target / target.sum(1, keepdim=True)
    return {"text": F.cross_entropy(logits, target) / 2, "image": F.cross_entropy(logits.T, target) / 2}
