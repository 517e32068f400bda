"""The output folder: whole files only, never another run's, and a killed run can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sagediff.errors import InputError, OutputError
from sagediff.files.image_formats import PNG, ImageFormat
from sagediff.files.output_folder import OutputFolder

SETTINGS: dict[str, Any] = {"model": "demo", "steps": 5, "ratio": 0.4, "lora": None}
PLAN = '{"levels": []}'
CONTENT = {"model": "0123", "lora": "4567"}
TEXTS = [{"prompt": f"prompt {number}", "seed": str(number)} for number in range(6)]


def begun(path: Path) -> OutputFolder:
    folder = OutputFolder(path)
    folder.check(SETTINGS, resume=False)
    folder.begin(SETTINGS, CONTENT, PLAN)
    return folder


def image(shade: int = 0) -> Image.Image:
    return Image.new("RGB", (8, 8), (shade, 0, 0))


def files(path: Path) -> set[str]:
    return {found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file()}


def test_checking_writes_nothing(tmp_path: Path) -> None:
    OutputFolder(tmp_path / "new").check(SETTINGS, resume=False)
    assert not list(tmp_path.iterdir())


def test_everything_is_there_under_its_final_name_only(tmp_path: Path) -> None:
    folder = begun(tmp_path / "deep" / "run")
    folder.save_image(3, PNG.encode(image(), {"prompt": "a cat"}))
    folder.write_lines("metadata.jsonl", [{"a": "東京"}, {"a": 2}])
    folder.write_text("report.json", "{}")
    folder.save_sheet(image())
    expected = {"run.json", "images/000003.png", "metadata.jsonl", "report.json", "contact-sheet.png"}
    assert files(folder.path) == expected
    lines = (folder.path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"a": "東京"}, {"a": 2}]
    assert "東京" in lines[0]


class _Killed(BaseException):
    """What no handler catches, as a kill would not be."""


def _write_half(path: Path, data: bytes) -> int:
    """A write that a kill cuts off."""
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
    raise _Killed


def test_an_image_cut_off_while_written_does_not_count_as_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(tmp_path / "run")
    folder.save_image(0, PNG.encode(image(), TEXTS[0]))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", _write_half)
        with pytest.raises(_Killed):
            folder.save_image(1, PNG.encode(image(), {}))
    assert list(folder.path.glob("images/000001.png.*.partial"))
    assert folder.finished(TEXTS[:3]) == [0]
    again = OutputFolder(folder.path)
    again.check(SETTINGS, resume=True)
    again.begin(SETTINGS, CONTENT, PLAN)
    assert files(folder.path) == {"run.json", "images/000000.png"}
    assert again.finished(TEXTS[:3]) == [0]


def test_only_images_of_the_runs_own_prompts_are_finished(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    for index in (0, 2, 5):
        folder.save_image(index, PNG.encode(image(), TEXTS[index]))
    assert folder.finished(TEXTS[:4]) == [0, 2]
    folder.image_path(1).mkdir()
    assert folder.finished(TEXTS[:4]) == [0, 2]


def _cut(size: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)


def _link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere.png")))


def _scaled(path: Path) -> None:
    with Image.open(path) as found:
        smaller, texts = found.resize((4, 4)), dict(found.info)
    info = PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    smaller.save(path, pnginfo=info)


@pytest.mark.parametrize(
    "harm",
    [
        *map(_cut, (0, 1, 40, -1, -12, -13)), _flip, _link, _scaled, Path.unlink,
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: path.write_bytes(b"no image"),
        lambda path: image().save(path),
        lambda path: image().save(path, format="JPEG"),
        lambda path: path.write_bytes(PNG.encode(image(), TEXTS[2])),
        lambda path: path.write_bytes(PNG.encode(image(), TEXTS[1] | {"seed": "7"})),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)  # fmt: skip
def test_an_image_that_is_not_as_it_was_written_is_made_again(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    folder = begun(tmp_path / "run")
    data = PNG.encode(image(), TEXTS[1])
    for index in (0, 1):
        folder.save_image(index, PNG.encode(image(), TEXTS[index]))
    harm(folder.image_path(1))
    assert folder.finished(TEXTS) == [0]
    folder.save_image(1, data)
    assert folder.finished(TEXTS) == [0, 1] and not folder.image_path(1).is_symlink()


@pytest.mark.parametrize(
    "image_format", [ImageFormat("jpg"), ImageFormat("webp", 80)], ids=lambda each: each.name
)
def test_other_formats_say_the_same_and_are_checked_as_well(
    tmp_path: Path, image_format: ImageFormat
) -> None:
    texts = {"prompt": "ein Löwe, 東京 🦁\nsecond", "seed": str(2**63 - 1)}
    data = image_format.encode(image(), texts | {"plan": '{"group": 0}'})
    assert data == image_format.encode(image(), texts | {"plan": '{"group": 0}'})
    folder = OutputFolder(tmp_path, image_format, "x{}".format)
    (tmp_path / "images").mkdir()
    folder.save_image(0, data)
    path = tmp_path / "images" / f"x0{image_format.suffix}"
    with Image.open(path) as found:
        comment = found.getexif().get_ifd(0x8769)[0x9286]
        assert found.size == (8, 8)
    said = json.loads(comment.removeprefix(b"ASCII\0\0\0"))
    assert said.items() >= {**texts, "plan": '{"group": 0}', "size": "8x8"}.items()
    assert folder.finished([texts]) == [0] and folder.finished([texts | {"seed": "7"}]) == []
    for at in range(0, len(data), 7):  # any byte
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert folder.finished([texts]) == []
    for harmed in (b"", data[:-1], data + b"x", PNG.encode(image(), texts), b"no image"):
        path.write_bytes(harmed)
        assert folder.finished([texts]) == []
    long = {"prompt": "猫" * 90_000, "seed": "3"}
    path.write_bytes(image_format.encode(image().convert("RGBA"), long))
    assert folder.finished([long]) == [0] and folder.finished([long | {"prompt": "猫" * 90_001}]) == []


def test_writing_again_replaces_the_whole_file(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    for shade in (10, 200):
        folder.save_image(0, PNG.encode(image(shade), {"n": str(shade)}))
    with Image.open(folder.image_path(0)) as found:
        assert found.getpixel((0, 0)) == (200, 0, 0)
        assert found.text == {"n": "200", "size": "8x8"}  # type: ignore[attr-defined]


def test_texts_are_read_back_from_the_image(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    texts = {"prompt": "ein Löwe, 東京 🦁\nsecond line", "seed": str(2**63 - 1), "plan": '{"group": 0}'}
    folder.save_image(0, PNG.encode(image(), texts))
    with Image.open(folder.image_path(0)) as found:
        assert found.text == texts | {"size": "8x8"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["notes.txt", "images/000000.png", "run.json"])
def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"in use.*--resume"):
        OutputFolder(tmp_path).check(SETTINGS, resume=False)
    with pytest.raises(InputError, match="not by a run that can be resumed"):
        OutputFolder(tmp_path).check(SETTINGS, resume=True)
    assert files(tmp_path) == {name}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        OutputFolder(tmp_path / "file").check(SETTINGS, resume=True)


@pytest.mark.parametrize("resume", [True, False])
def test_an_empty_folder_and_one_of_a_run_killed_at_its_birth_can_be_used(
    tmp_path: Path, resume: bool
) -> None:
    OutputFolder(tmp_path).check(SETTINGS, resume)
    (tmp_path / "run.json.0123456789ab.partial").write_text("{")
    (tmp_path / ".sagediff.lock").touch()
    OutputFolder(tmp_path).check(SETTINGS, resume)
    (tmp_path / ".sagediff.lock").unlink()
    OutputFolder(tmp_path).begin(SETTINGS, CONTENT, PLAN)
    assert files(tmp_path) == {"run.json"}


@pytest.mark.parametrize(
    "change, named",
    [
        ({"steps": 6}, ["steps"]),
        ({"ratio": 0.5, "model": "other"}, ["model", "ratio"]),
        ({"lora": "x"}, ["lora"]),
        ({"new": 1}, ["new"]),
    ],
)
def test_resuming_with_other_settings_is_refused_and_they_are_named(
    tmp_path: Path, change: dict[str, Any], named: list[str]
) -> None:
    begun(tmp_path / "run")
    with pytest.raises(InputError, match=rf"other settings \({', '.join(named)}\)"):
        OutputFolder(tmp_path / "run").check(SETTINGS | change, resume=True)
    OutputFolder(tmp_path / "run").check(SETTINGS, resume=True)


def test_going_on_with_other_files_under_the_same_names_is_refused_and_they_are_named(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    folder.check_content(CONTENT)
    OutputFolder(tmp_path / "free").check_content(CONTENT)
    for other, named in (
        (CONTENT | {"lora": "89ab"}, "lora"),
        ({"model": "89ab", "lora": "89ab"}, "lora, model"),
        ({"model": "0123"}, "lora"),
        (CONTENT | {"encoder": "89ab"}, "encoder"),
    ):
        with pytest.raises(
            InputError, match=rf"made with other content \({named}\); put the same files there"
        ):
            folder.check_content(other)


@pytest.mark.parametrize(
    "manifest",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"settings": [1]}', b'{"settings": 1e999}', b"[" * 100_000, b"{}"],
)
def test_a_manifest_that_is_none_is_refused_in_words(tmp_path: Path, manifest: bytes) -> None:
    (tmp_path / "run.json").write_bytes(manifest)
    with pytest.raises(InputError, match=r"run\.json"):
        OutputFolder(tmp_path).check(SETTINGS, resume=True)


def test_a_run_of_before_content_was_recorded_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"settings": SETTINGS, "plan": {}}))
    OutputFolder(tmp_path).check(SETTINGS, resume=True)
    with pytest.raises(InputError, match=r"holds no content, it is damaged or of an earlier version"):
        OutputFolder(tmp_path).check_content(CONTENT)


def test_a_folder_that_cannot_be_written_is_a_failure_of_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*kept"):
        OutputFolder(tmp_path / "file" / "run").begin(SETTINGS, CONTENT, PLAN)
