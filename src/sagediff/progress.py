"""Progress bars on stderr: how far long work is, and the time that is left. No other module makes one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

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

T = TypeVar("T")


def stderr_progress(name: str, unit: str = "", note: str = "", *, shown: bool = True) -> Progress:
    """Bars with this name.

    Args:
        name, unit, note: text before the bar, behind the count and at the end. Each may hold rich's fields of a
            task, as in "{task.fields[loss]}".
        shown: False on all processes but the one that talks to the user.
    """
    columns: list[ProgressColumn] = [TextColumn(name), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn(unit)] if unit else []
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    columns += [TextColumn(note)] if note else []
    return Progress(*columns, console=Console(stderr=True), disable=not shown)


def stderr_track(items: Sequence[T], name: str) -> Iterator[T]:
    """The items, one after the other, with a bar."""
    with stderr_progress(name) as progress:
        yield from progress.track(items)
