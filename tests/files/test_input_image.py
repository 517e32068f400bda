"""Images that requests begin from are known by what they show, wherever they come from."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sagediff.errors import InputError
from sagediff.files import image_input
from sagediff.files.input_image import InputImage
from sagediff.prompts.requests import ImageRequest


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 9, 3), dtype=np.uint8)).convert(
        mode
    )


def test_the_same_image_is_the_same_from_memory_or_any_file(tmp_path: Path) -> None:
    one = InputImage.of(picture(1))
    for name in ("a.png", "b.bmp"):
        picture(1).save(tmp_path / name)
        for path in (tmp_path / name, str(tmp_path / name)):
            found = InputImage.of(path)
            assert found == one and hash(found) == hash(one) and found.size == (9, 6)
            assert np.array_equal(np.asarray(found.open()), np.asarray(picture(1)))
    assert InputImage.of(picture(2)) != one
    assert InputImage.of(picture(1).rotate(180)) != one
    assert InputImage.of(one) is one
    copied = pickle.loads(pickle.dumps(one))
    assert copied == one and np.array_equal(np.asarray(copied.open()), np.asarray(picture(1)))


def test_a_mask_is_gray_and_no_image() -> None:
    mask = InputImage.of(picture(1), "mask")
    assert mask.open().mode == "L" and mask != InputImage.of(picture(1))
    with pytest.raises(InputError, match="expected an image, got a mask"):
        InputImage.of(mask)


def test_what_is_done_to_an_image_afterwards_does_not_matter() -> None:
    image = picture(1)
    taken = InputImage.of(image)
    image.paste((0, 0, 0), (0, 0, 9, 6))
    assert np.array_equal(np.asarray(taken.open()), np.asarray(picture(1)))
    taken.open().paste((0, 0, 0), (0, 0, 9, 6))
    assert np.array_equal(np.asarray(taken.open()), np.asarray(picture(1)))


def test_a_file_that_changes_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    picture(1).save(file)
    before = InputImage.of(file)
    picture(2).save(file)
    os.utime(file, (1, 1))
    assert InputImage.of(file) != before
    with pytest.raises(InputError, match=r"a\.png was changed"):
        before.open()
    file.unlink()
    with pytest.raises(InputError, match=r"a\.png"):
        before.open()


@pytest.mark.parametrize("value", [3, b"a", None, "", " ", ["a.png"], np.zeros((3, 3, 3))])
def test_what_is_no_image_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="must be a PIL image or the path"):
        InputImage.of(value)


@pytest.mark.parametrize("name", ["missing.png", "text.png", "folder", "~nobody-here/a.png", "a\0b"])
def test_a_file_that_is_no_image_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder").mkdir()
    path = name if name.startswith("~") else str(tmp_path / name)
    with pytest.raises(InputError, match=r"cannot read the image|is a folder"):
        InputImage.of(path)


def test_images_in_memory_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_input, "MAX_PIXELS", 50)
    with pytest.raises(InputError, match="9 x 6 pixels"):
        InputImage.of(picture(1))


# -- requests --------------------------------------------------------------------------------------


def test_requests_hold_what_they_show(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    one = ImageRequest("a cat", image=picture(1), mask_image=picture(3))
    two = ImageRequest("a cat", image=tmp_path / "a.png", mask_image=picture(3))
    assert one == two and one.identity == two.identity and len(one.images) == 1 and one.mask is not None
    several = ImageRequest("a cat", image=[picture(1), str(tmp_path / "a.png"), picture(2)])
    assert len(several.images) == 3 and several.images[0] == several.images[1] == one.images[0]
    assert ImageRequest("a cat").images == () and ImageRequest("a cat").identity == "a cat"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mask_image": Image.new("L", (4, 4))}, "without an image"),
        ({"image": []}, "no images"),
        ({"image": 3}, "PIL image or the path"),
        ({"image": "missing.png"}, "missing"),
        ({"strength": 0}, r"\(0, 1\]"),
        ({"strength": 1.5}, r"\(0, 1\]"),
        ({"strength": float("nan")}, r"\(0, 1\]"),
        ({"strength": True}, "a number"),
        ({"strength": "0.5"}, "a number"),
    ],
)
def test_a_request_that_cannot_be_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ImageRequest("a cat", **fields)
