"""One line in the log for every request, and its id in the answer. Plain ASGI, around everything else."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sagediff.serving.config import ServeConfig
from sagediff.serving.engine.ticket import Ticket
from sagediff.serving.http.admission import App, Message, Receive, Scope, Send
from sagediff.serving.metrics import Metrics
from sagediff.serving.tenants import Tenants

log = logging.getLogger(__name__)

_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,64}")  # nothing else gets into headers and logs
_LONGEST_PATH = 200


@dataclass
class RequestRecord:
    """What the log line of a request under way will say; `scope["state"]["record"]`.

    Attributes:
        id: its id in the log and in `x-request-id`.
        outcome: "ok", or the code of the error that ended it.
        tickets: of the images that it asks for.
    """

    id: str
    outcome: str = "ok"
    tickets: Sequence[Ticket] = field(default=())

    def image_figures(self) -> dict[str, Any]:
        """Counts and times of its images; empty if it asks for none."""
        if not self.tickets:
            return {}
        futures = [ticket.future for ticket in self.tickets]
        images = [future.result() for future in futures if future.done() and future.exception() is None]
        return {
            "images_wanted": len(self.tickets),
            "images": len(images),
            # the longest wait and the longest run: images of one request may be in several waves
            "queue_seconds": round(max(ticket.waited for ticket in self.tickets), 4),
            "run_seconds": round(max(ticket.ran for ticket in self.tickets), 4),
            "evaluations": round(sum(image.evaluations for image in images), 3),
            "evaluations_alone": round(sum(image.evaluations_alone for image in images), 3),
            "group_sizes": sorted({image.group: image.group_size for image in images}.values(), reverse=True),
        }


class RequestLog:
    """Logs a request once its answer has ended, streams included.

    Args:
        quiet: paths polled by machines; logged only if refused or failed.
        timed: paths whose time is measured. A fixed few, as each becomes a series of the metrics.
    """

    def __init__(
        self,
        app: App,
        config: ServeConfig,
        tenants: Tenants,
        metrics: Metrics,
        quiet: frozenset[str],
        timed: frozenset[str],
    ) -> None:
        self._app, self._config, self._tenants, self._metrics = app, config, tenants, metrics
        self._quiet, self._timed = quiet, timed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(scope))
        scope.setdefault("state", {})["record"] = record
        started, status = time.monotonic(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except BaseException:
            if record.outcome == "ok":
                record.outcome = "failed"
            raise
        finally:
            self._log(scope, record, status, time.monotonic() - started)

    def _log(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        path: str = scope["path"]
        if path in self._timed:
            self._metrics.answered(path, seconds)
        if path in self._quiet and status < 400:
            return
        tenant = scope["state"].get("tenant")
        fields: dict[str, Any] = {
            "id": record.id,
            "method": scope["method"],
            "path": path[:_LONGEST_PATH],
            "status": status,
            "outcome": record.outcome,
            "tenant": None if tenant is None else self._tenants.label(tenant),
            "seconds": round(seconds, 4),
            **record.image_figures(),
        }
        if self._config.log_prompts and record.tickets:
            fields["prompts"] = [ticket.request.prompt for ticket in record.tickets]
        log.info("request", extra={"fields": fields})


def _request_id(scope: Scope) -> str:
    """The id that a proxy in front of the server gave it, else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if _HARMLESS.fullmatch(given) else secrets.token_hex(8)
