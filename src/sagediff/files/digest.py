"""Hashes of content: the same content has the same digest on every machine and in every version.

Digests name files and decide whether a run may be resumed. Secrets need other functions (`serving.config`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def bytes_digest(data: bytes, size: int = 16) -> str:
    """`size` bytes of BLAKE2b, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=size).hexdigest()


class RunningDigest:
    """As `bytes_digest`, of parts that come one after the other; their borders matter."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, part: bytes) -> None:
        self._digest.update(len(part).to_bytes(8, "little") + part)

    @property
    def value(self) -> str:
        """Of all parts so far."""
        return self._digest.hexdigest()


def texts_digest(texts: Iterable[str]) -> str:
    """Digest of a list of texts; their order and borders matter."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Digest of a file's content, read in blocks."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def object_digest(value: Any, size: int = 16) -> str:
    """Digest of any value that JSON can hold; the order of keys does not matter."""
    return bytes_digest(json.dumps(value, sort_keys=True).encode(), size)


def number_of(text: str) -> int:
    """A whole number of 64 bits derived from the text, for seeds and reproducible choices."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def cache_name(content: bytes) -> str:
    """Name for a file in a cache folder: 40 hexadecimal digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:40]
