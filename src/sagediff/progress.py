"""What long work shows on stderr: how far it is, and the time that is left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def stderr_progress(name: str, unit: str = "") -> Progress:
    """Bars of this name, which may hold rich's fields of a task.

    Args:
        unit: of what is counted, behind the count.
    """
    counted: tuple[ProgressColumn, ...] = (
        (MofNCompleteColumn(), TextColumn(unit)) if unit else (MofNCompleteColumn(),)
    )
    return Progress(
        TextColumn(name),
        BarColumn(),
        *counted,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
