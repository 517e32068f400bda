"""From cells to rows: mean and spread of every figure over the seeds. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sagediff.evaluation.grid import Setting


@dataclass(frozen=True)
class Figure:
    """Mean over the seeds, and their sample standard deviation; None with one seed, which has no spread."""

    mean: float
    spread: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Row:
    """A setting's figures over all seeds, and those of each similarity band, least alike first."""

    setting: Setting
    seeds: tuple[int, ...]
    figures: dict[str, Figure]
    bands: list[dict[str, Figure]]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "setting": self.setting.record(),
            "seeds": list(self.seeds),
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "bands": [{name: asdict(figure) for name, figure in band.items()} for band in self.bands],
        }


def row(setting: Setting, cells: Sequence[Mapping[str, Any]]) -> Row:
    """One row from the cells of one setting, one per seed. A figure that any cell lacks is left out."""
    bands = zip(*(cell["bands"] for cell in cells), strict=True)
    return Row(
        setting,
        tuple(int(cell["seed"]) for cell in cells),
        _over_seeds([cell["figures"] for cell in cells]),
        [_over_seeds(same) for same in bands],
    )


def _over_seeds(records: Sequence[Mapping[str, float | None]]) -> dict[str, Figure]:
    out = {}
    for name in records[0]:
        values = [value for record in records if (value := record[name]) is not None]
        if len(values) == len(records):
            out[name] = Figure.of(values)
    return out
