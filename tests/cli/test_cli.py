"""The command line: what it writes, what it prints, how it refuses, and that a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sagediff
from sagediff.builtin.scenes import weights_dir
from sagediff.cli import main

PROMPTS = [
    "a large heart at the bottom left on a orange background",
    "a large cat at the bottom left on a orange background",
    "a small cake at the top right on a red background",
    "a large apple at the bottom left on a orange background",
]
PLAN_KEYS = {
    "num_prompts", "num_groups", "num_steps", "share_ratio", "threshold", "evaluations",
    "evaluations_independent", "cost_saving", "sharing_saving",
}  # fmt: skip
STEPS = ["--steps", "3"]


def sagediff_process(arguments: Sequence[str | Path], cwd: Path | None = None) -> subprocess.Popen[str]:
    """A real run of the command."""
    return subprocess.Popen(
        [sys.executable, "-m", "sagediff", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        cwd=cwd,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


# -- generate and plan


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, str]:
    """A finished run in a process of its own: (folder, exit code, stdout, stderr)."""
    out = tmp_path_factory.mktemp("made") / "out"
    return out, *finish(sagediff_process(["generate", *PROMPTS, *STEPS, "--out", out]))


def test_generate_writes_everything_and_prints_one_json_object(
    made: tuple[Path, int, str, str],
) -> None:
    out, code, stdout, stderr = made
    assert code == 0, stderr
    files = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    images = {f"images/{i:06d}.png" for i in range(4)}
    assert files == images | {"metadata.jsonl", "report.json", "contact-sheet.png", "run.json"}
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert json.loads(stdout) == report
    assert stdout.count("\n") == 1
    assert set(report) >= PLAN_KEYS | {"seconds", "images_per_second"}
    assert report["num_prompts"] == report["images_made"] == 4 and report["num_steps"] == 3
    assert report["evaluations_run"] == report["evaluations"] < report["evaluations_independent"] == 24
    assert report["cost_saving"] == pytest.approx(1 - report["evaluations"] / 24)
    assert report["seconds"] > 0 and report["images_per_second"] > 0
    assert f"{report['cost_saving']:.1%} saved" in stderr and str(out) in stderr
    assert "warn" not in stderr.lower() and "Traceback" not in stderr  # no library adds a word of its own


def test_metadata_and_images_say_what_they_are(made: tuple[Path, int, str, str]) -> None:
    out = made[0]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (out / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert [record["prompt"] for record in records] == PROMPTS
    assert sum(record["evaluations"] for record in records) == pytest.approx(report["evaluations"])
    assert len({record["group"] for record in records}) == report["num_groups"]
    seeds: dict[int, set[int]] = {}
    for record in records:
        assert set(record) == {"file_name", "prompt", "seed", "group", "branch_step", "evaluations"}
        seeds.setdefault(record["group"], set()).add(record["seed"])
        with Image.open(out / record["file_name"]) as image:
            assert image.size == (64, 64)
            texts = image.text  # type: ignore[attr-defined]
        assert texts["prompt"] == record["prompt"] and texts["seed"] == str(record["seed"])
        plan = json.loads(texts["plan"])
        assert plan["branch_step"] == record["branch_step"] and plan["group"] == record["group"]
        assert plan["num_steps"] == 3
    assert all(len(found) == 1 for found in seeds.values())
    assert len(set().union(*seeds.values())) == len(seeds)


def test_plan_says_beforehand_what_generate_costs(
    made: tuple[Path, int, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads((made[0] / "report.json").read_text(encoding="utf-8"))
    assert main(["plan", *PROMPTS, *STEPS, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert {key: planned[key] for key in PLAN_KEYS} == {key: report[key] for key in PLAN_KEYS}
    groups = planned["groups"]
    assert sorted(i for group in groups for i in group["prompts"]) == [0, 1, 2, 3]
    assert all(group["texts"] == [PROMPTS[i] for i in group["prompts"]] for group in groups)
    assert sum(group["evaluations"] for group in groups) == pytest.approx(report["evaluations"])
    assert main(["plan", *PROMPTS, *STEPS]) == 0
    assert f"{report['cost_saving']:.1%} saved" in capsys.readouterr().out


def test_the_same_prompts_from_a_file_give_the_same_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    for name, lines in (
        ("p.txt", PROMPTS),
        ("p.jsonl", [json.dumps({"prompt": prompt}) for prompt in PROMPTS]),
        ("p.csv", ["prompt", *PROMPTS]),
    ):
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        assert main(["plan", "--prompts", str(tmp_path / name), *STEPS, "--json"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2]


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"{sagediff.__version__}\n"
    for command in ("generate", "plan"):
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "--share-ratio" in shown and "--threshold" in shown
    assert main([]) == 2


# -- going on after a kill


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL as soon as an image is there: what was finished is kept as it is, the rest comes out the same."""
    # over 10 s: only a real process, which loads the model anew, can be killed
    prompts = [
        *PROMPTS,
        "a small car at the left on a white background",
        "a large star at the center on a black background",
        "a small guitar at the bottom right on a pink background",
    ]
    out, whole = tmp_path / "killed", tmp_path / "whole"
    common = ["generate", *prompts, "--steps", "4", "--wave-size", "1", "--out"]  # a wave for each group
    assert main([*common, str(whole)]) == 0
    arguments = [*common, str(out)]
    process = sagediff_process(arguments)
    try:
        deadline = time.monotonic() + 240
        while not list(out.glob("images/*.png")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        finish(process)
    assert process.returncode == -signal.SIGKILL
    finished = {file: file.stat().st_mtime_ns for file in out.glob("images/*.png")}
    assert 0 < len(finished) < len(prompts)
    assert not (out / "report.json").exists()
    (out / "images" / "000006.png.0123456789ab.partial").write_bytes(b"half an image")

    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["images_made"] == len(prompts) - len(finished)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert not list(out.rglob("*.partial"))
    for i in range(len(prompts)):
        one, other = (home / "images" / f"{i:06d}.png" for home in (out, whole))
        assert one.read_bytes() == other.read_bytes()
    assert (out / "metadata.jsonl").read_text("utf-8") == (whole / "metadata.jsonl").read_text("utf-8")


def test_a_group_finished_in_part_keeps_those_images_and_makes_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", *PROMPTS, *STEPS, "--threshold", "-1", "--out", str(tmp_path)]  # one group
    assert main(arguments) == 0
    evaluations = json.loads(capsys.readouterr().out)["evaluations"]
    missing = tmp_path / "images" / "000001.png"
    before = missing.rename(tmp_path / "images" / "kept.png")
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "images").iterdir()}
    assert main([*arguments, "--resume"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_groups"] == report["images_made"] == 1
    assert report["evaluations_run"] == report["evaluations"] == evaluations
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert missing.read_bytes() == before.read_bytes()


def test_resuming_a_finished_run_makes_nothing_and_other_settings_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", PROMPTS[0], "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("images/*")}
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["images_made"] == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("images/*")} == files
    for option, names in (
        ("--seed=1", "seed"),
        (
            "--guidance=2",
            "guidance_scale, handover_noise, unguided",
        ),  # a scale named leaves out what the LoRA says
        ("another", "prompts"),
    ):
        assert main([*arguments, "--resume", option]) == 2
        assert f"other settings ({names})" in capsys.readouterr().err


# -- refusals


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with things that a user may name by mistake."""
    monkeypatch.chdir(tmp_path)
    index = json.loads((weights_dir() / "model_index.json").read_text(encoding="utf-8"))
    models: dict[str, Any] = {
        "other-denoiser": index | {"unet": ["diffusers", "UNet2DModel"]},
        "no-denoiser": index | {"unet": [None, None]},
        "no-class": {},
        "unknown-class": index | {"_class_name": "NoSuchPipeline"},
        "a-list": [],
        "no-weights": index,
        "bad-defaults": index,
    }
    for name, content in models.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "bad-defaults" / "sagediff.json").write_text('{"threshold": "high"}', encoding="utf-8")
    (tmp_path / "no-json").mkdir()
    (tmp_path / "no-json" / "model_index.json").write_text("{", encoding="utf-8")
    (tmp_path / "in-use").mkdir()
    (tmp_path / "in-use" / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"a caf\xe9")
    (tmp_path / "good.txt").write_text("a cat\n", encoding="utf-8")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    return tmp_path


def everything(path: Path) -> dict[str, bytes | None]:
    return {
        found.relative_to(path).as_posix(): found.read_bytes() if found.is_file() else None
        for found in path.rglob("*")
    }


BOTH: list[tuple[list[str], str]] = [  # arguments, words of the message; for generate and for plan
    (["--prompts", "empty.txt"], "holds no prompts"),
    (["--prompts", "missing.txt"], "no such prompt file"),
    (["--prompts", "latin.txt"], "not UTF-8"),
    (["--prompts", "in-use"], "no such prompt file"),
    ([], "no prompts"),
    ([" "], "prompt 1 is empty"),
    (["a cat", "--prompts", "good.txt"], "not both"),
    (["a cat", "--threshold", "1.5"], "--threshold must lie in"),
    (["a cat", "--threshold", "nan"], "--threshold must lie in"),
    (["a cat", "--share-ratio", "-0.1"], "--share-ratio must lie in"),
    (["a cat", "--share-ratio", "1.2"], "--share-ratio must lie in"),
    (["a cat", "--steps", "0"], "--steps"),
    (["a cat", "--steps", "many"], "--steps"),
    (["a cat", "--guidance", "nan"], "--guidance"),
    (["a cat", "--guidance", "-1"], "--guidance"),
    (["a cat", "--shared-guidance", "half"], "--shared-guidance"),
    (["a cat", "--shared-guidance", "nan"], "--shared-guidance"),
    (["a cat", "--max-group-size", "0"], "--max-group-size"),
    (["a cat", "--scheduler", "nonsense"], "--scheduler must be one of"),
    (["a cat", "--scheduler", "flow-euler"], "does not fit the model"),
    (["a cat", "--model", "missing"], "no model 'missing'"),
    (["a cat", "--model", "/missing/folder"], "no model '/missing/folder'"),
    (["a cat", "--model", "in-use"], "no model_index.json"),
    (["a cat", "--model", "other-denoiser"], "UNet2DModel"),
    (["a cat", "--model", "no-denoiser"], "no denoiser"),
    (["a cat", "--model", "no-class"], "names no pipeline"),
    (["a cat", "--model", "unknown-class"], "names no pipeline"),
    (["a cat", "--model", "a-list"], "should hold a JSON object"),
    (["a cat", "--model", "no-json"], "not JSON"),
    (["a cat", "--model", "no-weights"], "cannot load the model"),
    (["a cat", "--model", "bad-defaults"], "`threshold` must be a number"),
    (["a cat", "--encoder", "no-such-encoder"], "encoder"),
    (["a cat", "--no-such-option"], "--no-such-option"),
]
GENERATE: list[tuple[list[str], str]] = [
    (["a cat", "a cat", "--scheduler", "pndm", "--repeats", "share"], "fresh noise"),
    (["a cat", "--out", "in-use"], "is in use"),
    (["a cat", "--out", "in-use", "--resume"], "not by a run that can be resumed"),
    (["a cat", "--out", "good.txt"], "is a file"),
    (["a cat", "--lora", "missing.safetensors"], "no such LoRA"),
    (["a cat", "--lora", "in-use"], "should hold one .safetensors file, found none"),
    (["a cat", "--lora", "good.txt"], "only .safetensors"),
    (["a cat", "--lora", "bad.safetensors"], "is not a safetensors file"),
    (["a cat", "--wave-size", "0"], "--wave-size"),
    (["a cat", "--micro-batch", "0"], "--micro-batch"),
    (["a cat", "--device", "nonsense"], "--device"),
    (["a cat", "--dtype", "float8"], "--dtype"),
]
TABLE = [(command, *row) for command in ("generate", "plan") for row in BOTH]
TABLE += [("generate", *row) for row in GENERATE]


def is_one_complaint(stderr: str) -> bool:
    lines = [line for line in stderr.splitlines() if line.strip()]
    return len(lines) == 1 and lines[0].startswith("sagediff: ")


@pytest.mark.parametrize("command, arguments, words", TABLE)
def test_a_users_mistake_is_one_line_exit_code_2_and_nothing_written(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, arguments: list[str], words: str
) -> None:
    before = everything(here)
    assert main([command, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert is_one_complaint(shown.err), shown.err
    assert words in shown.err
    assert everything(here) == before


@pytest.mark.parametrize(
    "arguments",
    [["generate", "a cat", "--steps", "many"], ["nonsense"]],
)
def test_a_real_process_shows_no_traceback(here: Path, arguments: list[str]) -> None:
    before = everything(here)
    code, stdout, stderr = finish(sagediff_process(arguments, cwd=here))
    assert code == 2 and stdout == ""
    assert "Traceback" not in stderr and is_one_complaint(stderr), stderr
    assert everything(here) == before


def test_a_failure_at_work_is_exit_code_1(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output's parent is a file: found out only when writing."""
    assert main(["generate", "a cat", "--steps", "1", "--out", "good.txt/out"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and is_one_complaint(shown.err) and "cannot write" in shown.err
