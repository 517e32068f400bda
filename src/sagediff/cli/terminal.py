"""What goes to stdout and stderr: in any encoding, read to the end or not, nothing in it that moves a cursor."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from typing import Any

from sagediff.printable import printable

_LONGEST = 1500  # characters of a message; it may quote what the user gave


def make_streams_lenient() -> None:
    r"""What a stream's encoding does not have is written as "\u2028" and so on, in place of a UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors="backslashreplace")


def print_json(value: Any, indent: int | None = None) -> None:
    """Print as JSON, readable where the stream is UTF-8, else in ASCII, so that it is JSON in any encoding."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    print(json.dumps(value, ensure_ascii=encoding != "utf8", indent=indent))


def complain(message: str, code: int) -> int:
    """Print one line to stderr; gives back the exit code."""
    text = printable(message)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 300]} … {text[-280:]}"
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed, too
        print(f"sagediff: {text}", file=sys.stderr)
    return code


def flush_stdout() -> None:
    """Write what is buffered now, where an error is still caught, and not while the interpreter ends."""
    if sys.stdout is not None:
        sys.stdout.flush()


def stdout_is_read() -> bool:
    """Whether the other end of a pipe is still there."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll on this system, or no real stdout
        return True


def give_up_stdout() -> None:
    """Nobody reads on: what is left in the buffer goes nowhere, without a word."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
