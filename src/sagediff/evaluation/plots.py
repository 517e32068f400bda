"""The plots: the frontier of quality against cost, and a strip of images. The only importer of matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from sagediff.evaluation.grid import Setting
from sagediff.evaluation.summary import Row

_PANELS = (  # figure -> label; each panel shows the first that there is
    {"accuracy_all": "all attributes right", "clip_score": "CLIP score"},
    {"frechet": "Frechet distance (lower is better)"},
)
_MARKS = "osD^vP*X"


def frontier(rows: Sequence[Row]) -> bytes:
    """Quality against evaluations per image, as PNG: a line a method through its undominated settings.

    Settings that another one of the same method beats at no higher cost are drawn as faint points. Error bars
    are the spread over the seeds.
    """
    there = {name for row in rows for name in row.figures}
    panels: list[tuple[str, str]] = []
    for labels in _PANELS:
        panels += [(name, label) for name, label in labels.items() if name in there][:1]
    figure = Canvas(figsize=(6.2 * max(len(panels), 1), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    methods = list(dict.fromkeys(row.setting.method for row in rows))
    for place, (name, label) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        for number, method in enumerate(methods):
            mine = [row for row in rows if row.setting.method == method and name in row.figures]
            _line(axes, mine, name, method, number)
        axes.set_xlabel("denoiser evaluations per image")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if place == 1:
            axes.legend(fontsize=8)
    return _png(figure)


def undominated(costs: Sequence[float], values: Sequence[float], higher_is_better: bool) -> list[int]:
    """Positions, by growing cost, of the points that no other one beats at no higher cost."""
    sign = 1 if higher_is_better else -1
    best, kept = -np.inf, []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -sign * values[i])):
        if sign * values[i] > best:
            best = sign * values[i]
            kept.append(i)
    return kept


def strip(
    settings: Sequence[Setting], groups: Sequence[int], titles: Sequence[str], files: Sequence[Sequence[Path]]
) -> bytes:
    """Images as PNG, one group per row, one setting a column.

    Args:
        groups: numbers of the groups, one per row.
        titles: the first prompt of each group.
        files: for each group, one file per setting: its members side by side.
    """
    from matplotlib.image import imread

    tall = len(groups)
    figure = Canvas(figsize=(3.4 * len(settings), 1.35 * tall + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    for row, (group, title) in enumerate(zip(groups, titles, strict=True)):
        for column, setting in enumerate(settings):
            axes = figure.add_subplot(tall, len(settings), row * len(settings) + column + 1)
            axes.imshow(imread(files[row][column]), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(f"{setting.method}\n{setting.words()}", fontsize=8)
            if column == 0:
                axes.set_xlabel(f"group {group}: {title[:60]}", fontsize=6, loc="left")
    return _png(figure)


def _line(axes: Axes, rows: Sequence[Row], name: str, method: str, number: int) -> None:
    if not rows:
        return
    costs = [row.figures["evaluations_per_image"].mean for row in rows]
    values = [row.figures[name].mean for row in rows]
    spread = [row.figures[name].spread or 0.0 for row in rows]
    color, mark = f"C{number % 10}", _MARKS[number % len(_MARKS)]
    kept = undominated(costs, values, higher_is_better=name != "frechet")
    axes.errorbar(
        [costs[i] for i in kept], [values[i] for i in kept], [spread[i] for i in kept],
        color=color, marker=mark, markersize=5, capsize=3, linewidth=1.4, label=method,
    )  # fmt: skip
    rest = sorted(set(range(len(rows))) - set(kept))
    axes.plot(
        [costs[i] for i in rest], [values[i] for i in rest], mark, color=color, markersize=4, alpha=0.35
    )


def _png(figure: Canvas) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    return out.getvalue()
