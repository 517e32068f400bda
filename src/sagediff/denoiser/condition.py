"""What a group's denoiser call is conditioned on: the members' conditions made into one.

A way of making it gets all conditions and masks of one node at once, because what is chosen for one argument must
fit the others (a pooled embedding and the token embeddings of the same member, say).  Pure tensors: it knows no
pipeline and no denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor, arange, where

Tensors: TypeAlias = Mapping[str, Tensor]
GroupCondition: TypeAlias = Callable[[Tensors, Tensors, Tensors], dict[str, Tensor]]
"""(conditions, masks, words), each name -> (n, ...) with n members, to name -> (1, ...) for every condition
and mask.

`words` says of a condition's tokens, (n, tokens), which are words and which are padding.  It has no entry for
conditions that are not padded, or whose padding the model was trained to read like words. Masks are merged like
conditions, and so are lengths, (n,) integers. A condition with one row for all prompts is not among them.
"""


def mean_condition(conditions: Tensors, masks: Tensors, words: Tensors) -> dict[str, Tensor]:
    """The mean over the members; of masks the union, so that no member's tokens are hidden.

    Token by token only the members count that have a word there, so that the padding of a short prompt does
    not dilute a long one's last words; where nobody has a word, all members count.  Taken about the first
    member that counts and in float32: the mean of equal rows is then exactly that row, also in half precision.

    Where a condition is discrete (integers: tokens, codes) and differs between members, there is no mean. One member
    then stands for all, in every condition, so that they fit each other: the one that is nearest to the mean, the
    first of several.
    """
    discrete = {name: rows for name, rows in conditions.items() if not rows.is_floating_point()}
    if any(bool((rows != rows[:1]).any()) for rows in discrete.values()):
        chosen = _nearest(conditions, words)
        return {name: rows[chosen : chosen + 1] for name, rows in {**conditions, **masks}.items()}
    smooth = {name: rows for name, rows in conditions.items() if name not in discrete}
    return _mean(smooth, masks, words) | {name: rows[:1] for name, rows in discrete.items()}


def _mean(conditions: Tensors, masks: Tensors, words: Tensors) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for name, rows in conditions.items():
        wide = rows.float() if rows.is_floating_point() and rows.element_size() < 4 else rows
        if name in words:
            first = words[name].int().argmax(dim=0)  # (tokens,)
            about = wide[first, arange(len(first), device=first.device)][None]
            mean = ((wide - about) * _shares(words[name], wide)).sum(dim=0, keepdim=True)
        else:
            about = wide[:1]
            mean = (wide - about).mean(dim=0, keepdim=True)
        merged[name] = (about + mean).to(rows.dtype)  # (1, ...)
    for name, rows in masks.items():
        # also right for lengths, and for additive masks: 0 shows, -10000 hides
        merged[name] = rows.amax(dim=0, keepdim=True)
    return merged


def _nearest(conditions: Tensors, words: Tensors) -> int:
    """The member whose conditions are nearest to the mean: what is discrete, by how often others have the same."""
    distances: list[Tensor] = []
    smooth = {name: rows for name, rows in conditions.items() if rows.is_floating_point()}
    means = _mean(smooth, {}, words)
    for name, rows in conditions.items():
        if name in smooth:
            gaps = (rows.float() - means[name].float()).square()
            if name in words:
                gaps = gaps * words[name].view(*words[name].shape, *[1] * (rows.ndim - 2))
        else:
            gaps = (rows[:, None] != rows[None]).float()  # (n, n, ...)
        each = gaps.flatten(1).mean(1)  # (n,)
        distances.append(each / each.mean().clamp_min(1e-12))
    total: list[float] = sum(distances[1:], distances[0]).tolist()
    return total.index(min(total))


def _shares(words: Tensor, rows: Tensor) -> Tensor:
    """Weight of every member at every token, summing to 1 over the members: (n, tokens, 1, ...)."""
    counted = where(words.any(dim=0), words, True).to(rows.dtype)  # (n, tokens)
    return (counted / counted.sum(dim=0)).view(*counted.shape, *[1] * (rows.ndim - 2))
