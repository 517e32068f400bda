"""Connecting to Ray, and the resources of each worker. Only this folder imports Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sagediff.errors import InputError

NO_RAY = "--ray needs Ray: pip install 'sagediff[ray]'"
_REACHED_S = 5.0  # a cluster that takes longer to answer is of no use
_SETTINGS = b"\x04"
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + bytes(5)  # what gRPC begins with


@dataclass(frozen=True)
class PoolOptions:
    """Where the workers run, and the resources of each.

    Attributes:
        workers: their number.
        address: of a Ray cluster ("auto" for the one of this machine); None starts one here that ends with the run.
        cpus: cores per worker, which may be a fraction; None: an even part of this machine's cores, one in a cluster.
        gpus: GPUs per worker; a fraction lets several share one.

    Raises:
        InputError: a number out of range.
    """

    workers: int
    address: str | None = None
    cpus: float | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"there must be at least one worker, got {self.workers}")
        if self.gpus < 0 or (self.cpus is not None and self.cpus <= 0):
            raise InputError(
                f"a worker's cores must be above 0 and its GPUs at least 0, got {self.cpus} and {self.gpus}"
            )

    @property
    def cpus_per_worker(self) -> float:
        if self.cpus is not None:
            return self.cpus
        return max(1, usable_cores() // self.workers) if self.address is None else 1


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def connected(options: PoolOptions, serve: bool = False) -> Iterator[Any]:
    """Connect to Ray, or start it here and shut it down at the end; no dashboard, no usage reports.

    Args:
        serve: whether Ray Serve is needed too.

    Raises:
        InputError: Ray, or Ray Serve where it is needed, is not installed, or Ray cannot be started or reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # a thread of Ray Serve's that outlives the connection would start another Ray, for nobody
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # Ray's future default, set here to silence its warning
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if (
        options.address is None
    ):  # Ray's workers are nice by 15, and starve beside anything else that runs here
        os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
        import ray.exceptions

        if serve:
            import ray.serve
    except ImportError as error:
        raise InputError(NO_RAY) from error
    if options.address is not None and "RAY_USE_TLS" not in os.environ:
        check_reachable(_found_address(options.address))
    own = not ray.is_initialized()
    if own:
        try:
            if options.address is None:
                ray.init("local", num_cpus=usable_cores(), logging_level="ERROR", include_dashboard=False)
            else:
                ray.init(address=options.address, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = "start Ray here" if options.address is None else f"reach Ray at {options.address!r}"
            raise InputError(f"cannot {where}: {last_line(error)}") from error
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


def check_reachable(address: str, timeout: float = _REACHED_S) -> None:
    """Whether something like Ray answers at a cluster's address; Ray itself would try for minutes.

    Args:
        address: "HOST:PORT", also with "ray://" before it.

    Raises:
        InputError: it is of another form, or nobody who speaks gRPC answers within `timeout` seconds.
    """
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or parts.scheme != "ray":
        raise InputError(
            f"--ray takes 'local', 'auto' or the address of a cluster, HOST:PORT; got {address!r}"
        )
    try:
        with socket.create_connection((host, port), timeout) as connection:
            connection.sendall(_HTTP2_HELLO)
            answer = connection.recv(9)  # the head of a frame; the first one must be of settings
    except OSError as error:
        raise InputError(f"cannot reach Ray at {address!r}: {error.strerror or error}") from error
    if answer[3:4] != _SETTINGS:
        raise InputError(f"cannot reach Ray at {address!r}: something else answers there")


def _found_address(address: str) -> str:
    """Where Ray would look for the cluster of this machine ("auto"); other addresses are given back."""
    if address != "auto":
        return address
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found: str = canonicalize_bootstrap_address("auto")
    except (ConnectionError, ValueError) as error:
        raise InputError(f"cannot reach Ray at 'auto': {last_line(error)}") from error
    return found


def check_resources(ray: Any, options: PoolOptions, warn: Callable[[str], None]) -> None:
    """Check that Ray has the resources of all workers. A cluster may still grow, so there a lack is only a warning.

    Raises:
        InputError: a Ray that was started here lacks them.
    """
    available = ray.cluster_resources()
    needed = {"CPU": options.cpus_per_worker, "GPU": options.gpus}
    for name, amount in needed.items():
        if amount * options.workers <= available.get(name, 0):
            continue
        lack = f"{options.workers} workers ask for {amount:g} {name} each, and Ray has {available.get(name, 0):g}"
        if options.address is None:
            raise InputError(f"{lack}; take fewer workers or give each less")
        warn(f"{lack}; workers beyond that start when the cluster grows")


def last_line(error: BaseException) -> str:
    """The last line of an error of Ray's, which comes after its tracebacks."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
