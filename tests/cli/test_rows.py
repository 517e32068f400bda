"""Prompt files on the command line: every row gets what it asks for, and a killed run ends as if it had not been."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sagediff.builtin.scenes import weights_dir
from sagediff.cli import generation, main
from sagediff.cli.asked_run import guided_sharing
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve
from sagediff.prompts.image_list import read_images

THINGS, COLORS = ("cat", "dog", "star", "cake", "heart"), ("red", "blue", "green", "white")
STEPS = 2


def mixed_rows() -> list[dict[str, Any]]:
    """Forty rows: sizes, seeds, negative prompts, guidance scales, several images, ids, and columns of their own."""
    rows = []
    for number in range(40):
        thing, color = THINGS[number % 5], COLORS[number // 5 % 4]
        row: dict[str, Any] = {
            "prompt": f"a large {thing} at the top on a {color} background",
            "id": f"sku/{number}" if number == 99 else f"sku-{number}",
            "shelf": number * 10,
            "note": None if number % 3 else f"row {number}, “as it is”",
            "group": "theirs",
        }
        if number % 8 == 1:
            row |= {"seed": 1000 + number}
        if number % 8 == 2:
            row |= {"width": 32, "height": 64}
        if number % 8 == 3:
            row |= {"negative_prompt": "blue"}
        if number % 8 == 4:
            row |= {"guidance_scale": 1.0}
        if number == 5:
            row |= {"num_images": 3}
        if number == 6:
            row |= {"num_images": 2, "seed": 77, "negative_prompt": "red", "width": 48, "height": 32}
        rows.append(row)
    return rows


ROWS = mixed_rows()
OPTIONS = [
    "--no-lora", "--guidance", "3", "--steps", str(STEPS), "--width", "32", "--height", "32", "--threshold", "0.5",
    "--file-name", "{id}-{index}", "--wave-size", "6",
]  # fmt: skip


@pytest.fixture(scope="module")
def pipe(small_demo: Any) -> Iterator[Any]:
    """One pipeline of small networks for all runs here."""
    opened = deepcopy(small_demo)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "open_pipeline", lambda model: opened)
        yield opened


@pytest.fixture(scope="module")
def made(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the mixed file."""
    home = tmp_path_factory.mktemp("rows")
    (home / "p.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    assert main(["generate", "--prompts", str(home / "p.jsonl"), *OPTIONS, "--out", str(home / "out")]) == 0
    return home


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def content(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "report.json"  # holds times
    }


def test_every_image_is_what_its_row_asks_for(made: Path, pipe: Any) -> None:
    out = made / "out"
    rows = [row for row in ROWS for _ in range(row.get("num_images", 1))]
    found = records(out)
    assert len(found) == len(rows) == 43
    sampler_pipe = pipe
    for index, (row, record) in enumerate(zip(rows, found, strict=True)):
        assert record["file_name"] == f"images/{row['id']}-{index}.png" and record["prompt"] == row["prompt"]
        assert (record["shelf"], record["note"], record["id"]) == (row["shelf"], row["note"], row["id"])
        assert record["row_group"] == "theirs" and isinstance(record["group"], int)
        size = (row.get("width", 32), row.get("height", 32))
        assert (record["width"], record["height"]) == size
        assert record.get("negative_prompt") == row.get("negative_prompt")
        with Image.open(out / record["file_name"]) as image:
            assert image.size == size and image.text["seed"] == str(record["seed"])  # type: ignore[attr-defined]
            pixels = np.asarray(image, dtype=int)
        if "seed" not in row:
            continue
        assert record["seed"] == row["seed"] + (index - rows.index(row)) and record["branch_step"] == 0
        alone = sampler_pipe(
            row["prompt"], num_inference_steps=STEPS, guidance_scale=row.get("guidance_scale", 3.0), width=size[0],
            height=size[1], negative_prompt=row.get("negative_prompt"),
            generator=torch.Generator().manual_seed(record["seed"]),
        ).images[0]  # fmt: skip
        assert np.abs(pixels - np.asarray(alone, dtype=int)).max() <= 1
    assert len({record["seed"] for record in found if record["id"] == "sku-5"}) == 3
    groups: dict[int, list[dict[str, Any]]] = {}
    for row, record in zip(rows, found, strict=True):
        groups.setdefault(record["group"], []).append(row)
    assert max(map(len, groups.values())) > 1
    for members in groups.values():  # who shares agrees, and is no copy of another
        for name in ("width", "height", "negative_prompt", "guidance_scale"):
            assert len({row.get(name) for row in members}) == 1
        assert len({row["prompt"] for row in members}) == len(members)


def test_plan_says_what_these_rows_cost(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((made / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["evaluations_run"] == report["evaluations"] < report["evaluations_independent"]
    plannable = [each for each in OPTIONS if each not in ("--wave-size", "6", "--file-name", "{id}-{index}")]
    plannable.remove("--no-lora")
    given = ["plan", "--prompts", str(made / "p.jsonl"), *plannable, "--no-lora"]
    assert main([*given, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert {name: planned[name] for name in planned.keys() & report.keys()} == {
        name: report[name] for name in planned.keys() & report.keys()
    }
    assert [each["prompts"] for each in planned["groups"]] == groups_of(records(made / "out"))
    assert main([*given, "--json", "--work", str(made / "work")]) == 0
    assert json.loads(capsys.readouterr().out)["evaluations"] == report["evaluations"]


def groups_of(found: list[dict[str, Any]]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for index, record in enumerate(found):
        groups.setdefault(record["group"], []).append(index)
    return [groups[name] for name in sorted(groups)]


class Killed(BaseException):
    """What no handler catches, as a kill would not be."""


@pytest.mark.parametrize("moment", [3, 17, 41])
def test_killed_and_resumed_the_folder_is_the_same(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    command = ["generate", "--prompts", str(made / "p.jsonl"), *OPTIONS, "--out", str(tmp_path / "out")]
    rename, left = os.replace, moment

    def killed_rename(source: Any, target: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed_rename)
        with pytest.raises(Killed):
            main(command)
    assert main([*command, "--resume"]) == 0
    assert content(tmp_path / "out") == content(made / "out")


def test_other_formats_of_the_file_and_of_the_images(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {name: each for name, each in row.items() if name != "note"} for row in (ROWS[0], ROWS[6], ROWS[3])
    ]
    names = list(ROWS[6])
    names.remove("note")
    table = io.StringIO()
    csv.writer(table, delimiter="\t").writerows(
        [names, *([row.get(name, "") for name in names] for row in rows)]
    )
    (tmp_path / "p.tsv.gz").write_bytes(gzip.compress(table.getvalue().encode()))
    parquet.write_table(
        pyarrow.table({name: [row.get(name) for row in rows] for name in names}), tmp_path / "p.parquet"
    )
    lines = "\n".join(map(json.dumps, rows)).encode()
    options = ["--no-lora", "--steps", "1", "--width", "32", "--height", "32"]
    images = []
    for name in ("p.tsv.gz", "p.parquet", "-"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
        source = name if name == "-" else str(tmp_path / name)
        out = tmp_path / f"out{name}"
        assert main(["generate", "--prompts", source, *options, "--out", str(out)]) == 0
        images.append({path.name: path.read_bytes() for path in (out / "images").iterdir()})
    assert images[0] == images[1] == images[2] and len(images[0]) == 4
    assert [record["shelf"] for record in records(tmp_path / "out-")] == [0, 60, 60, 30]
    again = ["generate", "--prompts", str(tmp_path / "p.parquet"), *options, "--out", str(tmp_path / "jpg")]
    again += ["--format", "jpg", "--quality", "90"]
    assert main(again) == 0
    before = content(tmp_path / "jpg")
    (tmp_path / "jpg" / "images" / "000001.jpg").write_bytes(before["images/000001.jpg"][:-40])
    (tmp_path / "jpg" / "metadata.jsonl").unlink()
    assert main([*again, "--resume"]) == 0
    assert (
        content(tmp_path / "jpg") == before
        and json.loads(capsys.readouterr().out.splitlines()[-1])["images_made"] == 1
    )
    assert main([*again[:-2], "--resume"]) == 2
    assert "other settings (quality)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, options, says",
    [
        (
            "prompt,id\na,x\nb,x\n",
            ["--file-name", "{id}"],
            "p.csv, line 2 and /*p.csv, line 3 would both be 'x'",
        ),
        ("prompt,id\na,../x\n", ["--file-name", "{id}"], "line 2: '../x' cannot be a file's name"),
        ("prompt\na\n", ["--file-name", "{id}"], "line 2: no `id`"),
        ("prompt\na\n", ["--file-name", "../{index}"], "no slash"),
        ("prompt\na\n", ["--quality", "90"], "--quality is for --format jpg and webp"),
        ("prompt\na\n", ["--format", "gif"], "--format must be one of png, jpg, webp"),
        ("prompt\na\n", ["--file-name", "{index}", "--shard-size", "2"], "shards number theirs"),
        ("prompt,width\na,64.5\n", [], "line 2: `width` should be a whole number, got '64.5'"),
        (
            "prompt,width,height\na,64,64\nb,60,64\n",
            [],
            "line 3: StableDiffusionPipeline makes no image of 60x64",
        ),
        ("text,caption\na,b\n", [], "the prompts may be in text, caption"),
        ("prompt,lora\na,b\n", [], "line 2: no such LoRA: b, looked for in"),
        ("prompt\na\n", ["--width", "64"], "--width and --height go together"),
        ("prompt\na\n", ["--images-per-prompt", "0"], "--images-per-prompt must lie in"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    pipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, options: list[str], says: str
) -> None:
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    given = ["--prompts", str(tmp_path / "p.csv"), *options]
    assert main(["generate", *given, "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    complaint = [line for line in shown.err.splitlines() if line.startswith("sagediff: ")]
    assert len(complaint) == 1 and says.replace("/*", f"{tmp_path}/") in complaint[0], shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_rows_that_name_a_guidance_scale_get_it_also_where_the_model_is_best_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The built-in LoRA is for sampling without guidance."""
    rows = [{"prompt": "a large cat at the top on a red background", "seed": 3}]
    rows += [rows[0] | {"guidance_scale": 3.0}, rows[0] | {"negative_prompt": "blue"}]  # type: ignore[operator]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    out = tmp_path / "out"
    assert main(["generate", "--prompts", str(tmp_path / "p.jsonl"), "--steps", "2", "--out", str(out)]) == 0
    words = capsys.readouterr()
    assert "warning: 1 image has a negative prompt but no guidance" in words.err
    assert [record["evaluations"] for record in records(out)] == [2, 4, 2]
    report = json.loads(words.out)
    assert report["evaluations_run"] == report["evaluations"] == 8
    one, two, three = (np.asarray(Image.open(out / record["file_name"]), int) for record in records(out))
    assert np.abs(one - two).max() > 8 and np.abs(one - three).max() <= 1


def test_rows_with_guidance_are_as_cautious_as_the_others(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes((weights_dir() / "model_index.json").read_bytes())
    (tmp_path / "p.csv").write_text("prompt,guidance_scale\na,3\n", encoding="utf-8")
    images = read_images((), tmp_path / "p.csv")
    model, sampling = ModelOptions(str(tmp_path)), SamplingOptions()
    settings = resolve(model, sampling, {}, None, cautious=True)
    assert (
        settings.cautious and guided_sharing(images, settings, model, sampling, {}, None) == settings.sharing
    )


def test_seeds_that_share_where_it_is_said_are_kept_beside(pipe: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"a large {thing} at the top on a red background", "seed": 7} for thing in ("cat", "dog")
    ]
    rows[1]["seed"] = 8
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = [
        "--no-lora",
        "--steps",
        "2",
        "--width",
        "32",
        "--height",
        "32",
        "--threshold",
        "0",
        "--share-ratio",
        "0.5",
    ]
    given += ["--prompts", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "out")]
    assert main(["generate", *given, "--share-seeded"]) == 0
    one, two = records(tmp_path / "out")
    assert one["group"] == two["group"] and one["branch_step"] == two["branch_step"] == 1
    assert (one["seed"], two["seed"], two["row_seed"]) == (7, 7, 8) and "row_seed" not in one
    assert main(["generate", *given, "--resume"]) == 2


def test_shards_hold_what_rows_hold(pipe: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow.parquet import read_table

    rows = [
        {"prompt": "a large cat at the top on a red background", "key": "k", "tags": ["x"], "n": 2},
        {"prompt": "a small dog at the left on a blue background", "price": 2.5, "mixed": 1},
        {"prompt": "a large star at the top on a white background", "mixed": "one"},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    out = tmp_path / "out"
    given = [
        "generate",
        "--prompts",
        str(tmp_path / "p.jsonl"),
        "--no-lora",
        "--steps",
        "1",
        "--format",
        "webp",
    ]
    given += ["--width", "32", "--height", "32", "--shard-size", "3", "--out", str(out)]
    assert main(given) == 0
    before = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    (out / "shards" / "000001.parquet").unlink()
    assert main([*given, "--resume"]) == 0
    assert {path.name: path.read_bytes() for path in (out / "shards").iterdir()} == before
    found = [
        row for number in range(2) for row in read_table(out / "shards" / f"{number:06d}.parquet").to_pylist()
    ]
    by_prompt = {row["prompt"].split()[2]: row for row in found}
    assert by_prompt["cat"]["row_key"] == "k" and json.loads(by_prompt["cat"]["tags"]) == ["x"]
    assert by_prompt["dog"]["price"] == 2.5 and sorted(row["key"] for row in found) == [
        f"{i:06d}" for i in range(4)
    ]
