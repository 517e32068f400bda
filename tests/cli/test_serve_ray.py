"""`sagediff serve --ray` with real replicas, from the command line and from the fleet."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from engines import CAT, DOG, STAR, close, results, wanted
from fleets import PATIENCE, until

from sagediff.cli import main
from sagediff.cli.job_options import replica_range
from sagediff.distributed.cluster import PoolOptions, usable_cores
from sagediff.errors import InputError
from sagediff.files.claimed_folder import claimed_folder
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve
from sagediff.serving.config import ServeConfig
from sagediff.serving.engine.model_thread import Engine
from sagediff.serving.failures import Cancelled
from sagediff.serving.fleet.ray_fleet import ray_fleet
from sagediff.serving.local_engine import ServeRequest
from sagediff.serving.metrics import Metrics

pytestmark = pytest.mark.xdist_group("ray")  # one Ray at a time

STEPS = 100  # of a request whose replica is to be killed meanwhile


# -- the command, first: while it runs, no other Ray does


def test_the_command_serves_on_replicas_and_drains(tmp_path: Path, small_model: Path) -> None:
    # over 10 s: the command and its replica each load the model
    pytest.importorskip("ray.serve")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "sagediff", "serve", "--port", str(port), "--steps", "2", "--ray", "local",
        "--model", str(small_model),
        "--replicas", "1:2", "--replica-cpus", "0.5", "--cache-dir", str(tmp_path),
        "--window-ms", "2000",  # in which the last request is seen to be in flight
    ]  # fmt: skip
    answers: list[httpx.Response] = []

    def ask() -> None:
        body = {"prompt": CAT, "num_inference_steps": 20}
        answers.append(httpx.post(f"{url}/v1/images/generations", json=body, timeout=PATIENCE))

    # a file, as nobody reads a pipe meanwhile
    with (tmp_path / "stderr").open("w") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            until(lambda: ready(url), every=0.25)
            body = {"prompt": CAT, "n": 3, "stream": True, "partial_images": 1}
            streamed = httpx.post(f"{url}/v1/images/generations", json=body, timeout=PATIENCE)
            assert streamed.text.count("event: image_generation.completed") == 3
            body = {"prompt": CAT, "size": "33x33"}
            odd = httpx.post(f"{url}/v1/images/generations", json=body, timeout=PATIENCE)
            assert odd.status_code == 400  # the front knows what the model's sizes are
            asking = threading.Thread(target=ask)
            asking.start()
            until(
                lambda: "sagediff_waiting 1.0" in httpx.get(f"{url}/metrics", timeout=PATIENCE).text,
                every=0.05,
            )
            process.send_signal(signal.SIGTERM)
            asking.join(PATIENCE)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    told = (tmp_path / "stderr").read_text()
    assert [answer.status_code for answer in answers] == [200]
    assert all(line.startswith("{") for line in told.splitlines()), told  # Ray adds nothing to our log
    assert (tmp_path / "replica-0").is_dir()


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=PATIENCE).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


# -- the fleet


def request_of(folder: Path) -> ServeRequest:
    model = ModelOptions(str(folder), no_lora=True, scheduler="dpm++", device="cpu", dtype="float32")
    settings = resolve(
        model, SamplingOptions(2, 4.0), {"threshold": 0.35, "share_ratio": 0.5, "repeats": "share"}
    )
    return ServeRequest(settings, settings.sharing, None, {}, least_replicas=2)


class Running:
    def __init__(self, fleet: Any, metrics: Metrics) -> None:
        self.fleet, self.metrics = fleet, metrics

    def figure(self, name: str) -> float:
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in self.metrics.text().decode().splitlines()
            if line.startswith(name)
        )


@pytest.fixture(scope="module")
def running(ray: Any, small_model: Path) -> Iterator[Running]:
    pytest.importorskip("ray.serve")
    metrics = Metrics(lambda: fleet.waiting)
    failures: list[Exception] = []
    # long enough for what is sent together to wait together, however slowly it comes through
    config = ServeConfig.of(max_batch=8, window_ms=2000.0)
    options = PoolOptions(2, cpus=0.5)
    request = request_of(small_model)
    with ray_fleet(request, config, metrics, options, failures.append, failures.append) as fleet:  # type: ignore[arg-type]
        fleet.start()
        assert fleet.wait_until_loaded(PATIENCE) == "ready", failures
        until(lambda: len(fleet._replicas.loads()) == 2)
        yield Running(fleet, metrics)
        fleet.stop(PATIENCE)
    assert fleet.state == "stopped" and not failures


def replica_processes(driver: int) -> list[int]:
    """Of the Ray that the driver started; Ray gives its processes a title."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                number = int(entry.name)
                parents[number] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                titles[number] = (entry / "cmdline").read_bytes()

    def below(number: int) -> bool:
        while number in parents and number != driver:
            number = parents[number]
        return number == driver

    return [number for number, title in titles.items() if b"ServeReplica:sagediff" in title and below(number)]


def test_seeds_give_the_images_of_one_engine_and_previews_come_through(
    running: Running, small_model: Path
) -> None:
    from sagediff.serving.local_engine import local_engine

    images = [wanted(f"one {seed}", prompt, seed=seed) for seed, prompt in enumerate((CAT, DOG, STAR))]
    shown: list[int] = []
    tickets = running.fleet.submit(images, 2, lambda ticket, preview: shown.append(preview.number))
    here = results(tickets)
    engine: Engine
    engine = local_engine(
        request_of(small_model), ServeConfig.of(max_batch=8), 64, lambda report: None, print
    )
    engine.start()
    engine.wait_until_loaded(PATIENCE)
    alone = results(engine.submit([wanted(f"two {i}", p.prompt, seed=p.seed) for i, p in enumerate(images)]))
    engine.stop(PATIENCE)
    assert all(close(a.image, b.image) and a.seed == b.seed for a, b in zip(here, alone, strict=True))
    assert shown and all(ticket.waited > 0 and ticket.ran > 0 for ticket in tickets)
    assert np.asarray(here[0].image).std() > 1


def test_what_means_the_same_meets_and_metrics_say_so(running: Running) -> None:
    before = running.figure("sagediff_evaluations_saved_total")
    made = results(running.fleet.submit([wanted(f"{i} {p}", p) for p in (CAT, STAR) for i in range(4)]))
    assert min(image.group_size for image in made) >= 2
    until(lambda: running.figure("sagediff_evaluations_saved_total") > before)
    text = running.metrics.text().decode()
    assert 'sagediff_replica_in_hand{replica="0"}' in text and "sagediff_replicas 2.0" in text
    assert running.figure('sagediff_routed_total{how="founded"}') >= 1
    assert running.figure("sagediff_replica_evaluations_saved_total") > 0


def test_who_leaves_frees_his_replica(running: Running) -> None:
    tickets = running.fleet.submit([wanted("leaves", num_inference_steps=5000)])
    until(lambda: sum(running.fleet._replicas.loads().values()) == 1)
    running.fleet.cancel(tickets)
    assert isinstance(results(tickets)[0], Cancelled)
    assert hasattr(results(running.fleet.submit([wanted("next")]))[0], "image")


def test_nothing_is_lost_nor_answered_twice_when_a_replica_is_killed(running: Running) -> None:
    victim = replica_processes(os.getpid())[0]
    requests = [
        wanted(f"long {i}", prompt, seed=i, num_inference_steps=STEPS)
        for i, prompt in enumerate((CAT, DOG) * 3)
    ]
    shown: list[str] = []  # requests that have come a third of their way
    tickets = running.fleet.submit(requests, 2, lambda ticket, _: shown.append(ticket.request.id))
    answered: list[str] = []
    for ticket in tickets:
        ticket.future.add_done_callback(lambda _, ticket=ticket: answered.append(ticket.request.id))
    until(lambda: list(running.fleet._replicas.loads().values()) == [3, 3])
    until(lambda: shown)
    os.kill(victim, signal.SIGKILL)
    made = results(tickets)
    assert [image.seed for image in made] == list(range(6))
    assert sorted(answered) == sorted(ticket.request.id for ticket in tickets)
    assert running.figure("sagediff_replica_calls_broken_total") >= 1
    until(lambda: len(running.fleet._replicas.loads()) == 2)  # it is replaced
    text = running.metrics.text().decode()
    assert 'sagediff_replica_in_hand{replica="2"}' in text
    assert sum("sagediff_replica_evaluations_total{" in line for line in text.splitlines()) == 2
    repeated = running.fleet.submit([wanted("again", CAT, seed=0, num_inference_steps=STEPS)])
    assert close(results(repeated)[0].image, made[0].image)


# -- what the command refuses


def test_more_replicas_than_there_are_cores_for_are_refused(
    ray: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray.serve")
    assert main(["serve", "--ray", "local", "--replicas", f"1:{usable_cores() + 2}"]) == 2
    assert "take fewer" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "2:1", "0:3", "a", "1:", ":2", "1:2:3", "-1"])
def test_replicas_that_cannot_be_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="--replicas"):
        replica_range(text)
    assert main(["serve", "--ray", "local", f"--replicas={text}"]) == 2


def test_how_replicas_are_asked_for() -> None:
    assert [replica_range(text) for text in (None, "3", "1:4")] == [(1, 1), (3, 3), (1, 4)]


def test_companions_of_ray_are_refused_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--replicas", "2"]) == 2
    assert "add --ray local" in capsys.readouterr().err


def test_without_ray_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    assert main(["serve", "--ray", "local"]) == 2
    assert "sagediff[ray]" in capsys.readouterr().err


def test_no_two_processes_claim_one_cache_folder(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from sagediff.files.claimed_folder import claimed_folder;"
        f"print(claimed_folder(Path({str(tmp_path)!r})).name)"
    )
    assert claimed_folder(tmp_path).name == "replica-0"
    for _ in range(2):  # the second finds what the first, which has ended, has let go
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert told.strip() == "replica-1"
