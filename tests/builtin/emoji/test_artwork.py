"""From the vendors' packages to an imagefolder and back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sagediff.builtin.emoji.artwork import Artwork, read_artwork
from sagediff.builtin.emoji.artwork_folder import (
    ArtworkRow,
    draw_rows,
    image_weights,
    read_pixels,
    read_rows,
    to_signed,
    write_artwork,
)
from sagediff.builtin.emoji.npm_packages import NAMES_PACKAGE, VENDORS, Icon, fetch, read_icon_set
from sagediff.builtin.emoji.svg_render import BACKGROUNDS, draw, on_background, stands_out
from sagediff.errors import InputError


@pytest.fixture(scope="module")
def artwork(icon_packages: Path) -> list[Artwork]:
    return read_artwork(icon_packages)


@pytest.fixture(scope="module")
def folder(artwork: list[Artwork], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artwork(tmp_path_factory.mktemp("data"), artwork, backgrounds=2)


def test_every_vendor_draws_every_name_once(artwork: list[Artwork]) -> None:
    pairs = Counter((one.emoji.name, one.vendor.key) for one in artwork)
    assert set(pairs.values()) == {1} and len(pairs) == 14 * len(VENDORS)
    assert {one.split for one in artwork} == {"unseen"}  # a hundred names and more would have to be there


def test_the_folder_reads_back_as_it_was_drawn(folder: Path, artwork: list[Artwork]) -> None:
    rows = read_rows(folder)
    assert len(rows) == 2 * len(artwork)
    assert all((folder / row.file_name).is_file() for row in rows)
    assert {row.background for row in read_rows(folder, backgrounds=1)} == {"white"}
    assert {row.vendor for row in read_rows(folder, ["noto"])} == {"noto"}
    toned = next(row for row in rows if row.tones)
    assert (toned.base, toned.tones) == ("waving hand", ("dark skin tone",))
    assert rows[0].subject.style in {vendor.words for vendor in VENDORS.values()}
    licences = {json.loads(line)["licence"] for line in (folder / "metadata.jsonl").read_text().splitlines()}
    assert licences == {"Apache-2.0", "CC-BY-4.0", "MIT"}


def test_pixels_are_in_the_order_of_the_rows(folder: Path, artwork: list[Artwork]) -> None:
    rows = read_rows(folder, backgrounds=1)
    pixels = read_pixels(folder, rows)
    drawings = {(one.emoji.name, one.vendor.key): one.icon for one in artwork}
    for place in (0, len(rows) - 1):
        drawn = on_background(draw(drawings[rows[place].name, rows[place].vendor]), "white")
        assert np.array_equal(pixels[place].permute(1, 2, 0).numpy(), drawn)
    signed = to_signed(pixels)
    assert signed.dtype == torch.float32 and signed.min() >= -1 and signed.max() == 1


def test_a_folder_of_another_kind_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="run the stage `data`"):
        read_rows(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 1: no 'name'"):
        read_rows(tmp_path)
    with pytest.raises(InputError, match="no images of the chosen"):
        read_rows(folder, splits=["held_out"])


def test_a_drawing_in_many_skin_tones_weighs_the_root_of_their_number() -> None:
    rows = [
        ArtworkRow("", "", base, base, (), vendor, "", (), "white", "train")
        for base, vendor in [("hand", "noto")] * 4 + [("robot", "noto")]
    ]
    weights = image_weights(rows)
    assert weights[:4].sum() == pytest.approx(2 * weights[4])
    drawn = draw_rows(np.cumsum(weights), 3000, np.random.default_rng(0))
    assert set(drawn.tolist()) == set(range(5))
    assert (drawn == 4).mean() == pytest.approx(1 / 3, abs=0.04)


def test_icons_are_drawn_inside_a_margin_and_mirrored() -> None:
    body = '<rect width="5" height="10" fill="#f00"/>'
    drawing, mirrored = draw(Icon(body, 0, 0, 10, 10)), draw(Icon(body, 0, 0, 10, 10, flipped=True))
    assert drawing.shape == (64, 64, 4)
    assert drawing[:2].sum() == 0 and drawing[32, 4, 3] == 1 and drawing[32, 60, 3] == 0
    assert np.allclose(mirrored, drawing[:, ::-1], atol=0.02)
    image = on_background(drawing, "white")
    assert image[32, 10].tolist() == [255, 0, 0] and image[32, 60].tolist() == [255, 255, 255]
    assert stands_out(drawing, "black") and stands_out(drawing, "white")
    assert set(BACKGROUNDS) > {"white", "black"}


def test_what_is_no_svg_is_left_out_and_named(
    artwork: list[Artwork], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Artwork(artwork[0].emoji, artwork[0].vendor, Icon("<rect", 0, 0, 8, 8), "train")
    write_artwork(tmp_path, [broken, artwork[1]], backgrounds=1)
    assert [row.name for row in read_rows(tmp_path)] == [artwork[1].emoji.name]
    assert f"left out: {broken.emoji.name}" in capsys.readouterr().err


def test_aliases_that_mirror_are_icons_of_their_own(tmp_path: Path) -> None:
    icons = {"icons": {"left": {"body": "<g/>", "width": 8}}, "aliases": {}}
    icons["aliases"] = {"right": {"parent": "left", "hFlip": True}, "west": {"parent": "left"}}
    (tmp_path / "icons.json").write_text(json.dumps(icons))
    (tmp_path / "chars.json").write_text('{"2b05-fe0f": "left"}')
    found = read_icon_set(tmp_path)
    assert found.icons["right"].flipped and found.icons["right"].width == 8
    assert found.aliases == {"west": "left"} and found.code_points == {"2b05": "left"}


def test_a_package_that_cannot_be_had_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "emojibase-data-17.0.0.tgz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="no whole package"):
        fetch(*NAMES_PACKAGE, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="npm, which downloads"):
        fetch("emojilib", "4.0.3", tmp_path)
    assert not list(tmp_path.glob("*.partial"))
