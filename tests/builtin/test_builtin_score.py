"""The stages `score` and `reference`: they run, and give what the evaluation loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sagediff.builtin.scenes import judge_dir, weights_dir
from sagediff.builtin.scenes.networks import load_score_tower
from sagediff.builtin.scenes.render import FONT_FILES
from sagediff.builtin.scenes.training import scene_images
from sagediff.builtin.scenes.training.__main__ import main
from sagediff.builtin.scenes.world import training_scenes
from sagediff.builtin.training.contrast import contrastive_terms
from sagediff.builtin.training.stage_loop import bf16_pays

needs_font = pytest.mark.skipif(
    not any(f.is_file() for f in FONT_FILES), reason="font Noto Color Emoji not installed"
)


@needs_font
def test_the_score_tower_trains_against_the_shipped_text_encoder_and_a_finished_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = training_scenes()[
        :600
    ]  # of all sizes, places and colors; the text encoder reads every one of them
    monkeypatch.setattr(scene_images, "training_scenes", lambda: some)
    common = ["score", "--text-encoder", str(weights_dir()), "--batch-size", "8", "--save-seconds", "0"]
    common += ["--device", "cpu", "--steps", "3"]
    assert main([*common, "--out", str(tmp_path)]) == 0
    once = load_file(tmp_path / "score_tower.safetensors")
    assert main([*common, "--out", str(tmp_path), "--resume"]) == 0
    again = load_file(tmp_path / "score_tower.safetensors")
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert load_score_tower(tmp_path, 128)(torch.zeros(1, 3, 64, 64)).shape == (1, 128)


@needs_font
def test_the_shipped_reference_is_what_its_stage_makes(tmp_path: Path) -> None:
    (tmp_path / "judge.safetensors").write_bytes((judge_dir() / "judge.safetensors").read_bytes())
    assert main(["reference", "--device", "cpu", "--out", str(tmp_path)]) == 0
    made, shipped = (load_file(f / "reference.safetensors")["features"] for f in (tmp_path, judge_dir()))
    assert torch.allclose(
        made.float(), shipped.float(), rtol=1e-2, atol=0.5
    )  # features are of the order of 30


def test_stages_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", "--out", str(tmp_path)]) == 2
    assert "train the stage `judge`" in capsys.readouterr().err


def test_all_shipped_weights_stay_small() -> None:
    assert sum(f.stat().st_size for f in weights_dir().parent.rglob("*") if f.is_file()) <= 40_000_000


def test_equal_captions_are_right_for_one_another() -> None:
    vectors = torch.eye(3)[[0, 0, 1]]
    captions = ["a", "a", "b"]
    terms = contrastive_terms(vectors, vectors, torch.tensor(4.0), captions)
    # within the two equal rows the best that can be done is a coin's entropy
    assert float(sum(terms.values())) == pytest.approx(2 / 3 * float(torch.tensor(2.0).log()), abs=1e-4)


def test_bf16_is_used_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bf16_pays("cuda")
    for capabilities, pays in (({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert bf16_pays("cpu") is pays
