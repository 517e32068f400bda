"""How `--help` looks: headings, one option a line where 100 columns hold it, every default at the end of its line."""

from __future__ import annotations

import os
import re
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

WIDTH = 100
_WIDEST_NAME = 27  # columns; a longer name has its text below it
_GAP = 2
_BRACKETS = re.compile(r"\[[^]]*\]$")  # the default, which stays on one line
_DEFAULT = re.compile(r"\s*\[default: ([^]]*)\](\..*)$")  # before the end of a text
_NO_BREAK = "\0"
_ZERO = re.compile(r"(?<=\d)\.0\b")  # of whole floats


class HelpPage:
    """A formatter for cyclopts: no boxes, as wide as the terminal, at most `WIDTH`; as wide as that in a pipe."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print a group of options or commands."""
        rows = [(_name(entry), _text(entry)) for entry in panel.entries]
        if not rows:
            return
        console.print()
        _print(console, _plain(panel.title), style="bold")
        if note := _plain(panel.description):
            _print(console, textwrap.fill(note, _width(console) - _GAP), indent=_GAP)
        named = [len(name) for name, _ in rows if len(name) <= _WIDEST_NAME]
        start = _GAP + max(named, default=_WIDEST_NAME) + _GAP
        for name, text in rows:
            _print(console, _row(name, text, start, _width(console)))

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print the line of the command's form."""
        if form := _plain(usage).removeprefix("Usage:").strip():
            _print(console, f"Usage: {form}")

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Print what the command does."""
        for paragraph in _plain(description).split("\n\n"):
            if paragraph.strip():
                _print(console, "\n" + textwrap.fill(" ".join(paragraph.split()), _width(console)))


def _width(console: Console) -> int:
    """Columns of a line."""
    told = os.environ.get("COLUMNS", "")  # rich does not look at it where TERM is "dumb"
    known = int(told) if told.isdecimal() else console.width if console.is_terminal else WIDTH
    return max(40, min(WIDTH, known))


def _print(console: Console, text: str, *, style: str | None = None, indent: int = 0) -> None:
    """Print as it is: nothing in it is markup, and its lines are of the right width already."""
    shown = textwrap.indent(text, " " * indent)
    console.print(shown, style=style, markup=False, highlight=False, soft_wrap=True)


def _row(name: str, text: str, start: int, width: int) -> str:
    """A name, and its text from the column `start` on, over as many lines as it takes."""
    whole = _BRACKETS.sub(lambda found: found[0].replace(" ", _NO_BREAK), text)
    lines = textwrap.wrap(whole, width - start, break_on_hyphens=False) or [""]
    lines = [line.replace(_NO_BREAK, " ") for line in lines]
    beside = len(name) + 2 * _GAP <= start
    first = f"{' ' * _GAP}{name:<{start - _GAP}}{lines[0]}" if beside else f"{' ' * _GAP}{name}"
    rest = lines[1:] if beside else lines
    return "\n".join([first.rstrip(), *(" " * start + line for line in rest)])


def _name(entry: HelpEntry) -> str:
    """Names and value of an option, the short name first; an argument's or a command's own name."""
    if entry.positional_label:
        return f"{entry.positional_label}..."
    names = ", ".join([*entry.positive_shorts, *entry.positive_names])
    value = re.sub(r"\b(?:INT|FLOAT)\b", "N", entry.metavar or "").replace("STR", "TEXT")
    return f"{names} {value.replace('CHOICE', '|'.join(entry.choices or ('CHOICE',)))}".rstrip()


def _text(entry: HelpEntry) -> str:
    """What an option is for, and its default."""
    parts = [_DEFAULT.sub(r"\2 [default: \1]", " ".join(_plain(entry.description).split()))]
    if entry.required:
        parts.append("[required]")
    elif entry.default is not None:
        parts.append(f"[default: {_ZERO.sub('', str(entry.default))}]")
    return " ".join(part for part in parts if part)


def _plain(shown: Any) -> str:
    """The text of what cyclopts wraps for rich."""
    inner = getattr(shown, "primary_renderable", shown)
    return "" if inner is None else str(getattr(inner, "plain", inner)).strip()
