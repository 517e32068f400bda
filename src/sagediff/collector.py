"""Python's garbage collector, kept from looking for garbage where there is none.

Importing torch and diffusers makes half a million objects that all stay. To look through them again and again while
they are made, and once more when the process ends, takes a quarter of what a short command takes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_owned = False


def own_process() -> None:
    """Say that this process runs nothing but sagediff, so that `importing` may decide for all that is in it."""
    global _owned
    _owned = True


@contextmanager
def collection_paused() -> Iterator[None]:
    """No garbage is collected within; afterwards as before, whatever was raised."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """As `collection_paused`; in a process of our own, what is there at the end is never looked through again.

    For imports, before any weights are read: garbage among it stays too.
    """
    with collection_paused():
        yield
        if _owned:
            gc.freeze()
