"""Accepts connections, no more than the system has open files for; where they are used up, waiting ones make room."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from functools import partial

from sagediff.serving.http.connection import Connection

log = logging.getLogger(__name__)

_SPARE_FILES = 24  # for what the server opens itself: a model's files, the cache's
_FEWEST = 4
_CHECK = 0.5  # seconds between looks at all connections
_RETRY = 0.2  # seconds after the system refused a connection
_QUEUE = 512  # connections that the system keeps until they are accepted
_USED_UP = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Listener:
    """Connections of a server.

    Args:
        make: a connection that is not open, told what to call with it when it has ended.
        most: connections at once.
    """

    def __init__(self, make: Callable[[Callable[[Connection], None]], Connection], most: int) -> None:
        self._make, self._most = make, most
        self._open: set[Connection] = set()
        self._opening = 0
        self._lost = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, sockets: list[socket.socket]) -> None:
        """Accept what comes at these sockets, which are bound."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._check())]
        for each in sockets:
            each.listen(_QUEUE)
            each.setblocking(False)
            self._tasks.append(loop.create_task(self._accept(each)))

    async def stop_accepting(self) -> None:
        """Afterwards the sockets may be closed."""
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks[1:], return_exceptions=True)

    async def end(self) -> None:
        """Give up all connections that are left."""
        for task in self._tasks:
            task.cancel()
        for connection in list(self._open):
            connection.give_up()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _USED_UP:
                    log.warning("a connection could not be accepted: %s", error.strerror)
                    self._make_room()
                    await asyncio.sleep(_RETRY)
                continue  # else it was its client that gave up
            connection = self._make(self._has_ended)
            self._opening += 1
            try:
                await loop.connect_accepted_socket(partial(_given, connection), accepted)
                if not connection.ended:
                    self._open.add(connection)
            except OSError:
                accepted.close()
            finally:
                self._opening -= 1

    def _has_ended(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._lost.set()

    async def _room(self) -> None:
        """Returns when one more connection may be open."""
        while len(self._open) + self._opening >= self._most:
            self._lost.clear()
            self._make_room()
            try:
                await asyncio.wait_for(self._lost.wait(), _CHECK)
            except TimeoutError:
                continue

    def _make_room(self) -> None:
        """End the connection whose client has kept the server waiting for longest; none if none does."""
        waiting = [each for each in self._open if not each.at_work and not each.unread]
        slow = [each for each in self._open if each.unread]
        if waiting:
            min(waiting, key=lambda each: each.since).give_up()
        elif slow:
            first = min(slow, key=lambda each: each.read_at)
            if first.loop.time() - first.read_at > _CHECK:
                first.give_up()

    async def _check(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_CHECK)
            for connection in list(self._open):
                connection.check(loop.time())


def _given(connection: Connection) -> Connection:
    return connection


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at all addresses of a host.

    Raises:
        OSError: they cannot.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    out: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((each[0], each[4]) for each in found):
            given = (address[0], out[0].getsockname()[1], *address[2:]) if out and not port else address
            out.append(socket.create_server(given, family=family, backlog=_QUEUE))
    except OSError:
        for each in out:
            each.close()
        raise
    return out


def most_connections(wanted: int) -> int:
    """As many connections as wanted, or as the system allows open files beside those that are open now."""
    try:
        import resource
    except ImportError:  # Windows, which has no such bound
        return wanted
    try:
        opened = len(os.listdir("/proc/self/fd"))
    except OSError:
        opened = 32  # not Linux: a guess
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return wanted
    found = max(_FEWEST, min(wanted, allowed - opened - _SPARE_FILES))
    if found < wanted:
        log.info("at most %d connections at once: the system allows %d open files", found, allowed)
    return found
