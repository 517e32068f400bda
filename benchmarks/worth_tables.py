"""The tables and plots of `worth_of_sharing.py`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from sagediff.evaluation.plots import frontier
from sagediff.evaluation.summary import Row

COLUMNS = {
    "evaluations_per_image": ("evaluations per image", ".2f"),
    "sharing_saving": ("saved by sharing", ".1%"),
    "frechet": ("Frechet distance", ".3f"),
    "kernel": ("kernel distance", ".4f"),
    "accuracy_all": ("named right", ".1%"),
    "clip_score": ("CLIP-like score", ".4f"),
    "diversity": ("diversity in groups", ".4f"),
}
TITLES = {
    "a": "As the paper compares: 40 % of the steps shared",
    "b": "What sharing itself is worth: the same weights, steps and guidance",
    "c": "The frontier: best independent and best shared at each budget",
    "d": "By how alike a group's prompts are: fixed, adaptive and tree plans of the same predicted error",
    "ablation": "The terms of the training's objective, each left out of a short training",
}


def tables(
    parts: Mapping[str, Sequence[Row]], real: Mapping[str, float | None] | None, budgets: Sequence[int]
) -> str:
    """Markdown of all parts that there are."""
    lines: list[str] = []
    for key, title in TITLES.items():
        mine = {name: rows for name, rows in parts.items() if name.split()[0].rstrip(":") == key and rows}
        if not mine:
            continue
        heads = ["sampling", *(head for head, _ in COLUMNS.values())]
        lines += [f"## {title}", "", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
        for name, rows in mine.items():
            lines += [_line(name if key == "ablation" else "", row) for row in rows]
        if real is not None:
            cells = [_form(real.get(name), form) for name, (_, form) in COLUMNS.items()]
            lines.append(f"| real artwork | {' | '.join(cells)} |")
        lines.append("")
        if key == "a":
            lines += _against(mine["a"])
        if key == "c":
            lines += _ratio([row for rows in mine.values() for row in rows])
        if key == "d":
            lines += _bands(mine["d"])
    return "\n".join(lines) + "\n"


def _line(before: str, row: Row) -> str:
    one = row.setting
    words = [before, one.method, one.words(), f"guidance {one.guidance_words()}"]
    if one.scheduler:
        words.append(one.scheduler)
    cells = []
    for name, (_, form) in COLUMNS.items():
        figure = row.figures.get(name)
        spread = "" if figure is None or figure.spread is None else f" ± {figure.spread:{form}}"
        cells.append(_form(None if figure is None else figure.mean, form) + spread)
    return f"| {', '.join(filter(None, words))} | {' | '.join(cells)} |"


def _form(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _against(rows: Sequence[Row]) -> list[str]:
    """SAGE training against standard fine-tuning, in the paper's three figures."""
    of = {row.setting.weights: row for row in rows}
    if not {"standard", "sage"} <= of.keys():
        return []
    words = []
    for name, (head, _) in COLUMNS.items():
        if name in ("frechet", "clip_score", "diversity"):
            before, after = (of[weights].figures[name].mean for weights in ("standard", "sage"))
            words.append(f"{head} {after / before - 1:+.1%}")
    return [
        f"SAGE training against standard fine-tuning: {', '.join(words)} (paper: -5.0 %, +5.4 %, +160 %).",
        "",
    ]


def _ratio(rows: Sequence[Row]) -> list[str]:
    """How many times the evaluations independent sampling needs for the distance of shared sampling."""
    points = {
        shared: sorted(
            (row.figures["evaluations_per_image"].mean, row.figures["frechet"].mean)
            for row in rows
            if (row.setting.sharing.share_ratio > 0) is shared
        )
        for shared in (False, True)
    }
    words = []
    for cost, distance in points[True]:
        needed = evaluations_for(points[False], distance)
        words.append(
            f"{cost:.2f}: " + (f"{needed / cost:.2f} times" if needed else "more than any that was run")
        )
    return [
        f"Evaluations that independent sampling needs for the distance of shared sampling at {'; '.join(words)}.",
        "",
    ]


def evaluations_for(points: Sequence[tuple[float, float]], distance: float) -> float | None:
    """The least evaluations at which the line through points (evaluations, distance) is at that distance or nearer."""
    before: tuple[float, float] | None = None
    for cost, reached in sorted(points):
        if reached <= distance:
            if before is None or before[1] <= reached:
                return cost
            part = (before[1] - distance) / (before[1] - reached)
            return float(np.exp(np.log(before[0]) + part * np.log(cost / before[0])))
        before = cost, reached
    return None


def _bands(rows: Sequence[Row]) -> list[str]:
    heads = (
        "plan",
        "prompts' cosine",
        "evaluations per image",
        "named right",
        "CLIP-like score",
        "kernel distance",
    )
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for row in rows:
        for band in row.bands:
            cells = [
                _form(band[name].mean if name in band else None, COLUMNS[name][1])
                for name in ("evaluations_per_image", "accuracy_all", "clip_score", "kernel")
            ]
            low, high = band["low"].mean, band["high"].mean
            lines.append(f"| {row.setting.method} | {low:.3f} to {high:.3f} | {' | '.join(cells)} |")
    return [*lines, ""]


def plots(parts: Mapping[str, Sequence[Row]]) -> dict[str, bytes]:
    """PNG by file name: the frontier, and figures by likeness."""
    made: dict[str, bytes] = {}
    rows = [row for name, found in parts.items() if name.startswith("c") for row in found]
    if rows:
        made["frontier.png"] = frontier(rows)
    if parts.get("d"):
        made["likeness.png"] = _likeness(parts["d"])
    return made


def _likeness(rows: Sequence[Row]) -> bytes:
    """Kernel distance and evaluations of each plan, by the similarity of a group's prompts."""
    figure = Canvas(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(("evaluations_per_image", "kernel"), 1):
        axes = figure.add_subplot(1, 2, place)
        for row in rows:
            found = [band for band in row.bands if name in band]
            middle = [(band["low"].mean + band["high"].mean) / 2 for band in found]
            spread = [band[name].spread or 0.0 for band in found]
            axes.errorbar(
                middle, [band[name].mean for band in found], spread, marker="o", capsize=3,
                label=row.setting.method.removeprefix("d: "),
            )  # fmt: skip
        axes.set_xlabel("mean cosine of a group's prompts")
        axes.set_ylabel(COLUMNS[name][0])
        axes.grid(alpha=0.3)
        if place == 1:
            axes.legend(fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    return out.getvalue()
