"""Embeddings of requests' prompts, computed once per prompt."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sagediff.plan.compatibility import Embed
from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.fleet.replica_protocol import Vector

log = logging.getLogger(__name__)

_MOST = 8192  # prompts remembered


class PromptVectors:
    """Embeds prompts and remembers recent ones. Not safe between threads."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._known: dict[str, Vector] = {}

    def of(self, requests: Sequence[QueuedRequest]) -> list[Vector | None]:
        """One vector per request, (D,); None for a request that may not share, which is not embedded, and for new
        prompts if the encoder fails."""
        texts = {request.prompt for request in requests if request.may_share}
        if len(self._known) > _MOST:
            self._known.clear()
        new = sorted(texts - self._known.keys())
        if new:
            try:
                self._known.update(zip(new, self._embed(new), strict=True))
            except Exception as error:  # an image without neighbours is better than none
                log.warning("prompts could not be embedded, and go to the least busy replica: %r", error)
        return [self._known.get(request.prompt) if request.may_share else None for request in requests]
