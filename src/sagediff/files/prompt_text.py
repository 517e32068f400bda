"""What a prompt may be, wherever it comes from."""

from __future__ import annotations

import re

MAX_PROMPT = 100_000  # characters; no text encoder reads as many
# tab, the line and page breaks, and next line (U+0085) may stand in a text; no encoder knows the others
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


def text_fault(text: str) -> str:
    """What keeps a text from being a prompt, as the end of a sentence; empty for nothing. May be an empty text."""
    if len(text) > MAX_PROMPT:
        return f"has {len(text):,} characters; at most {MAX_PROMPT:,} are taken"
    found = _NO_TEXT.search(text)
    if found is None:
        return ""
    code = ord(found[0])
    if 0xD800 <= code <= 0xDFFF:
        return f"holds half of a surrogate pair (U+{code:04X}), which is no text; write it as UTF-8"
    if code == 0:
        return "holds a NUL character; is it UTF-16? Write it as UTF-8"
    return f"holds the control character U+{code:04X}; remove it"
