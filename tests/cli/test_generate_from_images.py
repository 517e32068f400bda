"""`sagediff generate` from images: columns and options name files, rows of one image share, and nobody else does."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import prompted
from tiny.prompted import half_mask, random_image

from sagediff.cli import main

TEXTS = ["a red cat", "a blue dog", "a small green bird", "a large cat"]
SHARING = ["--threshold", "-1", "--share-ratio", "0.5", "--guidance", "4", "--steps", "4"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny models: one for texts, one that fills in, one that edits."""
    home = tmp_path_factory.mktemp("models")
    prompted.sd(diffusers.StableDiffusionPipeline).save_pretrained(home / "texts")
    prompted.sd(diffusers.StableDiffusionInpaintPipeline).save_pretrained(home / "inpaint")
    prompted.ltx().save_pretrained(home / "ltx")
    return home


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with a prompt file and images beside it."""
    (tmp_path / "photos").mkdir()
    random_image(1).save(tmp_path / "photos" / "cup.png")
    random_image(2).save(tmp_path / "photos" / "jar.png")
    random_image(1).save(tmp_path / "photos" / "same cup.bmp")
    half_mask().save(tmp_path / "photos" / "mask.png")
    return tmp_path


def table(file: Path, rows: list[dict[str, Any]]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_rows_of_one_image_share_and_get_what_it_gives(
    models: Path, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model for texts: its pipeline from images is taken."""
    names = ["photos/cup.png", "photos/jar.png", "photos/same cup.bmp", "photos/jar.png"]
    rows = [
        {"prompt": text, "image": name, "strength": 0.5, "shelf": i}
        for i, (text, name) in enumerate(zip(TEXTS, names, strict=True))
    ]
    file, out = table(shop / "rows.csv", rows), shop / "out"
    command = [
        "generate",
        "--prompts",
        str(file),
        "--model",
        str(models / "texts"),
        *SHARING,
        "--out",
        str(out),
    ]
    assert main(command) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    assert report["num_groups"] == 2 and report["num_steps"] == 2
    assert report["evaluations_run"] == report["evaluations"]
    found = lines(out)
    assert [(line["image"], line["strength"], line["shelf"]) for line in found] == [
        (name, 0.5, str(i)) for i, name in enumerate(names)
    ]
    assert [line["group"] for line in found] == [0, 1, 0, 1]
    assert main(["plan", *command[1:-2], "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [group["prompts"] for group in planned["groups"]] == [[0, 2], [1, 3]]
    assert planned["evaluations"] == report["evaluations"] and planned["num_steps"] == 2

    before = (out / "images" / "000001.png").read_bytes()
    (out / "images" / "000001.png").unlink()
    assert main([*command, "--resume"]) == 0, capsys.readouterr().err
    assert (out / "images" / "000001.png").read_bytes() == before
    random_image(9).save(shop / "photos" / "jar.png")  # another image under the same name
    capsys.readouterr()
    assert main([*command, "--resume"]) == 2
    assert "requests" in capsys.readouterr().err


def test_a_seeded_row_is_the_pipelines_own_image(
    models: Path, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": text, "seed": 7 + i, "image": "photos/cup.png"} for i, text in enumerate(TEXTS[:2])]
    file, out = table(shop / "rows.csv", rows), shop / "out"
    photo = shop / "photos"
    more = ["--mask-image", str(photo / "mask.png"), "--strength", "0.7", "--size", "16x16"]
    command = ["generate", "--prompts", str(file), "--model", str(models / "inpaint"), *SHARING, *more]
    assert main([*command, "--out", str(out)]) == 0, capsys.readouterr().err
    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
        models / "inpaint", safety_checker=None, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    for line in lines(out):
        assert line["mask_image"] == str(photo / "mask.png") and line["strength"] == 0.7
        expected = pipe(
            line["prompt"], image=random_image(1), mask_image=half_mask(), strength=0.7, num_inference_steps=4,
            guidance_scale=4.0, generator=torch.Generator().manual_seed(line["seed"]), width=16, height=16,
        ).images[0]  # fmt: skip
        with Image.open(out / line["file_name"]) as image:
            assert np.abs(np.asarray(image, dtype=int) - np.asarray(expected)).max() <= 1


def test_clips_from_images(models: Path, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LTX's one model makes both: the pipeline from images is taken where rows have some."""
    pytest.importorskip("av", reason="PyAV is not installed: pip install 'sagediff[video]'")
    out = shop / "out"
    command = [
        "generate",
        *TEXTS[:2],
        "--model",
        str(models / "ltx"),
        "--image",
        str(shop / "photos" / "cup.png"),
    ]
    more = ["--frames", "9", "--size", "32x32", *SHARING[:-2], "--steps", "2", "--out", str(out)]
    assert main([*command, *more]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["num_groups"] == 1
    assert [line["file_name"] for line in lines(out)] == ["videos/000000.mp4", "videos/000001.mp4"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "photos/none.png"}, "rows.csv, line 2.*none.png"),
        ({"image": "rows.csv"}, "rows.csv, line 2.*cannot read the image"),
        ({"image": "photos"}, "rows.csv, line 2.*folder"),
        ({"mask_image": "photos/mask.png"}, "rows.csv, line 2.*without an image"),
        ({"image": "photos/cup.png", "strength": "2"}, "rows.csv, line 2.*strength"),
        ({"image": "photos/cup.png", "strength": "half"}, "rows.csv, line 2.*strength.*number"),
        (
            {"image": "photos/cup.png", "width": "16", "height": "16"},
            "rows.csv, line 2.*leave width and height out",
        ),
        ({"strength": "0.5"}, "rows.csv, line 2.*strength.*takes none"),
    ],
)
def test_what_cannot_be_is_refused_with_its_row(
    models: Path, shop: Path, capsys: pytest.CaptureFixture[str], row: dict[str, str], words: str
) -> None:
    file, out = table(shop / "rows.csv", [{"prompt": "a red cat"} | row]), shop / "out"
    command = ["generate", "--prompts", str(file), "--model", str(models / "texts"), "--out", str(out)]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert re.search(words, said), said
    assert not out.exists()


def test_rows_without_an_image_among_others_are_named(
    models: Path, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "a red cat", "image": "photos/cup.png"}, {"prompt": "a blue dog", "image": ""}]
    file = table(shop / "rows.csv", rows)
    command = [
        "generate",
        "--prompts",
        str(file),
        "--model",
        str(models / "texts"),
        "--out",
        str(shop / "out"),
    ]
    assert main(command) == 2
    assert "line 3: there is no image" in capsys.readouterr().err
