"""`sagediff bench`: the settings it runs, the folder it leaves, that a killed one goes on, how it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sagediff.cli import comparing, main
from sagediff.errors import InputError
from sagediff.evaluation import comparison as bench_module
from sagediff.evaluation.grid import Grid, Setting
from sagediff.evaluation.plots import undominated
from sagediff.evaluation.report_table import csv_text, markdown
from sagediff.evaluation.summary import Figure, row
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve
from sagediff.plan.sharing import Sharing

SMALL = [
    "--captions", "6", "--steps", "2,3", "--share-ratio", "0.5", "--threshold", "0", "--unguided", "0.5",
    "--seeds", "0",
]  # fmt: skip
BASE = [*SMALL, "--no-lora"]


class _Killed(BaseException):
    """Not to be caught by anything."""


@contextmanager
def networks_of(pipe: Any) -> Iterator[None]:
    """A bench of the built-in model samples with this pipeline, and measures as it always does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "open_pipeline", lambda model: deepcopy(pipe))
        yield


@pytest.fixture
def small_networks(small_demo: Any) -> Iterator[None]:
    with networks_of(small_demo):
        yield


@pytest.fixture(scope="module")
def whole(small_demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bench that ran through."""
    out = tmp_path_factory.mktemp("bench") / "whole"
    with networks_of(small_demo):
        assert main(["bench", *BASE, "--out", str(out)]) == 0
    return out


def _figures(out: Path, timed: bool = False) -> list[dict[str, Any]]:
    rows = json.loads((out / "table.json").read_text())["rows"]
    for line in rows:
        if not timed:
            line["figures"].pop("seconds")
    return list(rows)


# -- settings


def test_the_grid_holds_every_baseline_once_and_keeps_weights_together() -> None:
    grid = Grid((8, 12), (0.3, 0.5), (0.4,), (0.5,), fine_tuned=("standard", "sage"))
    settings = grid.settings()
    assert len(settings) == len(set(settings)) == len({s.key for s in settings})
    methods = [s.method for s in settings]
    assert list(dict.fromkeys(methods)) == [
        "independent",
        "independent, guidance off early",
        "shared",
        "shared, guidance off early",
        "independent, standard fine-tuning",
        "independent, guidance off early, standard fine-tuning",
        "shared, standard fine-tuning",
        "shared, guidance off early, standard fine-tuning",
        "independent, SAGE training",
        "shared, SAGE training",
        "shared, guidance off early, SAGE training",
    ]
    early = [s for s in settings if s.method == "shared, guidance off early"]
    assert [s.sharing.share_ratio for s in early] == [
        0.3,
        0.3,
    ]  # 0.5 is no longer than the other ratio shares
    assert [methods.count(m) for m in ("independent", "shared", "shared, SAGE training")] == [2, 4, 4]
    weights = [s.weights for s in settings]
    assert weights == sorted(weights, key=["base", "standard", "sage"].index)
    assert all(s.sharing.threshold == 0.4 for s in settings)


@pytest.mark.parametrize(
    "numbers, words",
    [
        (((), (), (0.5,)), "--steps"),
        (((0,), (), (0.5,)), "--steps"),
        (((5, 5), (), (0.5,)), "once"),
        (((5,), (0.0,), (0.5,)), "independent sampling always runs"),
        (((5,), (), (1.5,)), "--threshold"),
        (((5,), (), (0.5,), (2.0,)), "--unguided"),
    ],
)
def test_a_grid_out_of_range_is_refused(numbers: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Grid(*numbers)


def test_early_guidance_off_is_left_out_where_sharing_has_it_anyway() -> None:
    grid = Grid((8,), (0.3,), (0.4,), (0.5, 1.0), Sharing(unguided=0.5))
    shared = {s.method: s.sharing.unguided for s in grid.settings() if s.sharing.share_ratio}
    assert shared == {"shared": 0.5, "shared, guidance off early": 1.0}
    assert all(s.sharing.unguided == 0 for s in grid.settings() if s.method == "independent")


# -- rows and plots


def test_rows_are_means_with_the_sample_spread() -> None:
    setting = Grid((5,), (), (0.5,)).settings()[0]
    cells = [
        {"seed": seed, "figures": {"clip_score": value, "frechet": None}, "bands": []}
        for seed, value in ((0, 0.7), (1, 0.8), (2, 0.9))
    ]
    found = row(setting, cells)
    assert found.figures == {"clip_score": Figure(pytest.approx(0.8), pytest.approx(0.1))}
    assert "0.8000 ± 0.1000" in markdown([found])
    assert row(setting, cells[:1]).figures["clip_score"].spread is None
    assert "±" not in markdown([row(setting, cells[:1])])
    header, line = csv.reader(csv_text([found]).splitlines())
    assert dict(zip(header, line, strict=True))["seeds"] == "3"


def test_the_frontier_leaves_out_what_costs_more_for_less() -> None:
    costs, values = [10.0, 20.0, 30.0, 20.0], [0.5, 0.4, 0.9, 0.6]
    assert undominated(costs, values, higher_is_better=True) == [0, 3, 2]
    assert undominated(costs, values, higher_is_better=False) == [0, 1]


# -- the command


def test_a_bench_leaves_table_plots_and_cells(whole: Path) -> None:
    rows = _figures(whole, timed=True)
    assert len(rows) == 6 and len(list((whole / "cells").glob("*.json"))) == 6
    for line in rows:
        figures = {name: value["mean"] for name, value in line["figures"].items()}
        assert {"frechet", "kernel", "clip_score", "diversity", "vendi", "accuracy_all", "seconds"} <= set(
            figures
        )
        steps, setting = line["setting"]["num_steps"], line["setting"]
        full = 2 * steps
        assert figures["evaluations_per_image"] == pytest.approx(full * (1 - figures["cost_saving"]))
        if setting["method"] == "independent":
            assert figures["cost_saving"] == 0
        if setting["unguided"]:
            assert figures["evaluations_per_image"] == full - round(0.5 * steps + 0.01)
        if setting["share_ratio"]:
            assert figures["cost_saving"] > figures["sharing_saving"] > 0
        else:  # guidance switched off is not sharing
            assert figures["sharing_saving"] == 0
        assert line["bands"]
    for name in ("frontier.png", "strip.png"):
        with Image.open(whole / name) as image:
            assert min(image.size) > 100
    text = (whole / "table.md").read_text()
    assert "| independent, guidance off early | 3 steps, first 50% unguided |" in text
    assert len((whole / "table.csv").read_text().splitlines()) == 7
    assert not list(whole.rglob("*.partial"))


def test_a_policy_is_measured_as_its_file_says(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    small_networks: None,
) -> None:
    policy = Sharing(
        threshold=0.1, share_ratio=0.25, max_group_size=3, shared_guidance=2.0, unguided=0.5,
        rungs=((0.4, 0.5),), parting="together", handover_noise=0.5, fresh_noise=0.25,
        repeats="share",
    )  # fmt: skip
    assert all(getattr(policy, name) != value for name, value in vars(Sharing()).items())
    policy.save(tmp_path / "policy.json")
    sampled, used = bench_module.sampled, []

    def noted(*arguments: Any) -> Any:
        used.append(arguments[3])
        return sampled(*arguments)

    monkeypatch.setattr(bench_module, "sampled", noted)
    few = ["--captions", "6", "--steps", "4", "--seeds", "0", "--no-lora"]
    command = ["bench", *few, "--policy", str(tmp_path / "policy.json")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [r["setting"]["method"] for r in rows] == ["independent", "shared"]
    assert used[1] == policy and used[0].share_ratio == used[0].unguided == 0
    assert {name: rows[1]["setting"][name] for name in policy.record()} == policy.record()
    assert main([*command, "--threshold", "-1,0.3", "--out", str(tmp_path / "split")]) == 0
    assert [s.threshold for s in used[2:]] == [-1, -1, 0.3] and used[-1] == replace(
        policy, threshold=0.3, rungs=()
    )


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Setting]]:
    """What a command would run; nothing is."""
    found: list[list[Setting]] = []

    def noted(inputs: Any, compared: Any, measuring: Any) -> None:
        found.append(inputs.grid.settings())

    def run(*command: str) -> list[Setting]:
        assert main(["bench", "--out", str(tmp_path / "out"), *command]) == 0
        return found.pop()

    monkeypatch.setattr(comparing, "run_bench_command", noted)
    return run


@pytest.mark.parametrize(
    "given, options",
    [
        ({}, []),
        ({"share_ratio": 0.25}, ["--share-ratio", "0.25"]),
        ({"threshold": 0.3, "handover_noise": 0.5}, ["--threshold", "0.3", "--handover-noise", "0.5"]),
    ],
)
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_each_set_of_weights_is_sampled_as_generate_samples_it(
    settings_of: Callable[..., list[Setting]],
    given: dict[str, Any],
    options: list[str],
    guidance: float | None,
) -> None:
    more = [] if guidance is None else ["--guidance", str(guidance)]
    rows = settings_of("--steps", "4,20", *options, *more)
    for weights, no_lora in (("base", True), ("sage", False)):
        for row_ in [row_ for row_ in rows if row_.weights == weights]:
            steps = SamplingOptions(row_.num_steps, guidance)
            generated = resolve(ModelOptions(no_lora=no_lora), steps, given)
            assert row_.guidance_scale == generated.sampling.guidance_scale
            assert row_.scheduler == generated.model.scheduler
            if row_.method.startswith("shared"):
                assert row_.sharing == generated.sharing
            elif weights == "sage":
                assert row_.sharing.unguided == generated.sharing.unguided
    assert {row_.scheduler for row_ in rows if row_.num_steps == 20} == {"dpm++-beta", None}
    trained = next(row_ for row_ in rows if row_.method == "shared, SAGE training")
    assert trained.sharing.unguided == (1.0 if guidance is None else 0.0)
    assert trained.guidance_words() == ("off" if guidance is None else "2, off while shared")


def test_standard_fine_tuning_is_sampled_as_the_base_model_is(
    settings_of: Callable[..., list[Setting]], tmp_path: Path
) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "standard.safetensors")
    rows = settings_of("--steps", "20", "--baseline-lora", str(tmp_path / "standard.safetensors"))
    of = {weights: [row_ for row_ in rows if row_.weights == weights] for weights in ("base", "standard")}
    for base, tuned in zip(of["base"], of["standard"], strict=True):
        assert replace(tuned, method=base.method, weights="base") == base
        assert tuned.method == f"{base.method}, standard fine-tuning"


def test_a_policy_that_shares_nothing_leaves_independent_sampling(
    settings_of: Callable[..., list[Setting]], tmp_path: Path
) -> None:
    Sharing(share_ratio=0.0).save(tmp_path / "policy.json")
    rows = settings_of("--steps", "4", "--no-lora", "--policy", str(tmp_path / "policy.json"))
    assert [row_.method for row_ in rows] == ["independent"]


def test_the_solver_that_is_asked_for_is_every_rows(settings_of: Callable[..., list[Setting]]) -> None:
    rows = settings_of("--steps", "4,20", "--scheduler", "ddim")
    assert {row_.scheduler for row_ in rows} == {"ddim"}


def test_a_killed_bench_goes_on_to_the_same_table(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_networks: None
) -> None:
    out = tmp_path / "cut"
    command = ["bench", *BASE, "--out", str(out)]
    measure, calls = bench_module.measure, []

    def killed_in_the_third(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise _Killed
        return measure(*arguments)

    monkeypatch.setattr(bench_module, "measure", killed_in_the_third)
    with pytest.raises(_Killed):
        main(command)
    assert len(list((out / "cells").glob("*.json"))) == 2 and not (out / "table.json").exists()
    assert main(command) == 2  # in use
    assert main([*command, "--guidance", "2", "--resume"]) == 2  # another bench
    monkeypatch.setattr(bench_module, "measure", measure)
    kept = {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}
    assert main([*command, "--resume"]) == 0
    assert all(file.stat().st_mtime_ns == when for file, when in kept.items())
    assert _figures(out) == _figures(whole)
    cells, strips = sorted((out / "cells").iterdir()), sorted((out / "images").rglob("*.png"))
    cells[0].write_bytes(b"")
    changed = json.loads(cells[1].read_text())
    changed["figures"]["clip_score"] = 1.0
    cells[1].write_text(json.dumps(changed))
    strips[-1].write_bytes(strips[-1].read_bytes()[:100])
    assert main([*command, "--resume"]) == 0  # made again
    assert _figures(out) == _figures(whole)
    assert strips[-1].read_bytes() == (whole / strips[-1].relative_to(out)).read_bytes()


def test_stdout_is_json_and_words_go_to_stderr(
    whole: Path, capsys: pytest.CaptureFixture[str], small_networks: None
) -> None:
    assert main(["bench", *BASE, "--out", str(whole), "--resume"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads((whole / "table.json").read_text())
    assert "6 of 6 are there already" in err and "table.md" in err


def test_prompts_and_images_of_the_users_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_networks: None
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lines = []
    for number, color in enumerate(("red", "blue", "green")):
        Image.new("RGB", (80, 60), color).save(data / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"a photo of something {color}"}))
    (data / "metadata.jsonl").write_text("\n".join(lines))
    few = ["--steps", "1", "--share-ratio", "1", "--seeds", "0", "--no-lora"]
    assert main(["bench", "--data", str(data), *few, "--out", str(tmp_path / "out")]) == 0
    figures = json.loads(capsys.readouterr().out)["rows"][0]["figures"]
    assert "frechet" in figures and "accuracy_all" not in figures


@pytest.mark.parametrize(
    "options, words",
    [
        (["--steps", "two"], "--steps takes whole numbers"),
        (["--steps", "0"], "--steps"),
        (["--share-ratio", "0.4,1.4"], "--share-ratio"),
        (["--seeds", "1,1"], "--seeds"),
        (["--captions", "0"], "--captions must be at least 1, got"),
        (["--lora", "absent.safetensors"], "no such LoRA"),
        (["--data", "absent"], "no such folder: absent"),
        (["--prompts", "absent.txt"], "no such prompt file"),
        (["--reference", "absent"], "no such folder: absent"),
        (["--clip", "./absent"], "cannot load the model"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["bench", "--out", str(out), *options]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out
    assert not out.exists()


def test_a_lora_that_does_not_fit_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = tmp_path / "wrong.safetensors"
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    save_file({name.format("A"): torch.zeros(2, 7), name.format("B"): torch.zeros(7, 2)}, lora)
    out = tmp_path / "out"
    assert main(["bench", *SMALL, "--lora", str(lora), "--out", str(out)]) == 2
    assert str(lora) in capsys.readouterr().err and not out.exists()


def test_fine_tuned_weights_are_a_method_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A LoRA of zeros draws what the base model draws."""
    lora = tmp_path / "zeros.safetensors"
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    save_file({name.format("A"): torch.zeros(2, 256), name.format("B"): torch.zeros(256, 2)}, lora)
    few = ["--captions", "3", "--steps", "2", "--share-ratio", "0.5", "--threshold", "0", "--seeds", "0"]
    assert main(["bench", *few, "--lora", str(lora), "--out", str(tmp_path / "out")]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [line["setting"]["weights"] for line in rows] == ["base", "base", "sage", "sage"]
    for base, tuned in zip(rows[:2], rows[2:], strict=True):
        assert tuned["figures"]["clip_score"]["mean"] == pytest.approx(
            base["figures"]["clip_score"]["mean"], abs=1e-4
        )


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sagediff.cli.commands.bench.find_spec", lambda name: None)
    assert main(["bench", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'sagediff[eval]'" in capsys.readouterr().err
