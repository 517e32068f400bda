"""`sagediff tune`: its file is taken by the commands, and what cannot be tuned is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sagediff.cli import main


def test_the_command_writes_a_file_that_generate_and_plan_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "policy.json"
    command = [
        "tune", "--out", str(out), "--captions", "16", "--steps", "4", "--threshold", "0,0.35", "--share-ratio",
        "0.25,0.5", "--budget", "0.5", "--max-group-size", "4,16",
    ]  # fmt: skip
    assert main(command) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(out.read_text()) and record["tuned"]["cost_saving"] > 0
    assert record["max_group_size"] in (4, 16)
    lines = (tmp_path / "policy.json.trials.jsonl").read_text().splitlines()
    assert len(lines) >= record["tuned"]["trials"] - 1
    assert main(command) == 0  # nothing is run again
    assert json.loads(capsys.readouterr().out) == record
    assert (tmp_path / "policy.json.trials.jsonl").read_text().splitlines() == lines
    prompts = [f"a large cat at the {place} on a red background" for place in ("top", "left", "center")]
    assert main(["plan", *prompts, "--policy", str(out), "--steps", "4", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    images = tmp_path / "images"
    generate = ["generate", *prompts, "--policy", str(out), "--steps", "4", "--out", str(images)]
    assert main(generate) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["evaluations"] == planned["evaluations"] == report["evaluations_run"]
    assert main([*generate, "--resume"]) == 0


def test_what_cannot_be_tuned_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dream of the sea\nthe sea of a dream\n")
    for options, words in (
        (["--budget", "2"], "budget"),
        (["--families", "forest"], "families"),
        (["--max-group-size", "1"], "sizes"),
        (["--max-group-size", "many"], "--max-group-size"),
        (["--metric", "beauty"], "--metric"),
        (["--prompts", str(prompts), "--metric", "accuracy"], "captions of its world"),
        (["--out", str(tmp_path)], "folder"),
        (["--out", str(tmp_path / "no" / "policy.json")], "no folder"),
    ):
        given = options if "--out" in options else [*options, "--out", str(tmp_path / "policy.json")]
        assert main(["tune", *given]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "policy.json").exists()
