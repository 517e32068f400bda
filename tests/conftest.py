"""What all tests share: one thread in each process, no network, nothing skipped in CI, and the built-in pipeline."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any, TypeVar

import pytest

# Before anything imports huggingface_hub or torch; subprocesses inherit it.  As many processes as cores run tests:
# with more threads than cores, torch's wait for each other by spinning.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def skipped_in_ci_is_failed(report: Report) -> Report:
    """CI has all that tests need, so that one which is skipped there checks nothing and nobody knows."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} must not be skipped in CI: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return skipped_in_ci_is_failed((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return skipped_in_ci_is_failed((yield))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is made once for a module is made once: the tests that use it run in one process."""
    for item in items:
        assert isinstance(item, pytest.Function)
        scopes = {made.scope for each in item._fixtureinfo.name2fixturedefs.values() for made in each}
        if "module" in scopes and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=_group_of, reverse=True)  # Ray's first: the longest, which mostly wait


def _group_of(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("xdist_group")
    return marker is not None and marker.args == ("ray",)


@pytest.fixture(scope="session")
def demo() -> Any:
    """The built-in pipeline. Tests leave it as they found it."""
    from sagediff import load_pipeline

    pipe = load_pipeline("demo")
    pipe.set_progress_bar_config(disable=True)
    return pipe
