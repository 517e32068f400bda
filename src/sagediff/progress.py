"""Progress bars on stderr: how far long work is, and the time that is left. No other module makes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


def stderr_progress(
    name: str, unit: str = "", note: str = "", *, shown: bool = True, counted: bool = True
) -> Progress:
    """Bars with this name.

    Args:
        name, unit, note: text before the bar, behind the count and at the end. Each may hold rich's fields of a
            task, as in "{task.fields[loss]}".
        shown: False on all processes but the one that talks to the user.
        counted: False where what is counted means nothing to a user: percent are shown.
    """
    count = MofNCompleteColumn() if counted else TaskProgressColumn()
    columns: list[ProgressColumn] = [TextColumn(name), BarColumn(), count]
    columns += [TextColumn(unit)] if unit else []
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    columns += [TextColumn(note)] if note else []
    return Progress(*columns, console=Console(stderr=True), disable=not shown)


def stderr_line(description: str) -> tuple[Progress, Callable[[str, float], None]]:
    """A bar whose words change, and what moves it: given the words, and the fraction that is done."""
    bar = Progress(
        BarColumn(bar_width=20), TextColumn("{task.description}", markup=False), console=Console(stderr=True)
    )
    task = bar.add_task(description, total=1.0)
    return bar, lambda words, fraction: bar.update(task, description=words, completed=fraction)


def stderr_is_log() -> bool:
    """Whether stderr is no terminal that lines can be moved on."""
    console = Console(stderr=True)
    return not console.is_terminal or console.is_dumb_terminal


def stderr_track(items: Sequence[T], name: str) -> Iterator[T]:
    """The items, one after the other, with a bar."""
    with stderr_progress(name) as progress:
        yield from progress.track(items)


@contextmanager
def stage_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage, as they begin; told (stage, how much is done, of how much)."""
    tasks: dict[str, TaskID] = {}
    with stderr_progress("{task.description}") as progress:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield show
