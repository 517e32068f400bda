"""What reaches a terminal, whatever a user wrote: one line for a mistake, no control sequences, any encoding."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sagediff.cli import main
from sagediff.cli.commands.show_plan import plan_table
from sagediff.errors import InputError
from sagediff.files.contact_sheet import contact_sheet
from sagediff.plan.share_plan import SharePlan
from sagediff.printable import printable

LONG = "x" * 5000
HOSTILE = "a cat [/INST] [red]ball[/red] :smile: \u202egnihton\x9b2J"


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command printed: one short line on stderr, nothing that a terminal would obey."""
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("sagediff: ")
    assert len(shown.err) < 2000 and printable(shown.err[:-1]) == shown.err[:-1]
    return shown.err


MISTAKES: list[list[str]] = [
    ["plan", "a \udcff"],
    ["generate", "a", "--out", "\udcff"],
    ["plan", "a \x1b[2J"],
    ["plan", "a", "--model", "\x1b[2J"],
    ["plan", "a", "--scheduler", "\x1b[2J\n\n"],
    ["\x1b[2J"],
    ["plan", "a", "--lora", "a", "--lora", "b"],
    ["generate", "a", "--seed", "1", "--seed", "2"],
    ["plan", "a", "--steps", "9" * 5000],
    *(["generate", "a", option, LONG] for option in ("--model", "--lora", "--policy", "--prompts", "--out")),
    ["bench", "--data", LONG],
    ["bench", "--reference", LONG],
    ["train", "--out", "o", "--data", LONG],
    ["train", "--out", LONG, "--data", "."],
    ["plan", "--prompts", "--steps"],
]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_names_that_cannot_be_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(MISTAKES[number]) == 2
    told(capsys)
    assert not list(tmp_path.iterdir())


ONCE = [
    ("--prompts", "p.txt"), ("--model", "demo"), ("--policy", "p"), ("--steps", "3"),
    ("--guidance", "2"), ("--threshold", "0.5"), ("--share-ratio", "0.5"), ("--max-group-size", "3"),
    ("--shared-guidance", "same"), ("--scheduler", "ddim"), ("--device", "cpu"), ("--no-lora",), ("--work", "w"),
    ("--encoder", "e"),
]  # fmt: skip


@pytest.mark.parametrize("option", ONCE, ids=lambda option: option[0])
def test_an_option_of_one_value_is_given_once(
    capsys: pytest.CaptureFixture[str], option: tuple[str, ...]
) -> None:
    assert main(["plan", *option, *option]) == 2
    assert f"{option[0]} is given more than once" in told(capsys)


def test_prompts_are_shown_as_they_are() -> None:
    from rich.console import Console

    shown = io.StringIO()
    prompts = [HOSTILE, "a dog [cat:bird:0.5]\nin two lines"]
    console = Console(file=shown, width=200, force_terminal=True)
    console.print(plan_table(SharePlan.from_groups([[0, 1]], 4), prompts))
    text = shown.getvalue()
    assert r"a cat [/INST] [red]ball[/red] :smile: \u202egnihton\x9b2J" in text
    assert r"a dog [cat:bird:0.5]\nin two lines" in text


def test_a_contact_sheet_takes_any_prompt(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for prompt in (HOSTILE, "a" * 100_000, "\U0001f408 \ud83d \x00"):
        assert contact_sheet([tmp_path / "a.png"], [prompt], [[0]], "title").width > 0


def test_printable_keeps_text_and_escapes_what_moves_a_cursor() -> None:
    assert printable("a café 東 🐈 [b]") == "a café 東 🐈 [b]"
    assert printable("\x1b[2J\n\t\x9b\u2028\ud83d\u202e") == r"\x1b[2J\n\t\x9b\u2028\ud83d\u202e"


class _Stream(io.TextIOWrapper):
    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_any_encoding_of_stdout_will_do(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream = _Stream(encoding)
    monkeypatch.setattr("sys.stdout", stream)
    prompt = "a café 東"
    assert main(["plan", prompt, "--steps", "2", "--json"]) == 0
    assert json.loads(stream.text())["groups"][0]["texts"] == [prompt]


def test_standard_input_is_a_prompt_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a cat\na dog\n")))
    assert main(["plan", "--prompts", "-", "--steps", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_prompts"] == 2


def process(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sagediff", *arguments],
        text=True,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a test run in the background ignores it
        **options,
    )


def test_nobody_reads_what_is_printed() -> None:
    read, write = os.pipe()
    os.close(read)
    running = process(["version"], stdout=write)
    os.close(write)
    assert running.communicate(timeout=120)[1] == "" and running.returncode == 1


def test_ctrl_c_is_one_line(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    running = process(["plan", "--prompts", str(pipe)], stdout=subprocess.DEVNULL)
    with pipe.open("w"):  # opened as soon as the command reads it
        time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=120)[1] == "sagediff: stopped; nothing was changed\n"
    assert running.returncode == 130


def test_what_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code in (
        (OSError(28, "No space left on device"), 1),
        (PermissionError(13, "Permission denied", "\x1b[2J"), 2),
        (MemoryError(), 1),
        (InputError("two\nlines"), 2),
    ):

        def fails(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(import_module("sagediff.cli.main"), "_run", fails)
        assert main(["plan"]) == code
        told(capsys)


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_do_not_spin_unless_it_is_asked_for(
    given: str | None, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert main(["version"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == used
