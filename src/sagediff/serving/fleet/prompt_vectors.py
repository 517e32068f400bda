"""What requests mean, embedded once a prompt."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sagediff.plan.compatibility import Embed
from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.fleet.replica_protocol import Vector

log = logging.getLogger(__name__)

_MOST = 8192  # prompts remembered


class Meanings:
    """Prompts to vectors, remembering those of late. Not safe between threads."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._known: dict[str, Vector] = {}

    def of(self, requests: Sequence[QueuedRequest]) -> list[Vector | None]:
        """Of each request (D,); None for one that may not share, which is not even embedded, and for new ones if the
        encoder fails."""
        texts = {request.prompt for request in requests if request.may_share}
        if len(self._known) > _MOST:
            self._known.clear()
        new = sorted(texts - self._known.keys())
        if new:
            try:
                self._known.update(zip(new, self._embed(new), strict=True))
            except Exception as error:  # an image without neighbours is better than none
                log.warning("prompts could not be embedded, and go to whoever is least busy: %r", error)
        return [self._known.get(request.prompt) if request.may_share else None for request in requests]
