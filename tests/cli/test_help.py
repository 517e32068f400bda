"""`--help`: options in groups, one a line, with their defaults, and examples that run as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sagediff.cli import main
from sagediff.cli.command_table import COMMANDS
from sagediff.cli.main import app
from sagediff.cli.options import GROUPS
from sagediff.options import types_of
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions
from sagediff.plan.sharing import Sharing

SMALLER = {  # what makes a command's examples cheap, and no other
    "generate": ["--steps", "1"],
    "plan": [],
    "tune": ["--captions", "2", "--steps", "1"],
    "train": ["--steps", "1", "--train-batch-size", "2", "--rank", "1", "--report-to", "none"],
    "bench": ["--captions", "2", "--steps", "2", "--share-ratio", "0.5", "--seeds", "0"],
    "serve": [],
}


def page(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main([*command, "--help"]) == 0
    return capsys.readouterr().out


def options(text: str) -> dict[str, str]:
    """The lines of a page that begin an option, by its long name; with what follows on further lines."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if begins := re.match(r"  (?:-\w, )?(--[\w-]+)", line):
            name = begins[1]
            found[name] = line
        elif name and line.startswith(" " * 8):
            found[name] += "\n" + line
        else:
            name = ""
    return found


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_grouped_and_say_their_default(
    command: str, wide: None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page(capsys, command)
    assert max(map(len, text.splitlines())) <= 100 and not re.search("[╭│╰]", text)
    headings = re.findall(r"^([A-Z]\w+)$", text, re.MULTILINE)
    assert headings == sorted(headings, key=[*GROUPS, "Examples"].index)
    assert len(headings) >= 5 and headings[-1] == "Examples"
    found = options(text)
    assert len(found) > 10
    for name, lines in found.items():
        takes_value = re.match(rf"  (?:-\w, )?{name} \S", lines)
        if takes_value and name != "--prompts":
            assert lines.endswith("]") and re.search(r"\[(default: [^]\n]+|required)\]$", lines), lines
    over = [name for name, lines in found.items() if "\n" in lines]
    assert len(over) <= len(found) // 6, f"make these one line each: {over}"


def test_defaults_on_the_page_are_those_that_are_declared(
    wide: None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = options(page(capsys, "generate"))
    for cls in (Sharing, ModelOptions, SamplingOptions):
        for each in fields(cls):
            if (
                each.metadata["flag"] is False
                or each.default in (None, MISSING, ())
                or types_of(cls)[each.name] is bool
            ):
                continue
            flag = each.metadata["flag"] if isinstance(each.metadata["flag"], str) else each.name
            default = f"{each.default:g}" if isinstance(each.default, float) else each.default
            assert found["--" + flag.replace("_", "-")].endswith(f"[default: {default}]")
    assert found["--seed"].endswith("[default: 0]") and found["--worker-gpus"].endswith("[default: 0]")


def test_pages_follow_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = page(capsys, "generate").partition("\nExamples\n")[0]
    assert 50 < max(map(len, text.splitlines())) <= 60
    assert "--share-ratio" in text and "[default: 0.4]" in text


def test_the_first_page_lists_the_commands_in_the_order_of_their_use(
    wide: None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page(capsys)
    assert re.findall(r"^  ([a-z]+)  ", text, re.MULTILINE) == list(COMMANDS)
    assert "\nExamples\n  sagediff plan" in text and "--version" in text
    assert main(["--version"]) == 0 == main(["version"])
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert main(["help"]) == 0 and capsys.readouterr().out == text
    assert main(["help", "plan"]) == 0 and capsys.readouterr().out == page(capsys, "plan")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user tries the examples: with captioned images, and nothing else."""
    data = tmp_path / "captioned-images"
    data.mkdir()
    lines = []
    for number, caption in enumerate(("a large cat at the top on a red background", "a large dog on red")):
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(data / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": caption}))
    (data / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sagediff.training.validation.STEPS", 1)
    return tmp_path


def run_example(line: str) -> int:
    """A line of a shell, in this process and at a small size."""
    tokens = shlex.split(line)
    assert tokens[0] == "sagediff"
    smaller = SMALLER[tokens[1]]
    for name, value in zip(smaller[::2], smaller[1::2], strict=True):
        if name in tokens:
            tokens[tokens.index(name) + 1] = value
        else:
            tokens += [name, value]
    return main(tokens[1:])


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_run(
    command: str,
    folder: Path,
    wide: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = page(capsys, command).partition("\nExamples\n")[2].splitlines()
    assert lines == [f"  {example}" for example in COMMANDS[command].examples] and max(map(len, lines)) <= 78
    served: list[Any] = []
    if command == "serve":  # all but the listening
        monkeypatch.setattr("sagediff.serving.run_server.run_serve", served.append)
    for line in lines:
        if line is lines[1] and command in ("train", "tune", "bench"):  # takes seconds, as the first did
            app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
        else:
            assert run_example(line.strip()) == 0
    assert len(served) == (2 if command == "serve" else 0)
    assert command in ("plan", "serve") or len(os.listdir(folder)) > 1


# -- what is shorter to type


def test_short_names_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    long = ["plan", "a cat", "--steps", "2", "--json"]
    assert main([*long, "--images-per-prompt", "2", "--width", "64", "--height", "32"]) == 0
    first = capsys.readouterr().out
    assert main([*long, "-n", "2", "--size", "64x32"]) == 0
    assert capsys.readouterr().out == first and json.loads(first)["num_prompts"] == 2
    for wrong, words in (
        (["--size", "64"], "as in 768x512"),
        (["--size", "64x64", "--width", "64"], "not both"),
        (["--size", "0x64"], "--width must be at least 1"),
        (["-n", "0"], "--images-per-prompt must"),
    ):
        assert main([*long, *wrong]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["my.txt", "my.CSV", "my.jsonl.gz", "my.parquet"])
def test_the_name_of_a_prompt_file_is_no_prompt(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("a cat")
    for command in ("plan", "generate"):
        assert main([command, "a dog", name]) == 2
        assert f"prompt 2 is the name of a file: to take the prompts in it, give --prompts {name}" in (
            capsys.readouterr().err
        )
    (tmp_path / name).unlink()
    assert main(["plan", name, "a" * 300 + ".txt", "--steps", "1"]) == 0
