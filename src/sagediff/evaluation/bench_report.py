"""What a finished bench leaves in its folder: the table as Markdown, CSV and JSON, and the plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sagediff.evaluation.comparison import Bench, rows_of, strip_groups
from sagediff.evaluation.figures import Yardstick
from sagediff.evaluation.grid import Setting
from sagediff.evaluation.report_table import csv_text, json_text, markdown
from sagediff.evaluation.result_store import CellStore


def write_report(bench: Bench, store: CellStore, measure_by: Yardstick, about: Mapping[str, Any]) -> str:
    """Write everything; returns the JSON.

    Args:
        about: what the bench was, for the JSON.

    Raises:
        OutputError: the disk refused.
    """
    from sagediff.evaluation.plots import frontier, strip

    rows = rows_of(bench, store)
    text = json_text(rows, {"about": dict(about) | {"perception": measure_by.perception.name}})
    store.write_text("table.md", markdown(rows))
    store.write_text("table.csv", csv_text(rows))
    store.write_bytes("frontier.png", frontier(rows))
    shown: dict[str, Setting] = {}  # the first setting of each method
    for setting in bench.settings:
        shown.setdefault(setting.method, setting)
    groups = strip_groups(bench, measure_by)
    titles = [bench.prompts[members[0]] for members in groups.values()]
    files = [[store.strip_path(setting, group) for setting in shown.values()] for group in groups]
    store.write_bytes("strip.png", strip(list(shown.values()), list(groups), titles, files))
    store.write_text("table.json", text)  # last: its presence means a finished bench
    return text
