"""What an operator sees: lines in the log, names of requests, figures, and the dashboard that draws them."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines import faulty
from prometheus_client.parser import text_string_to_metric_families
from servers import LEAVES, Address, serving
from test_serving_server import CAT, DOG

from sagediff.serving.engine.model_thread import WaveReport
from sagediff.serving.fleet.fleet_metrics import FleetMetrics
from sagediff.serving.logs import RateBound, configured_logs
from sagediff.serving.metrics import Metrics
from sagediff.serving.tenants import Tenants

ROOT = Path(__file__).parent.parent.parent
KEYS = ("first secret", "second secret")
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def server(small_demo: Any) -> Iterator[Address]:
    with serving(lambda: small_demo, api_keys=KEYS) as address:
        assert address.engine.wait_until_loaded(60) == "ready"
        yield address


@pytest.fixture
def stderr_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], io.StringIO]]:
    """Configures the logs, and gives the stderr that they go to."""
    stack = ExitStack()

    def configured(form: Any) -> io.StringIO:
        stream = io.StringIO()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stream)
            stack.enter_context(configured_logs(form))
        return stream

    with stack:
        yield configured


@pytest.fixture
def stderr(stderr_of: Callable[[Any], io.StringIO]) -> io.StringIO:
    return stderr_of("json")


@pytest.fixture
def lines(stderr: io.StringIO) -> Lines:
    def read() -> list[dict[str, Any]]:
        """The lines of requests so far; each line must be JSON."""
        found = [json.loads(line) for line in stderr.getvalue().splitlines()]
        return [line for line in found if line["message"] == "request"]

    return read


def after(lines: Lines, count: int) -> list[dict[str, Any]]:
    """A request's line comes after its answer, so its client may have to wait for it."""
    give_up = time.monotonic() + 300
    while len(lines()) < count and time.monotonic() < give_up:
        time.sleep(0.01)
    assert len(lines()) == count
    return lines()


def test_a_line_for_each_request_says_who_what_and_how_long_but_neither_key_nor_prompt(
    server: Address, lines: Lines, stderr: io.StringIO
) -> None:
    answer = server.post(KEYS[1], prompt=CAT, n=3, num_inference_steps=4)
    (line,) = after(lines, 1)
    assert line["id"] == answer.headers["x-request-id"] and line["level"] == "info"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/images/generations", 200)
    assert (line["outcome"], line["tenant"]) == ("ok", "key-2")
    assert (line["images_wanted"], line["images"], line["group_sizes"]) == (3, 3, [3])
    assert (line["evaluations"], line["evaluations_alone"]) == (8, 12)
    assert 0 < line["queue_seconds"] < line["seconds"] and 0 < line["run_seconds"] < line["seconds"]
    assert not any(text in stderr.getvalue() for text in ("secret", CAT))


def test_streams_and_refusals_have_their_line_too(server: Address, lines: Lines) -> None:
    key = {"Authorization": f"Bearer {KEYS[0]}"}
    batch = {"prompts": [CAT, DOG]}
    httpx.post(f"{server.url}/v1/images/batches", json=batch, headers=key, timeout=60)
    server.post(KEYS[0], prompt=CAT, stream=True)
    server.post(None, prompt=CAT)
    server.post(KEYS[0], prompt=" ")
    server.post(KEYS[0])
    httpx.get(f"{server.url}/nowhere", headers=key)
    found = after(lines, 6)
    assert [(line["status"], line["outcome"], line["tenant"]) for line in found] == [
        (200, "ok", "key-1"),
        (200, "ok", "key-1"),
        (401, "invalid_api_key", None),
        (400, "invalid_value", "key-1"),
        (400, "invalid_value", "key-1"),
        (404, "not_found", "key-1"),
    ]
    assert [line.get("images") for line in found] == [2, 1, None, None, None, None]


def test_machines_that_ask_all_the_time_are_not_logged(server: Address, lines: Lines) -> None:
    for path in ("/health", "/ready", "/metrics"):
        httpx.get(server.url + path, headers={"Authorization": f"Bearer {KEYS[0]}"})
    httpx.get(server.url + "/metrics")
    assert [line["status"] for line in after(lines, 1)] == [401]


def test_a_client_that_leaves_is_told_apart_from_one_that_was_answered(small_demo: Any, lines: Lines) -> None:
    with serving(lambda: small_demo, window_ms=30_000.0) as slow:
        slow.engine.wait_until_loaded(60)
        for path, body in (
            ("generations", {"prompt": CAT}),
            ("generations", {"prompt": CAT, "stream": True}),
            ("batches", {"prompts": [CAT]}),
        ):
            with pytest.raises(httpx.TimeoutException), httpx.Client(timeout=LEAVES) as client:
                client.post(f"{slow.url}/v1/images/{path}", json=body)
        found = after(lines, 3)
    assert {line["outcome"] for line in found} == {"client_gone"}
    assert {line["images"] for line in found} == {0}


def test_a_failures_traceback_carries_the_requests_name_and_clients_learn_nothing_of_it(
    small_demo: Any, server: Address, lines: Lines, stderr: io.StringIO
) -> None:
    def fault(conditions: Any) -> None:
        raise RuntimeError("a secret of the denoiser's")

    with faulty(small_demo, fault):
        answer = server.post(KEYS[0], prompt=CAT)
    assert answer.status_code == 500 and "denoiser" not in answer.text
    (line,) = after(lines, 1)
    assert line["outcome"] == "image_failed"
    told = [json.loads(text) for text in stderr.getvalue().splitlines()]
    (failure,) = [entry for entry in told if "exception" in entry]
    assert failure["id"] == answer.headers["x-request-id"] and "a secret of" in failure["exception"]


@pytest.mark.parametrize(
    "given, kept", [("abc-1.2_X", True), ("a b", False), ("x" * 65, False), ('"}', False)]
)
def test_a_proxys_name_for_a_request_is_kept_if_it_is_harmless(
    server: Address, given: str, kept: bool
) -> None:
    answer = httpx.get(f"{server.url}/health", headers={"x-request-id": given})
    named = answer.headers["x-request-id"]
    assert (named == given) == kept and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", named)


def test_every_answer_is_named_and_no_two_alike(server: Address, lines: Lines) -> None:
    answers = [
        httpx.get(server.url + "/"),
        httpx.get(server.url + "/v1/models"),
        server.post(KEYS[0]),
        server.post(KEYS[0], prompt=CAT, stream=True),
    ]
    names = {answer.headers["x-request-id"] for answer in answers}
    assert len(names) == 4 and names == {line["id"] for line in after(lines, 4)}


def test_prompts_are_logged_only_if_the_operator_says_so(small_demo: Any, lines: Lines) -> None:
    with serving(lambda: small_demo, log_prompts=True) as talkative:
        talkative.engine.wait_until_loaded(60)
        talkative.post(prompt=CAT, n=2)
        assert after(lines, 1)[0]["prompts"] == [CAT, CAT]


def test_plain_text_is_one_line_a_request_whatever_the_path_holds(
    server: Address, stderr_of: Callable[[Any], io.StringIO]
) -> None:
    stderr = stderr_of("text")
    httpx.get(server.url + "/no%0Awhere", headers={"Authorization": f"Bearer {KEYS[0]}"})
    give_up = time.monotonic() + 300
    while "request" not in stderr.getvalue() and time.monotonic() < give_up:
        time.sleep(0.01)
    (line,) = stderr.getvalue().splitlines()
    assert 'path="/no\\nwhere" status=404 outcome="not_found" tenant="key-1"' in line


def test_warnings_that_anyone_may_cause_are_counted_rather_than_repeated() -> None:
    now = [0.0]
    bound = RateBound(lambda: now[0])

    def passed(logger: str, message: str, count: int = 1000) -> int:
        records = [logging.LogRecord(logger, logging.WARNING, "", 0, message, (), None) for _ in range(count)]
        return sum(map(bound.filter, records))

    assert passed("asyncio", "socket.accept() out of system resource\nsocket: 7") == 10
    assert passed("asyncio", "socket.accept() out of system resource\nsocket: 8") == 0
    assert passed("uvicorn.error", "Invalid HTTP request received.") == 10
    assert passed("sagediff.serving.engine.trajectory_cache", "a broken file") == 1000
    now[0] = 61.0
    later = logging.LogRecord("asyncio", logging.ERROR, "", 0, "another", (), None)
    assert bound.filter(later) and later.getMessage() == "another [2980 like earlier ones were left out]"


def test_asyncios_warnings_are_lines_like_ours(stderr: io.StringIO) -> None:
    logging.getLogger("asyncio").error("one\ntwo", extra={})
    (line,) = stderr.getvalue().splitlines()
    assert json.loads(line)["logger"] == "asyncio"


def test_labels_of_tenants_name_the_key_by_its_place() -> None:
    tenants = Tenants(KEYS, on_disk=False)
    assert [tenants.label(tenants.of(key) or "") for key in KEYS] == ["key-1", "key-2"]
    assert Tenants((), on_disk=False).label("") == "anyone"


def samples(server: Address) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = httpx.get(server.url + "/metrics", headers={"Authorization": f"Bearer {KEYS[0]}"}).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_figures_cover_a_request_from_the_queue_to_the_file(small_demo: Any) -> None:
    with serving(lambda: small_demo, api_keys=KEYS, window_ms=2000.0) as server:
        server.engine.wait_until_loaded(60)
        asking = threading.Thread(target=server.post, args=(KEYS[0],), kwargs={"prompt": CAT, "n": 4})
        asking.start()
        while server.engine.waiting < 4:
            time.sleep(0.01)
        assert samples(server)["sagediff_waiting", ()] == 4
        asking.join(60)
        server.post(KEYS[0], prompt=" ")
        server.post(None, prompt=CAT)
        found = samples(server)
    assert found["sagediff_waiting", ()] == 0
    assert found["sagediff_images_total", (("outcome", "image"),)] == 4
    assert found["sagediff_evaluations_total", ()] == 1 + 4 * 1
    assert found["sagediff_evaluations_saved_total", ()] == 3  # of 4 x 2 rows without guidance
    assert found["sagediff_wave_size_sum", ()] == found["sagediff_group_size_sum", ()] == 4
    assert found["sagediff_wave_size_count", ()] == found["sagediff_group_size_count", ()] == 1
    assert (
        found["sagediff_waited_seconds_count", ()] == 4 and found["sagediff_waited_seconds_sum", ()] > 4 * 0.2
    )
    assert found["sagediff_wave_seconds_count", ()] == found["sagediff_encode_seconds_count", ()] == 1
    route = (("route", "/v1/images/generations"),)
    assert found["sagediff_request_seconds_count", route] == 3
    for reason in ("invalid_value", "invalid_api_key"):
        assert found["sagediff_refused_total", (("reason", reason),)] == 1


def test_the_series_of_a_replica_that_has_gone_end_and_the_sums_stay() -> None:
    loads = {0: 2, 1: 1}
    metrics = Metrics()
    fleet = FleetMetrics(metrics, lambda: loads, ("home",))
    fleet.set_replicas(frozenset({0, 1}))
    wave = WaveReport((0.1,), 1.0, (1,), 6, 10, {"image": 1}, 0)
    for replica in (0, 1, 7, None):  # of the last two nothing is known; their waves count all the same
        fleet.wave_done(replica, wave, 100)
    assert fleet.cache_bytes() == 200
    del loads[0]
    fleet.set_replicas(frozenset({1}))
    text = metrics.text().decode()
    assert 'replica="0"' not in text and 'sagediff_replica_in_hand{replica="1"} 1.0' in text
    assert 'sagediff_replica_evaluations_saved_total{replica="1"} 4.0' in text
    assert "sagediff_evaluations_total 24.0" in text and fleet.cache_bytes() == 100
    assert 'sagediff_routed_total{how="home"} 0.0' in text


# -- the dashboard

WORDS = re.compile(r'\d[\w.]*(?:e-\d+)?|"[^"]*"|\[[^\]]*\]|[A-Za-z_:][A-Za-z0-9_:]*')
FUNCTIONS = {"sum", "rate", "increase", "histogram_quantile", "clamp_min", "max", "avg"}
SYNTAX = {"by", "on", "ignoring", "without", "offset", "bool", "and", "or", "unless"}


def known() -> tuple[set[str], set[str]]:
    """Names of all series that the server has, and their labels; a labelled one has none until it is counted."""
    metrics = Metrics()
    FleetMetrics(metrics, dict)
    registered: Any = metrics.registry
    names = set()
    for family in registered.collect():
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + ending for ending in endings}
    labels = {label for of in registered._collector_to_names for label in getattr(of, "_labelnames", ())}
    return names, labels | {"le", "instance", "job"}


def expressions() -> list[str]:
    panels = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def test_every_query_of_the_dashboard_names_what_the_server_has() -> None:
    names, labels = known()
    queries = expressions()
    used = set()
    for query in queries:
        assert all(query.count(a) == query.count(b) for a, b in ("()", "[]", "{}")), query
        for word in WORDS.findall(query):
            if word[0] in '"[0123456789' or word in FUNCTIONS | SYNTAX | labels:
                continue
            assert word in names, f"{query} names {word}, which the server does not have"
            used.add(word)
    # and what the server has is drawn: each metric in one query at least
    roots = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in names if "created" not in name} <= roots


def test_the_dashboards_panels_do_not_lie_on_each_other() -> None:
    panels = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
