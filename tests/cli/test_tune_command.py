"""`sagediff tune`: its file holds what was measured, and the commands take it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from sagediff.builtin.scenes import lora_dir
from sagediff.cli import main, tuning
from sagediff.evaluation import trials
from sagediff.files.digest import file_digest
from sagediff.files.lora_files import lora_file
from sagediff.pipelines.lora import sharing_warnings
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve
from sagediff.plan.sharing import Sharing


def test_the_command_writes_a_file_that_generate_and_plan_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "policy.json"
    command = [
        "tune", "--out", str(out), "--captions", "8", "--steps", "4", "--threshold", "0,0.35", "--share-ratio",
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


def test_four_prompts_cannot_show_a_loss_of_one_percent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "policy.json"
    command = ["tune", "--out", str(out), "--captions", "4", "--steps", "2", "--seeds", "0"]
    assert main([*command, "--threshold", "-1", "--share-ratio", "0.7", "--max-group-size", "32"]) == 0
    said = capsys.readouterr()
    assert "4 different prompts cannot show a loss of at most 0.01" in said.err
    assert "at least 184 are needed" in said.err and "shares nothing" in said.err
    record = json.loads(said.out)
    assert record["share_ratio"] == 0 and record["rungs"] == [] and record["tuned"]["trials"] == 1
    assert Sharing.load(out).share_ratio == 0


def test_by_predictions_the_file_is_one_that_plan_takes_and_more_budget_shares_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "policy.json"
    command = [
        "tune", "--by", "predictions", "--out", str(out), "--captions", "12", "--steps", "4", "--threshold", "0,0.35",
        "--evaluations", "50",
    ]  # fmt: skip
    savings = []
    for budget in (["--budget", "0"], []):
        assert main([*command, *budget]) == 0
        record = json.loads(capsys.readouterr().out)
        tuned = record["tuned"]
        assert record == json.loads(out.read_text()) and tuned["by"] == "predictions"
        assert tuned["error"] <= tuned["budget"] and 0 < tuned["evaluations"] <= 50
        savings.append(tuned["cost_saving"])
    assert savings[0] < savings[1] and not list(tmp_path.glob("*.trials.jsonl"))
    settings = resolve(ModelOptions(), SamplingOptions(4), policy=out)
    assert settings.sharing == Sharing.load(out)
    assert not settings.measured  # no image was looked at, so that `generate` warns as ever


def test_by_predictions_where_no_prompts_are_alike_nothing_is_shared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "policy.json"
    command = ["tune", "--by", "predictions", "--out", str(out), "--captions", "2", "--steps", "2"]
    assert main([*command, "--threshold", "0.999"]) == 0
    said = capsys.readouterr()
    assert "no two of the prompts are alike enough" in said.err and "shares nothing" in said.err
    assert json.loads(said.out)["tuned"]["evaluations"] == 0 and Sharing.load(out).share_ratio == 0


def tuned_policy(folder: Path, **changes: Any) -> Path:
    """As tune writes it after it measured more than the demo's LoRA was trained for."""
    file = folder / "policy.json"
    tuned = {"num_steps": 2, "lora": file_digest(lora_file(lora_dir()))} | changes
    record = Sharing(-1.0, 1.0, 32, unguided=1.0, handover_noise=1.0).record()
    file.write_text(json.dumps(record | {"tuned": tuned}))
    return file


@pytest.mark.parametrize(
    "changes, options, warned",
    [
        ({}, [], False),
        ({"lora": "of another LoRA"}, [], True),
        ({"num_steps": 3}, [], True),
        ({"by": "predictions"}, [], True),
        ({}, ["--max-group-size", "16"], True),
    ],
)
def test_generate_does_not_warn_of_what_tune_measured(
    changes: dict[str, Any], options: list[str], warned: bool, tmp_path: Path
) -> None:
    settings = resolve(
        ModelOptions(), SamplingOptions(2), {"max_group_size": 16} if options else {}, tuned_policy(tmp_path, **changes)
    )  # fmt: skip
    assert settings.measured is not warned
    assert sharing_warnings(settings.model.loras(), 1.0, 2)  # what it would be


@pytest.mark.parametrize(
    "option, name, value",
    [
        (["--shared-guidance", "2.5"], "shared_guidance", 2.5),
        (["--shared-guidance", "same"], "shared_guidance", None),
        (["--unguided", "0.5"], "unguided", 0.5),
        (["--handover-noise", "0.25"], "handover_noise", 0.25),
        (["--fresh-noise", "0.5"], "fresh_noise", 0.5),
    ],
)
def test_the_file_holds_the_sharing_that_was_measured(
    option: list[str], name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_demo: Any
) -> None:
    sampled, used = trials.sampled, []
    monkeypatch.setattr(tuning, "open_pipeline", lambda model: deepcopy(small_demo))

    def noted(*arguments: Any) -> Any:
        used.append(arguments[3])
        return sampled(*arguments)

    monkeypatch.setattr(trials, "sampled", noted)
    out = tmp_path / "policy.json"
    command = [
        "tune", "--out", str(out), "--captions", "4", "--steps", "2", "--threshold", "-1", "--share-ratio", "0.5",
        "--families", "fixed", "--max-group-size", "4", "--budget", "0.99", "--metric", "clip", "--no-lora",
    ]  # fmt: skip
    assert main([*command, *option]) == 0
    assert len(used) == 2 and Sharing.load(out) == used[1] and used[1].share_ratio == 0.5
    assert getattr(used[1], name) == value
    assert resolve(ModelOptions(), policy=out).sharing == used[1]  # and so does `generate --policy`


def test_what_cannot_be_tuned_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dream of the sea\nthe sea of a dream\n")
    copies = tmp_path / "copies.txt"
    copies.write_text("a dream of the sea\n" * 2)
    for options, words in (
        (["--budget", "2"], "budget"),
        (["--confidence", "1.5"], "confidence"),
        (["--families", "forest"], "families"),
        (["--max-group-size", "1"], "sizes"),
        (["--max-group-size", "many"], "--max-group-size"),
        (["--metric", "beauty"], "--metric"),
        (["--by", "beauty"], "--by"),
        (["--evaluations", "100"], "--by predictions"),
        (["--by", "predictions", "--budget", "-1"], "--budget"),
        (["--by", "predictions", "--evaluations", "0"], "evaluations"),
        (["--by", "predictions", "--metric", "clip"], "--metric is for judging"),
        (["--by", "predictions", "--apart", "0.5", "--confidence", "0.9"], "--apart, --confidence"),
        (["--by", "predictions", "--prompts", str(copies), "--repeats", "share"], "--repeats share"),
        (["--by", "predictions", "--families", "forest"], "families"),
        (["--prompts", str(prompts), "--metric", "accuracy"], "captions of its world"),
        (["--out", str(tmp_path)], "folder"),
        (["--out", str(tmp_path / "no" / "policy.json")], "no folder"),
    ):
        given = options if "--out" in options else [*options, "--out", str(tmp_path / "policy.json")]
        assert main(["tune", *given]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "policy.json").exists()
