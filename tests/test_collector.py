"""The garbage collector is as it was after what pauses it, and what is kept from it for good only where we may."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from sagediff import InputError, load_pipeline
from sagediff.collector import collection_paused, importing

KEPT = """
import gc
from sagediff.collector import importing, own_process
{owned}
for _ in range(2):
    with importing():
        made = [[] for _ in range(1000)]
        assert not gc.isenabled()
    assert gc.isenabled()
print(gc.get_freeze_count())
"""


@pytest.mark.parametrize("pause", [collection_paused, importing])
@pytest.mark.parametrize("enabled", [True, False])
def test_collection_is_as_before_whatever_was_raised(pause: object, enabled: bool) -> None:
    assert callable(pause)
    was_enabled, frozen = gc.isenabled(), gc.get_freeze_count()
    (gc.enable if enabled else gc.disable)()
    try:
        with pause(), pause():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        with pytest.raises(KeyError), pause():
            raise KeyError
        assert gc.isenabled() is enabled
        with pytest.raises(InputError):
            load_pipeline("no/such", scheduler="no such")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
    assert gc.get_freeze_count() == frozen  # this process is not sagediff's own


@pytest.mark.parametrize("owned, kept", [("", False), ("own_process()", True)])
def test_only_in_a_process_of_our_own_are_imports_kept_for_good(owned: str, kept: bool) -> None:
    code = KEPT.format(owned=owned)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (int(told) > 1000) is kept
