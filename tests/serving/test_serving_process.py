"""`sagediff serve` as a process of its own: from the command line to SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from sagediff.cli import main

CAT = "a large cat at the top on a red background"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_the_server_starts_answers_and_drains_when_told_to_end() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "sagediff",
        "serve",
        "--port",
        str(port),
        "--steps",
        "2",
        "--window-ms",
        "30000",
    ]
    environment = os.environ | {"SAGEDIFF_API_KEYS": "secret"}
    headers = {"Authorization": "Bearer secret"}
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(
            httpx.post(f"{url}/v1/images/generations", json={"prompt": CAT}, headers=headers, timeout=300)
        )

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            until(lambda: httpx.get(f"{url}/ready", timeout=5).status_code == 200)
            asking = threading.Thread(target=ask)
            asking.start()
            until(lambda: "sagediff_waiting 1.0" in httpx.get(f"{url}/metrics", headers=headers).text)
            process.send_signal(signal.SIGTERM)
            asking.join(300)
            assert process.wait(300) == 0
        finally:
            process.kill()
        assert process.stderr is not None
        told = process.stderr.read()
    assert [answer.status_code for answer in answers] == [200]
    made = answers[0].json()["data"][0]
    assert made["evaluations"] == 2  # the LoRA's own way, without guidance
    assert "1 API keys" in told and "secret" not in told
    lines = [
        json.loads(line) for line in told.splitlines()
    ]  # every one of them: no terminal, so for machines
    (request,) = [line for line in lines if line.get("path") == "/v1/images/generations"]
    assert (request["status"], request["tenant"], request["images"]) == (200, "key-1", 1)


def until(happened: object) -> None:
    """Waits for it, five minutes at most."""
    give_up = time.monotonic() + 300
    while time.monotonic() < give_up:
        try:
            if callable(happened) and happened():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("it did not happen within five minutes")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--port", "70000"], "port"),
        (["--window-ms", "-1"], "window_ms"),
        (["--max-batch", "0"], "max_batch"),
        (["--max-queue", "3"], "max_n"),
        (["--steps", "500"], "SAGEDIFF_MAX_STEPS"),
        (["--model", "no such model"], "no model"),
        (["--share-ratio", "2"], "--share-ratio"),
        (["--log-format", "xml"], "--log-format"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_model_is_loaded(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options]) == 2
    assert words in capsys.readouterr().err


def test_an_address_that_is_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        assert main(["serve", "--port", str(listening.getsockname()[1])]) == 1
    assert "cannot listen" in capsys.readouterr().err
