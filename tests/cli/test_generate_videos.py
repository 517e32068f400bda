"""`sagediff generate` on models that make videos: files that any player reads, and the same after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tiny import prompted

from sagediff.cli import main

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'sagediff[video]'")

PROMPTS = [
    f"a {color} {size} {animal}"
    for color in ("red", "blue")
    for size in ("small", "large")
    for animal in ("cat", "dog", "bird")
]
SIZES = {"wan": ("32x16", 5, 16.0), "ltx": ("64x32", 9, 25.0)}
SHARING = ["--threshold", "-1", "--share-ratio", "0.5", "--max-group-size", "4"]


@pytest.fixture(scope="module", params=SIZES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A tiny model's name, and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    getattr(prompted, request.param)().save_pretrained(folder)
    return request.param, folder


def command(case: tuple[str, Path], out: Path, *more: str) -> list[str]:
    name, folder = case
    size, frames, _ = SIZES[name]
    return [
        "generate", *PROMPTS, "--model", str(folder), "--size", size, "--frames", str(frames), "--steps", "2",
        "--guidance", "4", "--wave-size", "5", *SHARING, "--out", str(out), *more,
    ]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "report.json"
    }


def test_twelve_prompts_make_twelve_clips_and_a_killed_run_goes_on(
    case: tuple[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, _ = case
    size, frames, fps = SIZES[name]
    width, height = map(int, size.split("x"))
    out = tmp_path / "out"
    assert main(command(case, out)) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    assert (
        report["evaluations_run"] == report["evaluations"] < report["evaluations_independent"] == 12 * 2 * 2
    )
    assert report["images_made"] == 12
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [f"videos/{i:06d}.mp4" for i in range(12)]
    assert [line["prompt"] for line in lines] == PROMPTS
    for line in lines:
        with av.open(str(out / line["file_name"])) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height, stream.frames) == (width, height, frames)
            assert float(stream.average_rate) == fps
            assert len(list(container.decode(video=0))) == frames
            assert json.loads(container.metadata["comment"])["seed"] == str(line["seed"])
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.width > 3 * 144

    # killed: one clip is missing, one is cut, and the report is not there yet
    again = tmp_path / "again"
    shutil.copytree(out, again)
    (again / "report.json").unlink()
    (again / "videos" / "000003.mp4").unlink()
    cut = again / "videos" / "000007.mp4"
    cut.write_bytes(cut.read_bytes()[:-40])
    assert main(command(case, again, "--resume")) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["images_made"] == 2
    assert contents(again) == contents(out)
    assert main(command(case, again, "--resume", "--fps", "8")) == 2
    assert "fps" in capsys.readouterr().err


def test_options_reach_the_clips(
    case: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    name, folder = case
    size, frames, _ = SIZES[name]
    width, height = map(int, size.split("x"))
    rows.write_text(
        json.dumps({"prompt": "a cat", "width": width, "height": height, "seed": 3, "shelf": [1]})
    )
    out = tmp_path / "out"
    arguments = ["--prompts", str(rows), "--model", str(folder), "--steps", "1", "--guidance", "1"]
    more = ["--frames", str(frames), "--fps", "12.5", "--file-name", "clip-{seed}", "--out", str(out)]
    assert main(["generate", *arguments, *more]) == 0, capsys.readouterr().err
    line = json.loads((out / "metadata.jsonl").read_text())
    assert line["file_name"] == "videos/clip-3.mp4" and line["shelf"] == [1] and line["width"] == width
    with av.open(str(out / line["file_name"])) as container:
        assert float(container.streams.video[0].average_rate) == 12.5
    capsys.readouterr()
    assert main(["plan", *arguments, "--frames", str(frames), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["evaluations"] == json.loads((out / "report.json").read_text())["evaluations"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "jpg"], "--format and --quality are for images"),
        (["--shard-size", "2"], "--shard-size is for images"),
        (["--frames", "0"], "frames"),
        (["--fps", "0"], "fps"),
    ],
)
def test_what_is_for_images_is_refused(
    case: tuple[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    out = tmp_path / "out"
    assert main(["generate", "a cat", "--model", str(case[1]), "--out", str(out), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("option", ["--frames", "--fps"])
def test_what_is_for_videos_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    out = tmp_path / "out"
    assert main(["generate", "a cat", "--out", str(out), option, "5"]) == 2
    assert f"{option} is for models that make videos" in capsys.readouterr().err
    assert not out.exists()
    assert main(["plan", "a cat", option, "5"]) == 2
    assert f"{option} is for models that make videos" in capsys.readouterr().err
