"""Folders are one run's at a time, and a run that goes on finds what it left: by content, and whole."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sagediff.builtin.scenes import lora_dir, weights_dir
from sagediff.cli import generation, main
from sagediff.files.claim import claimed_file, claimed_output

PROMPTS = [f"a large {thing} at the top on a red background" for thing in ("cat", "star", "cake", "heart")]
GENERATE = ["generate", *PROMPTS, "--steps", "1", "--wave-size", "1"]
COMMANDS = {
    "generate": GENERATE,
    "sharded": [*GENERATE, "--shard-size", "2"],
    "train": ["train", "--data", "data", "--report-to", "none"],
    "bench": ["bench", "--captions", "4", "--steps", "1"],
    "tune": ["tune", "--captions", "4", "--steps", "1"],
}


def everything(path: Path) -> dict[str, bytes | None]:
    return {
        found.relative_to(path).as_posix(): found.read_bytes() if found.is_file() else None
        for found in path.rglob("*")
    }


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("sagediff: "), shown
    return shown.err


# -- one run at a time


@pytest.mark.parametrize("first", ["folder", "file"])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("second", COMMANDS)
def test_where_another_run_writes_the_second_is_refused_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str, second: str, resume: bool
) -> None:
    """The folder is that of generate, train and bench, the file that of tune."""
    place = tmp_path / "place"
    held = claimed_file(place) if first == "file" else claimed_output(place)
    with held:
        if first == "folder":
            (place / "run.json").write_text('{"settings": {}}')
        before = everything(tmp_path)
        options = ["--resume"] if resume and second != "tune" else []
        start = time.monotonic()
        assert main([*COMMANDS[second], "--out", str(place), *options]) == 2
        assert time.monotonic() - start < 5
        assert f"--out {place} is being written by another run" in one_line(capsys) or (
            first == "folder" and second == "tune"
        )
        assert everything(tmp_path) == before


def test_it_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    place = tmp_path / "place"
    runs = [[*command, "--out", str(place)] for command in COMMANDS.values()]
    code = (
        f"import sys; from sagediff.cli import main; codes = [main(run) for run in {runs!r}]\n"
        "print(codes, [name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    with claimed_output(place):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[2, 2, 2, 2, 2] []\n", done
    assert done.stderr.count("another run") == 4 and "is a folder" in done.stderr


def test_planning_folders_are_one_runs_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claimed_output(tmp_path / "work", "--work"):
        for command in (["plan", *PROMPTS], [*GENERATE, "--out", str(tmp_path / "out")]):
            assert main([*command, "--work", str(tmp_path / "work")]) == 2
            assert "--work" in (said := capsys.readouterr().err) and "another run" in said
    assert not list(tmp_path.iterdir())


def test_a_servers_cache_is_one_servers_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(
        "uvicorn", reason="the server's extra is not installed: pip install 'sagediff[serve]'"
    )
    cache = tmp_path / "cache"
    with claimed_output(cache):
        assert main(["serve", "--cache-dir", str(cache), "--port", "0"]) == 2
        assert f"--cache-dir {cache} is being written by another run" in one_line(capsys)


# -- by content


def scaled(file: Path, factor: float) -> None:
    tensors = {
        name: tensor * factor if tensor.is_floating_point() else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})


def test_other_weights_under_the_same_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(weights_dir(), "model")
    shutil.copytree(lora_dir(), "lora")
    command = ["generate", *PROMPTS[:2], "--steps", "1", "--model", "model", "--lora", "lora", "--out", "out"]
    assert main(command) == 0
    Path("out/images/000001.png").unlink()
    before = everything(Path("out"))
    for file, named in (
        ("lora/pytorch_lora_weights.safetensors", "lora"),
        ("model/unet/diffusion_pytorch_model.safetensors", "model"),
        ("model/scheduler/scheduler_config.json", "model"),
    ):
        kept = Path(file).read_bytes()
        if file.endswith(".json"):
            Path(file).write_bytes(kept + b"\n")
        else:
            scaled(Path(file), 1.05)
        capsys.readouterr()
        assert main([*command, "--resume"]) == 2
        assert f"made with other content ({named}); put the same files there" in one_line(capsys)
        Path(file).write_bytes(kept)
    assert everything(Path("out")) == before
    assert main([*command, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["images_made"] == 1


# -- whole


@pytest.fixture(scope="module")
def generate(small_model: Path) -> list[str]:
    """Makes four images of small networks, a wave for each."""
    return [*GENERATE, "--model", str(small_model)]


@pytest.fixture(scope="module")
def finished(generate: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs that have ended: `files` and, of the same images, `shards`."""
    home = tmp_path_factory.mktemp("finished")
    assert main([*generate, "--out", str(home / "files")]) == 0
    assert main([*generate, "--out", str(home / "shards"), "--shard-size", "2"]) == 0
    return home


def harmed_images(images: Path) -> None:
    os.truncate(images / "000000.png", 0)
    os.truncate(images / "000001.png", 1500)
    (images / "000002.png").unlink()
    (images / "000002.png").symlink_to(images / "000003.png")


def test_images_that_are_not_whole_are_made_again(
    generate: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(finished / "files", tmp_path / "out")
    harmed_images(out / "images")
    (out / "metadata.jsonl").write_bytes(b"")
    (out / "contact-sheet.png").write_bytes(b"")
    assert main([*generate, "--out", str(out), "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["images_made"] == 3
    ours, theirs = everything(out), everything(finished / "files")
    for each in (ours, theirs):
        del each["report.json"]  # holds times
    assert ours == theirs


def test_shards_take_no_image_that_is_not_whole(
    generate: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(finished / "shards", tmp_path / "out")
    (out / "shards" / "000000.parquet").unlink()
    os.truncate(out / "shards" / "000001.tar", 5000)
    for file in (finished / "files" / "images").iterdir():
        shutil.copy(file, out / "images")
    harmed_images(out / "images")
    assert main([*generate, "--out", str(out), "--shard-size", "2", "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["images_made"] == 3
    for name in ("000000.tar", "000001.tar", "000000.parquet", "000001.parquet"):
        assert (out / "shards" / name).read_bytes() == (finished / "shards" / "shards" / name).read_bytes()
    assert not list((out / "images").iterdir())


class _Killed(BaseException):
    """What no handler catches, as a kill would not be."""


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs take one pipeline, as loading it takes longer than all else here."""
    pipe = cache(generation.open_pipeline)
    monkeypatch.setattr(generation, "open_pipeline", lambda model: pipe(model))


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_a_kill_at_any_write_changes_no_byte(
    generate: list[str],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm: None,
    kind: str,
) -> None:
    """Each run is killed two writes later than the one before it, with the file half written or not yet renamed."""
    command = [*generate, *(["--shard-size", "2"] if kind == "shards" else [])]
    whole = everything(finished / kind)
    del whole["report.json"]  # holds times
    rename, write, left = os.replace, Path.write_bytes, 0

    def killed_rename(source: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Killed
        rename(source, target)

    def killed_write(path: Path, data: bytes) -> int:
        if left == 0:
            write(path, data[: len(data) // 2])
            raise _Killed
        return write(path, data)

    for number in range(0, 30, 2):
        out = tmp_path / str(number)
        left = number
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed_rename)
            if number % 4:
                patch.setattr(Path, "write_bytes", killed_write)
            try:
                ended = main([*command, "--out", str(out)]) == 0
            except _Killed:
                ended = False
        assert ended or list(out.rglob("*.partial"))
        assert main([*command, "--out", str(out), "--resume"]) == 0
        after = everything(out)
        del after["report.json"]
        assert after == whole
        if ended:
            break
    assert ended and number > 6


# -- exit code 2 leaves nothing


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "no such host", "http://127.0.0.1:{port}"])
def test_a_cluster_that_is_not_there_is_said_in_seconds_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'sagediff[ray]'")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        asked = address.format(port=unused.getsockname()[1])
        start = time.monotonic()
        assert main([*GENERATE, "--ray", asked, "--out", str(tmp_path / "out")]) == 2
    assert time.monotonic() - start < 20  # importing Ray takes some
    assert asked in one_line(capsys) and not list(tmp_path.iterdir())


def test_what_cannot_go_on_once_images_are_written_is_a_failure_at_work(
    generate: list[str],
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sagediff.errors import InputError
    from sagediff.sampling.sampler import SharedSampler

    whole: Callable[..., object] = SharedSampler.run
    calls: list[object] = []

    def second_fails(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise InputError("the pipeline does not want this prompt")
        return whole(*arguments)

    monkeypatch.setattr(SharedSampler, "run", second_fails)
    out = shutil.copytree(finished / "files", tmp_path / "out")
    for number in range(4):
        (out / "images" / f"{number:06d}.png").unlink()
    assert main([*generate, "--out", str(out), "--resume"]) == 1
    assert "does not want this prompt; what was finished is kept" in capsys.readouterr().err
    assert len(list((out / "images").iterdir())) >= 1 and not (out / "report.json").exists()
    assert not list(out.glob(".*"))
    assert main([*generate, "--out", str(out), "--resume"]) == 0
