"""What can anyone do to a server who can connect to it? Each attack is answered as documented, and `/health` meanwhile.

    OMP_NUM_THREADS=1 python benchmarks/serving_gate.py

Two servers of the built-in model run in processes of their own: one without keys that may have 64 open files, and one
with 300 keys that takes bodies of 64 MiB. Each attack is a row of the table: what it was answered, what that took, and
the longest that `/health`, asked all the time by another client, took to answer. The last attack on the first server
is SIGTERM while clients read nothing of their answers.

Exits with 1 if an answer is not the documented one, or `/health` took a second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

FILES, IDLE, KEYS = 64, 100, 300
RECEIVE, SEND, DRAIN = 5, 5, 20  # seconds
PATH = "/v1/images/generations"
JSON = {"Content-Type": "application/json"}
SLOWEST_HEALTH = 1.0


@dataclass(frozen=True)
class Running:
    """A server in its own process."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def mib(self) -> float:
        """Memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 2**20


@contextmanager
def running(folder: Path, files: int | None = None, **settings: object) -> Iterator[Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    log = folder / f"{port}.log"
    told = {f"SAGEDIFF_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "sagediff", "serve", "--port", str(port), "--steps", "2"]
    shell = f'ulimit -n {files}; exec "$@"' if files else 'exec "$@"'
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            ["bash", "-c", shell, "serve", *command], stderr=stderr, env=os.environ | told
        )
        try:
            give_up = time.monotonic() + 120
            while time.monotonic() < give_up and process.poll() is None:
                with suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/ready", verify=False).status_code == 200:
                        break
                time.sleep(0.1)
            yield Running(process, port, log)
        finally:
            process.kill()
            process.wait()


class Health:
    """Asks `/health` all the time, on a new connection each; the longest that it took since it was last asked."""

    def __init__(self, url: str) -> None:
        self._url, self._slowest, self._on = url, 0.0, True
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def slowest(self) -> float:
        found, self._slowest = self._slowest, 0.0
        return found

    def stop(self) -> None:
        self._on = False
        self._thread.join(30)

    def _ask(self) -> None:
        host, port = self._url.removeprefix("http://").split(":")
        while self._on:
            start = time.monotonic()
            try:
                with socket.create_connection((host, int(port)), timeout=20) as made:
                    made.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                    good = b" 200 " in made.recv(4096)
            except OSError:
                good = False
            took = time.monotonic() - start
            self._slowest = max(self._slowest, took if good or not self._on else 99.0)
            time.sleep(0.02)


def head(*lines: str, method: str = "POST", path: str = PATH) -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", "")).encode()


def status(answer: bytes) -> str:
    return answer.split()[1].decode() if answer.startswith(b"HTTP") else "closed"


def heard(made: socket.socket) -> bytes:
    parts = []
    with suppress(OSError):
        while part := made.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


# -- attacks: what was seen, and whether it is as documented


def smuggled(server: Running) -> tuple[str, bool]:
    before, sent = server.mib, 0
    with connect(server) as made:
        made.sendall(
            head("Content-Length: 5", "Transfer-Encoding: chunked", "Content-Type: application/json")
        )
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        with suppress(OSError):
            for _ in range(400):
                made.sendall(chunk)
                sent += 1
        answer = heard(made)
    grown = server.mib - before
    return f"{status(answer)}; {sent} of 400 MiB were sent, memory grew by {grown:.0f} MiB", (
        status(answer) == "400" and grown < 50
    )


def arrays(server: Running, expected: int) -> tuple[str, bool]:
    body = b"[" + b"[]," * 20_000_000 + b"[]]"
    start = time.monotonic()
    answer = httpx.post(server.url + PATH, content=body, headers=JSON | key(), timeout=60)
    seconds = time.monotonic() - start
    return f"{answer.status_code} {answer.json()['error']['code']} after {seconds:.1f} s", (
        answer.status_code == expected and seconds < 5
    )


def flood(server: Running) -> tuple[str, bool]:
    """Bodies of a size that is taken, many at a time, which would take long to parse."""
    body = b'{"a": [' + b"{}," * 300_000 + b"{}]}"

    def send(number: int) -> int:
        url = server.url + PATH
        return httpx.post(url, content=body, headers=JSON, timeout=60, verify=False).status_code

    start = time.monotonic()
    with ThreadPoolExecutor(24) as threads:
        found = set(threads.map(send, range(72)))
    return f"{found} after {time.monotonic() - start:.1f} s", found == {400}


def key(number: int = KEYS - 1) -> dict[str, str]:
    return {"Authorization": f"Bearer secret{number}"}


def trickled(server: Running, start: bytes) -> tuple[str, bool]:
    begun = time.monotonic()
    answer = b""
    with connect(server) as made:
        made.sendall(start)
        made.settimeout(0.2)
        while time.monotonic() - begun < 60:
            try:
                made.sendall(b"x")
                answer += (part := made.recv(4096))
                if not part:
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    seconds = time.monotonic() - begun
    return f"{status(answer)} after {seconds:.1f} s", seconds < RECEIVE + 3


def silent(server: Running) -> tuple[str, bool]:
    begun = time.monotonic()
    with connect(server) as made:
        answer = heard(made)
    seconds = time.monotonic() - begun
    return f"{status(answer)} after {seconds:.1f} s", seconds < RECEIVE + 2


def idle(server: Running) -> tuple[str, bool]:
    lines = server.log.read_bytes().count(b"\n")
    with ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(connect(server))
        start = time.monotonic()
        answer = httpx.post(server.url + PATH, json={"prompt": "a large cat"}, timeout=60, verify=False)
        seconds = time.monotonic() - start
    more = server.log.read_bytes().count(b"\n") - lines
    return f"an image after {seconds:.1f} s ({answer.status_code}); {more} lines in the log", (
        answer.status_code == 200 and seconds < 10 and more < 50
    )


def foreign(server: Running) -> tuple[str, bool]:
    found = set()
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80", "192.0.2.1"):
        for method, path in (("GET", "/v1/models"), ("GET", "/"), ("POST", PATH)):
            headers = JSON | {"Host": host}
            content = b'{"prompt": "a", "response_format": "url"}' if method == "POST" else b""
            answer = httpx.request(method, server.url + path, headers=headers, content=content, verify=False)
            found.add((answer.status_code, answer.json()["error"]["code"]))
    return f"{found}", found == {(400, "invalid_host")}


def many_keys(server: Running) -> tuple[str, bool]:
    """The last key, the first, and 300 that are none."""
    start = time.monotonic()
    with httpx.Client(verify=False) as client:
        good = {client.get(server.url + "/v1/models", headers=key(i)).status_code for i in (KEYS - 1, 0)}
        seconds = time.monotonic() - start
        bad = {client.get(server.url + "/v1/models", headers=key(KEYS + i)).status_code for i in range(KEYS)}
    return f"{good} after {seconds:.2f} s; others {bad}", good == {200} and bad == {401} and seconds < 1


def never_reads(server: Running) -> tuple[str, bool]:
    """Twenty clients that ask for much and read nothing; then SIGTERM."""
    ask = head(method="GET", path="/openapi.json")
    with ExitStack() as stack:
        for _ in range(20):
            made = stack.enter_context(socket.socket())
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.connect(("127.0.0.1", server.port))
            made.settimeout(0.5)
            with suppress(OSError):
                made.sendall(ask * 2000)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(120)
        seconds = time.monotonic() - start
    return f"exit {code} {seconds:.1f} s after SIGTERM", code == 0 and seconds < DRAIN + 1


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows: list[tuple[str, str, float, bool]] = []

    def attack(name: str, health: Health, run: Callable[[], tuple[str, bool]], ends: bool = False) -> None:
        health.slowest()
        seen, right = run()
        time.sleep(0.3)
        slowest = 0.0 if ends else health.slowest()
        rows.append((name, seen, slowest, right and slowest < SLOWEST_HEALTH))
        print(f"{name}: {seen}; health {slowest:.2f} s", file=sys.stderr, flush=True)

    times = {"receive_s": RECEIVE, "send_s": SEND, "drain_s": DRAIN}
    with TemporaryDirectory() as made:
        folder = Path(made)
        with running(folder, FILES, **times) as server:
            health = Health(server.url)
            attack("foreign Host", health, lambda: foreign(server))
            attack("Content-Length: 5 beside chunks", health, lambda: smuggled(server))
            attack("60 MB of `[],`", health, lambda: arrays(server, 413))
            attack("72 bodies of 300,000 objects, 24 at a time", health, lambda: flood(server))
            attack("no byte at all", health, lambda: silent(server))
            attack("a head, a byte at a time", health, lambda: trickled(server, head()[:-4] + b"\r\nX-A: "))
            body = head("Content-Type: application/json", "Content-Length: 9999")
            attack("a body, a byte at a time", health, lambda: trickled(server, body))
            attack(f"{IDLE} idle sockets, {FILES} open files", health, lambda: idle(server))
            attack("nobody reads, SIGTERM", health, lambda: never_reads(server), ends=True)
            health.stop()
        names = ",".join(f"secret{i}" for i in range(KEYS))
        with running(folder, api_keys=names, max_body_bytes=64 << 20, **times) as server:
            health = Health(server.url)
            attack(f"{KEYS} keys", health, lambda: many_keys(server))
            attack("60 MB of `[],`, 64 MiB allowed", health, lambda: arrays(server, 400))
            health.stop()
    print("| attack | answer | slowest `/health` | as documented |\n| --- | --- | ---: | --- |")
    for name, seen, slowest, right in rows:
        print(f"| {name} | {seen} | {slowest:.2f} s | {'yes' if right else '**no**'} |")
    print(json.dumps({"right": sum(row[3] for row in rows), "of": len(rows)}))
    sys.exit(0 if all(row[3] for row in rows) else 1)


if __name__ == "__main__":
    main()
