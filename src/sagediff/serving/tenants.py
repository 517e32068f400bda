"""Who a request's API key makes it: its tenant. All of it is computed once, when the server starts."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor


class Tenants:
    """API keys and their tenants.

    A request's key is looked up by a keyed digest under a secret of this process: as fast for 300 keys as for one, and
    as nobody can choose the digest of what he sends, the time that the look-up takes tells nothing about other keys.

    Args:
        keys: those that are accepted. None: no key is needed, and all clients are one tenant.
        on_disk: whether tenants are written into files. They are then derived from the keys, equal after a restart, by
            a function that is slow on purpose, as a weak key could be guessed from a fast one's result (some 50 ms
            for each key, on all cores). Otherwise they are random.
    """

    def __init__(self, keys: Sequence[str], on_disk: bool) -> None:
        self._secret = secrets.token_bytes(32)
        if on_disk:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                names = list(threads.map(_slow_name, keys))
        else:
            names = [secrets.token_hex(8) for _ in keys]
        self._by_digest = {self._digest(key): name for key, name in zip(keys, names, strict=True)}
        self._labels = {name: f"key-{number}" for number, name in enumerate(names, 1)}

    def of(self, key: str | None) -> str | None:
        """The tenant of an API key, from which the key cannot be derived; None if the key is not accepted."""
        if not self._by_digest:
            return ""
        return None if key is None else self._by_digest.get(self._digest(key))

    def label(self, tenant: str) -> str:
        """A tenant's name in logs: the number of its key, from 1. No digest: it would give a weak key away."""
        return self._labels.get(tenant, "anyone")

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode(), key=self._secret, digest_size=32).digest()


def _slow_name(key: str) -> str:
    return hashlib.scrypt(key.encode(), salt=b"sagediff tenant", n=2**14, r=8, p=1, dklen=8).hex()
