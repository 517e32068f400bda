"""The comparison as Markdown, CSV and JSON. Pure: text in the end, no files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sagediff.evaluation.summary import Figure, Row

HEADS = {  # figure -> (heading, format); accuracies stand before the CLIP score, by their own names
    "num_prompts": ("prompts", ".0f"),  # of bands only
    "evaluations_per_image": ("evaluations per image", ".1f"),
    "cost_saving": ("saving", ".1%"),
    "sharing_saving": ("by sharing alone", ".1%"),
    "seconds": ("seconds", ".1f"),
    "clip_score": ("CLIP score", ".4f"),
    "frechet": ("Frechet distance", ".2f"),
    "kernel": ("kernel distance", ".4f"),
    "diversity": ("diversity in groups", ".4f"),
    "vendi": ("Vendi in groups", ".3f"),
}
_NUMBERS = (
    "num_steps", "share_ratio", "threshold", "shared_guidance", "unguided", "handover_noise", "guidance_scale",
    "scheduler",
)  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """The table, then one by similarity band. Spread is over the seeds."""
    names = _names([row.figures for row in rows])
    lines = _lines(
        ["method", "setting", "guidance", "solver", *map(_head, names)],
        [
            [
                r.setting.method,
                r.setting.words(),
                r.setting.guidance_words(),
                r.setting.scheduler or "the model's own",
                *(_cell(r.figures, name) for name in names),
            ]
            for r in rows
        ],
    )
    banded = [(row, band) for row in rows for band in row.bands]
    if banded:
        names = [n for n in _names([band for _, band in banded]) if n not in ("low", "high")]
        lines += ["", "By the similarity of a group's prompts (mean cosine):", ""]
        lines += _lines(
            ["method", "setting", "prompts' cosine", *map(_head, names)],
            [
                [
                    row.setting.method,
                    row.setting.words(),
                    f"{band['low'].mean:.3f} to {band['high'].mean:.3f}",
                    *(_cell(band, name) for name in names),
                ]
                for row, band in banded
            ],
        )
    return "\n".join(lines) + "\n"


def csv_text(rows: Sequence[Row]) -> str:
    """A line per setting; each figure has a column and one with `_spread`, empty where there is none."""
    names = _names([row.figures for row in rows])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["method", "weights", *_NUMBERS, "seeds", *(c for n in names for c in (n, f"{n}_spread"))]
    )
    for row in rows:
        setting = row.setting.record()
        figures = [row.figures.get(name) for name in names]
        numbers = [value for f in figures for value in ((None, None) if f is None else (f.mean, f.spread))]
        writer.writerow(
            [setting["method"], setting["weights"], *(setting[n] for n in _NUMBERS), len(row.seeds), *numbers]
        )
    return out.getvalue()


def json_text(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Everything: what the bench was, and every row with its bands."""
    return json.dumps(dict(about) | {"rows": [row.record() for row in rows]}, indent=2) + "\n"


def _names(records: Sequence[Mapping[str, Figure]]) -> list[str]:
    found = dict.fromkeys(name for record in records for name in record)
    accuracies = [name for name in found if name.startswith("accuracy_")]
    known = [name for name in HEADS if name in found]
    at = known.index("clip_score") if "clip_score" in known else len(known)
    return [*known[:at], *accuracies, *known[at:]]


def _head(name: str) -> str:
    return HEADS[name][0] if name in HEADS else name.removeprefix("accuracy_") + " right"


def _cell(figures: Mapping[str, Figure], name: str) -> str:
    if name not in figures:
        return ""
    style = HEADS[name][1] if name in HEADS else ".1%"
    figure = figures[name]
    exact = figure.spread is None or figure.spread == 0
    return f"{figure.mean:{style}}" if exact else f"{figure.mean:{style}} ± {figure.spread:{style}}"


def _lines(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" * len(heads),
        *("| " + " | ".join(cells) + " |" for cells in body),
    ]
