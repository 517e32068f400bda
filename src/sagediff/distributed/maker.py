"""What makes a worker, on its way to the worker's process."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from sagediff.collector import importing, own_process


def packed(make: Callable[[], Any]) -> bytes:
    """A maker with all it holds, to be passed on as bytes: Ray would read it before the worker's own code runs."""
    from ray import cloudpickle

    data: bytes = cloudpickle.dumps(make)
    return data


def made_by(maker: bytes) -> Any:
    """What a packed maker makes, in the worker's process, which is taken as our own."""
    own_process()
    with importing():
        make = pickle.loads(maker)
    return make()
