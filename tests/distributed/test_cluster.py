"""An address where no cluster is: answered in seconds, in words, whatever listens there. Needs no Ray."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from sagediff.distributed.cluster import check_reachable
from sagediff.errors import InputError

SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # an empty frame of settings, as every gRPC server sends one first


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """The address of somebody who says `answer` to everybody; None says nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                while connection.recv(64):
                    if answer is None:
                        continue
                    connection.sendall(answer)
                    if not answer:
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
    thread.join(5)


def test_a_cluster_is_told_by_its_first_word() -> None:
    with listening(SETTINGS) as address:
        check_reachable(address)
    with listening(SETTINGS) as address:
        check_reachable(f"ray://{address}")


@pytest.mark.parametrize(
    "answer, words",
    [(b"HTTP/1.1 400 Bad Request\r\n", "something else"), (b"", ""), (None, "timed out")],
)
def test_what_listens_and_is_no_cluster_is_said_in_seconds(answer: bytes | None, words: str) -> None:
    start = time.monotonic()
    with listening(answer) as address, pytest.raises(InputError, match=rf"cannot reach Ray at .*{words}"):
        check_reachable(address, timeout=0.2)
    assert time.monotonic() - start < 5


def test_nobody_and_no_address_are_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match=r"cannot reach Ray at .*refused"):
            check_reachable(f"127.0.0.1:{unused.getsockname()[1]}")
    for address in (
        "",
        "host",
        "host:",
        ":6379",
        "host:port",
        "host:99999",
        "http://host:6379",
        "[::1",
        "a b",
    ):
        with pytest.raises(InputError, match="--ray takes 'local', 'auto' or the address"):
            check_reachable(address)
