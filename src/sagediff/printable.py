"""Texts of others, made fit for a terminal or a drawing: nothing in them moves the cursor or reorders the line."""

from __future__ import annotations

import re

# C0 and C1 controls, half surrogates, line separators, and the marks that reorder a line (Unicode's bidi controls)
_NOT_SHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb]"
)


def printable(text: str) -> str:
    r"""The text on one line, each control character as its escape, as in "\x1b[2J"."""
    return _NOT_SHOWN.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")
