"""What a run has really trained on, read off its log: group sizes, batch sizes, terms that stayed zero."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagediff.errors import InputError
from sagediff.files.json_input import parse_object
from sagediff.training.batches import GroupCounts

NOT_TERMS = ("step", "learning_rate", "images", "groups", "in_groups", "largest_group")


def counts_record(counts: GroupCounts) -> dict[str, int]:
    """A step's counts, as its line of the log holds them."""
    return {
        "images": counts.images, "groups": counts.groups, "in_groups": counts.in_groups,
        "largest_group": counts.largest,
    }  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """All steps of a run together.

    Attributes:
        steps: whose lines the log holds.
        counts: over all of them.
        zero: for each term of the objective, in how many steps it was exactly 0.
    """

    steps: int
    counts: GroupCounts
    zero: Mapping[str, int]

    @classmethod
    def read(cls, log: Path) -> Trained:
        """What a log tells; lines that are none are passed over."""
        lines: list[dict[str, Any]] = []
        for text in log.read_text(encoding="utf-8").splitlines():
            with suppress(InputError):
                lines.append(parse_object(text, str(log)))
        images, groups, in_groups = (
            sum(int(line.get(name, 0)) for line in lines) for name in ("images", "groups", "in_groups")
        )
        largest = max((int(line.get("largest_group", 0)) for line in lines), default=0)
        terms = dict.fromkeys(name for line in lines for name in line if name not in NOT_TERMS)
        zero = {name: sum(line.get(name) == 0 for line in lines) for name in terms}
        return cls(len(lines), GroupCounts(images, groups, in_groups, largest), zero)

    def words(self) -> str:
        """For the model card."""
        counts = self.counts
        if not self.steps or not counts.images:
            return "Nothing was trained."
        parts = [
            f"{self.steps} steps of {counts.images / self.steps:.3g} images on average",
            f"{counts.in_groups / counts.images:.0%} of the images in groups of two or more",
            f"mean group size {counts.images / counts.groups:.3g}, largest {counts.largest}",
        ]
        never = [name for name, steps in self.zero.items() if steps == self.steps]
        seldom = [f"`{name}` in {steps}" for name, steps in self.zero.items() if 0 < steps < self.steps]
        if never:
            parts.append(f"terms that were 0 in every step: {', '.join(f'`{name}`' for name in never)}")
        if seldom:
            parts.append(f"steps in which a term was 0: {', '.join(seldom)} of {self.steps}")
        return "; ".join(parts) + "."
