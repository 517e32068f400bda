"""Images answered as URLs: kept in memory for a while, oldest dropped first, each readable by its tenant only."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StoredImage:
    """An encoded image, its tenant, and the time until which it is kept."""

    data: bytes
    media_type: str
    tenant: str
    until: float


class ImageStore:
    """Bounded in bytes and in time. Not safe between threads.

    Args:
        limit: most bytes; an image larger than that is not kept.
        seconds: how long one is kept.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float]) -> None:
        self._limit, self._seconds, self._clock = limit, seconds, clock
        self._images: OrderedDict[str, StoredImage] = OrderedDict()
        self.size = 0  # bytes kept

    def put(self, data: bytes, media_type: str, tenant: str) -> str:
        """Keep an image; returns a name that cannot be guessed."""
        name = secrets.token_urlsafe(24)
        self._images[name] = StoredImage(data, media_type, tenant, self._clock() + self._seconds)
        self.size += len(data)
        self._forget()
        return name

    def get(self, name: str, tenant: str) -> StoredImage | None:
        """None for an unknown name, or another tenant's."""
        self._forget()
        found = self._images.get(name)
        return found if found is not None and found.tenant == tenant else None

    def _forget(self) -> None:
        now = self._clock()
        while self._images:
            oldest = next(iter(self._images.values()))
            if self.size <= self._limit and oldest.until > now:
                return
            self._images.popitem(last=False)
            self.size -= len(oldest.data)
