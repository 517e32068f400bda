"""`generate` where images are none, or would be equal: exit 1 and what is finite kept; copies told by what is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sagediff.cli.main import main

PROMPTS = ["a large cat at the top on a red background", "a small dog at the left on a blue background"]


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_an_image_that_is_none_ends_with_1_and_a_resume_makes_it(
    small_demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sagediff.cli.generation.open_pipeline", lambda model: small_demo)
    bad = [True]

    def spoil(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if bad[0]:
            output[0][1] = float("nan")
        return output

    asked = [
        "generate",
        *PROMPTS,
        "--out",
        str(tmp_path),
        "--steps",
        "2",
        "--guidance",
        "1",
        "--threshold",
        "1",
    ]
    handle = small_demo.unet.register_forward_hook(spoil, with_kwargs=True)
    try:
        assert main([*asked, "--no-lora"]) == 1
        words = capsys.readouterr().err
        assert "not finite" in words and "prompt 1 ('a small dog" in words and "Traceback" not in words
        assert [file.name for file in sorted((tmp_path / "images").iterdir())] == ["000000.png"]
        assert not (tmp_path / "report.json").exists()
        bad[0] = False
        assert main([*asked, "--no-lora", "--resume"]) == 0
    finally:
        handle.remove()
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["images_made"] == 1


def test_who_is_cut_is_told(
    small_demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sagediff.cli.generation.open_pipeline", lambda model: small_demo)
    long = PROMPTS[0] + " and" * 30
    copies = [PROMPTS[0], PROMPTS[0].upper(), long + " one", long + " two", PROMPTS[0]]
    options = ["--steps=2", "--guidance=4", "--threshold=0.9", "--share-ratio=0.5", "--no-lora"]
    asked = [*copies, *options]
    assert main(["generate", *asked, "--out", str(tmp_path)]) == 0
    out, words = capsys.readouterr()
    assert json.loads(out)["cut_prompts"] == 2
    assert "warning: 2 prompts are longer" in words and "2, 3" in words
    lines = (tmp_path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len({records[i]["seed"] for i in (0, 1, 4)}) == 3  # copies, as the encoder reads them
    assert len({records[i]["seed"] for i in (2, 3)}) == 2
    pixels = {(tmp_path / record["file_name"]).read_bytes()[-2000:] for record in records}
    assert len(pixels) == 5
