"""Log lines on stderr: JSON for machines, or text for people."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

_LEVELS = {"sagediff": logging.INFO, "uvicorn": logging.WARNING}


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


@contextmanager
def configured_logs(form: Literal["auto", "json", "text"]) -> Iterator[None]:
    """Send the log of the server and of uvicorn to stderr; `auto` is text on a terminal, else JSON. The loggers are
    restored at the end, for a program that goes on after the server."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextLines() if text else JsonLines())
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
