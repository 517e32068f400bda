"""`Gathering`: from a denoiser call's rows to the rows that are run, one per node, its members' conditions merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sagediff.denoiser.condition import GroupCondition
from sagediff.denoiser.family import MERGED
from sagediff.denoiser.lookup import Family

_KEPT = 2  # sets of conditions: of a step's conditional and of its negative call, where those are two


@dataclass
class _Merged:
    """The conditions of nodes, made once: a pipeline mostly gives the same at every step.

    Attributes:
        of: copies of what they were made of. Compared by content: the pipeline's own tensors may be written to in ways
            that leave no trace on them (through `.data`, or by numpy).
        rows: by the members of the node, name -> (1, ...).
    """

    of: dict[str, Tensor]
    rows: dict[tuple[int, ...], dict[str, Tensor]] = field(default_factory=dict)

    def is_of(self, tensors: Mapping[str, Tensor]) -> bool:
        return self.of.keys() == tensors.keys() and all(
            kept.dtype == tensors[name].dtype
            and kept.device == tensors[name].device
            and torch.equal(kept, tensors[name])
            for name, kept in self.of.items()
        )


class Gathering:
    """Gathers the rows of nodes, whose conditions `condition` makes of their members'."""

    def __init__(self, family: Family, condition: GroupCondition) -> None:
        self._family = family
        self._condition = condition
        self._kept: list[_Merged] = []

    def rows(self, tensors: Mapping[str, Tensor], sources: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        """One row for every source, of each argument that has rows.

        Where the sources are neighbouring single rows these are views of the pipeline's own tensors, not copies.

        Args:
            sources: for every row wanted, the rows of the call that it stands for.
        """
        rows = len(tensors[self._family.sample])
        per_row = {
            name: tensor for name, tensor in tensors.items() if has_rows(self._family, name, tensor, rows)
        }
        first = sources[0][0]
        if all(members == (first + place,) for place, members in enumerate(sources)):
            return {name: tensor[first : first + len(sources)] for name, tensor in per_row.items()}
        device = tensors[self._family.sample].device
        firsts = torch.tensor([members[0] for members in sources], device=device)
        gathered = {
            name: tensor.index_select(0, firsts.to(tensor.device)) for name, tensor in per_row.items()
        }
        nodes = [(place, members) for place, members in enumerate(sources) if len(members) > 1]
        merged = self._merged(per_row, [members for _, members in nodes]) if nodes else {}
        for place, members in nodes:
            for name, row in merged[members].items():
                gathered[name][place : place + 1] = row
        return gathered

    def _merged(
        self, per_row: Mapping[str, Tensor], nodes: Sequence[tuple[int, ...]]
    ) -> Mapping[tuple[int, ...], Mapping[str, Tensor]]:
        """The conditions and masks of nodes, by their members."""
        roles = {name: self._family.role(name) for name in per_row}
        made_of = {name: tensor for name, tensor in per_row.items() if roles[name] in MERGED}
        if not made_of:  # all of it broadcast
            return {members: {} for members in nodes}
        known = self._known(made_of)
        missing = [members for members in nodes if members not in known.rows]
        if missing:
            words = self._family.words(per_row)
            for members in missing:
                conditions, masks = (
                    _take({n: t for n, t in made_of.items() if roles[n] in kinds}, members)
                    for kinds in (("condition", "discrete"), ("mask", "length"))
                )
                known.rows[members] = self._condition(conditions, masks, _take(words, members))
        return known.rows

    def _known(self, tensors: Mapping[str, Tensor]) -> _Merged:
        """What is kept of such conditions; nothing yet where they are new."""
        # ControlNet's residuals are new at every step, and too large to keep copies of
        if any(self._family.whole(name) != name for name in tensors):
            return _Merged({})
        for kept in self._kept:
            if kept.is_of(tensors):
                return kept
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._kept = [_Merged(copies), *self._kept[: _KEPT - 1]]
        return self._kept[0]


def has_rows(family: Family, name: str, tensor: Tensor, rows: int) -> bool:
    """Whether an argument has one row for each row of the call, or should: one entry is broadcast to all rows by the
    model (a timestep, or the embedding of one negative prompt)."""
    if tensor.ndim == 0:
        return family.role(name) not in ("neither", "row")
    return family.role(name) != "neither" and (len(tensor) != 1 or rows == 1)


def _take(tensors: Mapping[str, Tensor], members: Sequence[int]) -> dict[str, Tensor]:
    return {name: tensor[list(members)] for name, tensor in tensors.items()}
