"""Which names of this server a browser may have been told: a page of another origin whose name resolves to this machine
sends that name as Host, and is refused by it (DNS rebinding)."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?", re.IGNORECASE)


class AllowedHosts:
    """Names by which the server may be addressed.

    Bound to this machine only, these are `localhost` and its addresses. Bound to others too, they are also the name
    bound to, this machine's own, and every IP address: no page can have an address for its name that is not its own.

    Args:
        bound: host name or address that the server listens at.
        names: further names; "*" allows all.
    """

    def __init__(self, bound: str, names: Sequence[str] = ()) -> None:
        self._all = "*" in names
        self._names = _LOCAL | {bound.lower(), *(name.lower().rstrip(".") for name in names)}
        self._addresses = not (bound.lower() == "localhost" or is_loopback(bound))
        if self._addresses:
            self._names |= {socket.gethostname().lower()}

    def allows(self, header: str) -> bool:
        """Whether a Host header, with or without a port, names this server."""
        match = _HOST.fullmatch(header)
        if match is None:
            return False
        name = (match[1] or match[2]).lower().rstrip(".")
        return (
            self._all or name in self._names or (_is_address(name) if self._addresses else is_loopback(name))
        )


def is_loopback(host: str) -> bool:
    """Whether it is an address of this machine that others cannot reach."""
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
