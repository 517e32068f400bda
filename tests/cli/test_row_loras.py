"""A row's `lora`: its image is that of a run with that LoRA, it shares with none of another, and what is wrong is said
with the row before anything is made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sagediff import ImageRequest, SharedSampler
from sagediff.cli import generation, main
from sagediff.errors import InputError
from sagediff.files.lora_files import LoraSet
from sagediff.pipelines.lora_weights import merge_loras
from sagediff.pipelines.run_settings import ModelOptions
from sagediff.pipelines.running import offload

PROMPTS = [f"a large {thing} at the top on a red background" for thing in ("cat", "dog")]
OPTIONS = [
    "--steps", "2", "--threshold", "-1", "--share-ratio", "0.5", "--guidance", "3", "--width", "32", "--height", "32",
    "--device", "cpu",
]  # fmt: skip
SETS = [
    "loras/a.safetensors:0.5",
    "./loras/b.safetensors",
    ["loras/a.safetensors", "loras/b.safetensors:-0.5"],
]


def write_lora(file: Path, seed: int, layers: list[str], scale: float = 0.3) -> None:
    """For a U-Net's layers of 1 in and 1 out of their own sizes."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out, into) in ((each, SHAPES[each]) for each in layers):
        tensors[f"{name}.lora_A.weight"] = scale * torch.randn((2, into), generator=generator)
        tensors[f"{name}.lora_B.weight"] = scale * torch.randn((out, 2), generator=generator)
    file.parent.mkdir(exist_ok=True)
    save_file(tensors, file)


SHAPES: dict[str, tuple[int, int]] = {}


@pytest.fixture(scope="module")
def home(small_demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two LoRAs; runs there get small networks, with their own LoRAs as `open_pipeline` puts them in."""

    def opened(model: ModelOptions, *, apart: bool = False) -> Any:
        pipe = deepcopy(small_demo)
        merge_loras(pipe, model.loras(), apart=apart)
        return pipe

    for part in ("unet", "text_encoder"):
        for name, layer in getattr(small_demo, part).named_modules():
            if name.endswith(("to_q", "to_v", "q_proj", "v_proj")):
                SHAPES[f"{part}.{name}"] = tuple(layer.weight.shape)
    path = tmp_path_factory.mktemp("rows")
    unet = [each for each in SHAPES if each.startswith("unet")]
    write_lora(path / "loras" / "a.safetensors", 1, unet)
    write_lora(path / "loras" / "b.safetensors", 2, list(SHAPES))  # and for the text encoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "open_pipeline", opened)
        yield path


def rows_file(home: Path, name: str, rows: list[dict[str, Any]]) -> str:
    (home / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(home / name)


ROWS = [
    {"prompt": prompt} | ({} if said is None else {"lora": said})
    for prompt in PROMPTS
    for said in (*SETS, "none", None)
]


@pytest.fixture(scope="module")
def made(home: Path) -> Path:
    """A finished run of rows of every set, the run's own being b."""
    file = rows_file(home, "rows.jsonl", ROWS)
    own = ["--lora", str(home / "loras" / "b.safetensors")]
    assert main(["generate", "--prompts", file, *OPTIONS, *own, "--out", str(home / "out")]) == 0
    return home


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def pixels(out: Path, number: int) -> Any:
    with Image.open(out / records(out)[number]["file_name"]) as image:
        return np.asarray(image, dtype=int)


def test_rows_share_with_rows_of_the_same_loras_only(made: Path) -> None:
    found = records(made / "out")
    assert [record.get("lora") for record in found] == [row.get("lora") for row in ROWS]
    groups: dict[int, list[str]] = {}
    for record in found:
        groups.setdefault(record["group"], []).append(str(record.get("lora")))
    assert sorted(groups.values()) == sorted([str(said)] * 2 for said in (*SETS, "none", None))
    assert len({found[each]["seed"] for each in (0, 1, 2, 3)}) == 1  # a prompt has the same noise with any


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_an_image_is_that_of_a_run_with_its_loras_alone(made: Path, number: int) -> None:
    said: Any = ROWS[number]["lora"]
    rows = [{"prompt": row["prompt"]} for row in ROWS if row.get("lora") == said]
    loras = [f"--lora={made / each}" for each in ([said] if isinstance(said, str) else said)]
    given = ["--no-lora"] if said == "none" else loras
    out = made / f"alone-{number}"
    file = rows_file(made, f"alone-{number}.jsonl", rows)
    assert main(["generate", "--prompts", file, *OPTIONS, *given, "--out", str(out)]) == 0
    for place, row in enumerate(each for each in range(len(ROWS)) if ROWS[each].get("lora") == said):
        assert np.abs(pixels(out, place) - pixels(made / "out", row)).max() <= 1
    others = [each for each in range(4) if each != number]
    assert all(np.abs(pixels(out, 0) - pixels(made / "out", each)).max() > 8 for each in others)


def test_plan_counts_the_same(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((made / "out" / "report.json").read_text(encoding="utf-8"))
    own = ["--lora", str(made / "loras" / "b.safetensors"), "--json"]
    assert main(["plan", "--prompts", str(made / "rows.jsonl"), *OPTIONS, *own]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert report["evaluations_run"] == report["evaluations"]
    for name in ("evaluations", "num_groups", "num_rows", "cost_saving"):
        assert planned[name] == report[name]
    named = [
        {"prompt": PROMPTS[0], "lora": SETS[1]},
        {"prompt": PROMPTS[1]},
        {"prompt": PROMPTS[1], "lora": "none"},
    ]
    file = rows_file(made, "named.jsonl", named)
    assert main(["plan", "--prompts", file, *OPTIONS, *own]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [group["prompts"] for group in groups] == [[0, 1], [2]]  # the run's own, named and not


def test_a_stopped_run_goes_on_to_the_same_bytes_and_with_the_same_loras_only(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, lora = made / "out", made / "loras" / "a.safetensors"
    own = ["--lora", str(made / "loras" / "b.safetensors"), "--out", str(out), "--resume"]
    command = ["generate", "--prompts", str(made / "rows.jsonl"), *OPTIONS, *own]
    before = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    for number in (0, 3, 4):
        (out / records(out)[number]["file_name"]).unlink()
    assert main(command) == 0
    assert {path.name: path.read_bytes() for path in (out / "images").iterdir()} == before
    whole = lora.read_bytes()
    write_lora(lora, 3, [each for each in SHAPES if each.startswith("unet")])
    capsys.readouterr()
    assert main(command) == 2
    assert "requests" in capsys.readouterr().err
    lora.write_bytes(whole)


@pytest.mark.parametrize(
    "cell, options, says",
    [
        ("loras/none.safetensors", [], "no such LoRA: loras/none.safetensors, looked for in"),
        ("loras/a.safetensors:nan", [], "the weight must be a finite number"),
        ("loras/a.safetensors;./loras/a.safetensors:2", [], "is given twice"),
        ("loras/a.safetensors;none", [], "means no LoRA at all, and stands alone"),
        ("loras/a.safetensors;;", [], "should be PATH or PATH:WEIGHT"),
        ("text.safetensors", [], "is not a safetensors file"),
        ("rows.csv", [], "only .safetensors files are loaded"),
        ("nan.safetensors", [], "holds values that are not finite"),
        ("huge.safetensors", [], "makes weights that are not finite"),
        ("other.safetensors", [], "made for another base"),
        ("loras/a.safetensors", ["--compile"], "leave out --compile"),
        ("none", ["--offload", "model"], "take --offload group"),
    ],
)
def test_what_cannot_be_is_refused_with_its_row(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cell: str, options: list[str], says: str
) -> None:
    good = load_file(home / "loras" / "a.safetensors")
    (tmp_path / "loras").symlink_to(home / "loras")
    (tmp_path / "text.safetensors").write_text("<html>")
    save_file(good | {next(iter(good)): torch.full((2, 2), torch.nan)}, tmp_path / "nan.safetensors")
    save_file({n: torch.full(t.shape, 1e30) for n, t in good.items()}, tmp_path / "huge.safetensors")
    other = {n.replace("unet", "transformer"): t for n, t in good.items()}
    save_file(other, tmp_path / "other.safetensors")
    (tmp_path / "rows.csv").write_text(f'prompt,lora\na cat,\na dog,"{cell}"\n', encoding="utf-8")
    command = ["generate", "--prompts", str(tmp_path / "rows.csv"), *OPTIONS, *options]
    assert main([*command, "--no-lora", "--out", str(tmp_path / "out")]) == 2
    complaint = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sagediff: ")]
    assert len(complaint) == 1 and "rows.csv, line 3" in complaint[0] and says in complaint[0], complaint
    assert not (tmp_path / "out").exists()


def test_a_number_is_no_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = rows_file(tmp_path, "rows.jsonl", [{"prompt": "a cat", "lora": 3}])
    assert main(["plan", "--prompts", file]) == 2
    assert "line 1: `lora` should be the path of a LoRA" in capsys.readouterr().err


def test_sets_are_equal_by_files_and_weights(home: Path) -> None:
    a, b = home / "loras" / "a.safetensors", home / "loras" / "b.safetensors"
    assert LoraSet.of([a, f"{b}:0.5"]) == LoraSet.of(f"{b}:0.5; {a}:1") != LoraSet.of([a, b])
    assert LoraSet.of("none") == LoraSet.of([]) != LoraSet.of(a)
    assert LoraSet.of("loras/a.safetensors", (home / "nowhere", home)) == LoraSet.of(a)


def weights(pipe: Any) -> dict[str, Any]:
    return {
        f"{part}.{name}": (tensor.clone(), tensor.requires_grad)
        for part in ("unet", "text_encoder")
        for name, tensor in getattr(pipe, part).named_parameters()
    }


@pytest.mark.parametrize("has_own", [False, True])
def test_a_sampler_leaves_the_pipeline_as_it_was(home: Path, small_demo: Any, has_own: bool) -> None:
    pipe = deepcopy(small_demo)
    a, b = str(home / "loras" / "a.safetensors"), str(home / "loras" / "b.safetensors")
    if has_own:
        pipe.load_lora_weights(a, adapter_name="mine")
        pipe.set_adapters(["mine"], [0.25])
    found, active = weights(pipe), pipe.get_active_adapters()
    sampler = SharedSampler(pipe, threshold=-1, share_ratio=0.5)
    given: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0, "width": 32, "height": 32}
    own = sampler(PROMPTS, **given).images
    requests = [ImageRequest(p, lora=lora) for lora in (b, None, "none") for p in PROMPTS]
    result = sampler(requests, **given)
    assert [len(group) for group in result.plan.groups] == [2, 2, 2]
    assert [image.tobytes() for image in result.images[2:4]] == [image.tobytes() for image in own]
    assert (result.images[4].tobytes() == own[0].tobytes()) == (not has_own)
    assert result.images[0].tobytes() != own[0].tobytes()

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(requests, on_step=stop, **given)
    after = weights(pipe)
    assert after.keys() == found.keys() and pipe.get_active_adapters() == active
    for name, (tensor, needs) in found.items():
        assert torch.equal(after[name][0], tensor) and after[name][1] == needs
    assert [image.tobytes() for image in sampler(PROMPTS, **given).images] == [
        image.tobytes() for image in own
    ]


def test_a_pipeline_whose_loras_are_merged_is_refused(home: Path, small_demo: Any) -> None:
    pipe = deepcopy(small_demo)
    pipe.load_lora_weights(str(home / "loras" / "a.safetensors"), adapter_name="mine")
    pipe.fuse_lora()
    request = ImageRequest(PROMPTS[0], lora="none")
    with pytest.raises(InputError, match="unfuse_lora"):
        SharedSampler(pipe)([request], num_inference_steps=1, width=32, height=32)


def test_loras_are_switched_on_a_pipeline_that_is_offloaded_by_groups(home: Path, small_demo: Any) -> None:
    lora = str(home / "loras" / "b.safetensors")
    requests = [ImageRequest(PROMPTS[0], lora=each) for each in (lora, "none", f"{lora}:0.5")]
    found = []
    for is_offloaded in (False, True):
        pipe = deepcopy(small_demo)
        if is_offloaded:
            offload(pipe, "group", "cpu")
        result = SharedSampler(pipe)(requests, num_inference_steps=1, width=32, height=32)
        found.append([image.tobytes() for image in result.images])
    assert found[0] == found[1] and len(set(found[0])) == 3
