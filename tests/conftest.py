"""What all tests share: one thread in each process, no network, nothing skipped in CI, and the built-in pipeline."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

# Before anything imports huggingface_hub or torch; subprocesses inherit it.  As many processes as cores run tests:
# with more threads than cores, torch's wait for each other by spinning.  No test asks for a certificate, and httpx
# would read all of them for every client that it makes, which takes longer than most answers.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "SSL_CERT_DIR": os.devnull,
}

# Libraries make hundreds of thousands of objects that stay: to look through them for garbage again and again takes a
# sixth of the time that importing them takes, and some in every test.
gc.disable()

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
        if "ray" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("ray"), append=False)
        scopes = {made.scope for each in item._fixtureinfo.name2fixturedefs.values() for made in each}
        if "module" in scopes and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=_needs_ray, reverse=True)  # Ray's first: the longest, which mostly wait


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """Ray ends with the last test of its group, not of the session: doing nothing takes it 7 % of a core."""
    yield
    if _needs_ray(item) and not (nextitem and _needs_ray(nextitem)) and "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def _needs_ray(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("xdist_group")
    return marker is not None and marker.args == ("ray",)


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """One Ray of two cores for all tests that need one: to start and to end one, and Ray Serve on it, takes some ten
    seconds of the processor.  Pools and fleets leave it as they found it.  Its processes can import the tests' modules.
    """
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'sagediff[ray]'")
    from sagediff.distributed.ray_replicas import quiet_serve

    paths = [str(Path(__file__).parent / "distributed"), os.environ.get("PYTHONPATH", "")]
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_ENABLE_AUTO_CONNECT": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        quiet_serve()
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
            object_store_memory=128 * 2**20,
        )  # fmt: skip
        yield ray
        ray.shutdown()  # once more does nothing


@pytest.fixture(scope="session")
def demo() -> Any:
    """The built-in pipeline. Tests leave it as they found it."""
    from sagediff import load_pipeline

    pipe = load_pipeline("demo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def small_demo(demo: Any) -> Any:
    """The built-in pipeline but for its networks, which are small and random."""
    from tiny.small_demo import with_small_networks

    return with_small_networks(demo)


@pytest.fixture(scope="session")
def small_model(small_demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, for `--model`: with the built-in model's own settings, but for the LoRA's."""
    from sagediff.builtin.scenes import weights_dir

    folder = tmp_path_factory.mktemp("small-model") / "small"
    small_demo.save_pretrained(folder)
    (folder / "sagediff.json").write_bytes((weights_dir() / "sagediff.json").read_bytes())
    return folder
