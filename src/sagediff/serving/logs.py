"""Log lines on stderr: JSON for machines, or text for people."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

_LEVELS = {"sagediff": logging.INFO, "uvicorn": logging.WARNING, "asyncio": logging.WARNING}
_BY_ANYONE = ("asyncio", "uvicorn", "sagediff.serving.http.listener")
_MOST_ALIKE = 10  # lines of one message in a minute
_MINUTE = 60.0


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message, the `extra={"fields": {...}}`, a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """`time level message name=value ...`; text of clients is quoted, so that it cannot start a new line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        pairs = (
            f"{name}={value if isinstance(value, int | float) else json.dumps(value)}"
            for name, value in fields.items()
        )
        return " ".join([super().formatMessage(record), *pairs])


class RateBound(logging.Filter):
    """Leaves out warnings and errors that repeat, of those that anyone who can connect may cause: they must not fill a
    disk.

    A message counts by its first line, before values are filled in. The first after a minute says how many were left
    out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._since = clock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or not record.name.startswith(_BY_ANYONE):
            return True
        now = self._clock()
        if now - self._since > _MINUTE:
            left_out = sum(max(0, count - _MOST_ALIKE) for count in self._counts.values())
            self._counts, self._since = Counter(), now
            if left_out:
                record.msg = f"{record.msg} [{left_out} like earlier ones were left out]"
        place = record.name, str(record.msg).split("\n", 1)[0][:80]
        self._counts[place] += 1
        return self._counts[place] <= _MOST_ALIKE


@contextmanager
def configured_logs(form: Literal["auto", "json", "text"]) -> Iterator[None]:
    """Send the log of the server, of uvicorn and of asyncio to stderr; `auto` is text on a terminal, else JSON. The
    loggers are restored at the end, for a program that goes on after the server."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextLines() if text else JsonLines())
    handler.addFilter(RateBound())
    before = []
    for name, level in _LEVELS.items():
        logger = logging.getLogger(name)
        before.append((logger, logger.handlers[:], logger.propagate, logger.level))
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, handlers, propagate, level in before:
            logger.handlers[:] = handlers
            logger.propagate = propagate
            logger.setLevel(level)
