"""Lines on stderr: JSON for machines, or text for people."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any, Literal

_OURS = ("sagediff", "uvicorn")


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, what `extra={"fields": {...}}` brings, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """`time level message name=value ...`; text from outside is quoted, so that it cannot begin a line of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        said = (
            f"{name}={value if isinstance(value, int | float) else json.dumps(value)}"
            for name, value in fields.items()
        )
        return " ".join([super().formatMessage(record), *said])


def configure_logs(form: Literal["auto", "json", "text"]) -> None:
    """Send what the server and uvicorn say to stderr; `auto` is text on a terminal, else JSON."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextLines() if text else JsonLines())
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger("sagediff").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
