"""A model's folder leads nowhere else: safetensors inside it, no code, no pickle."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sagediff.builtin.scenes import weights_dir
from sagediff.errors import InputError
from sagediff.pipelines.loading import load_pipeline, supported_parts
from sagediff.pipelines.model_files import check_model_files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the built-in model, to be spoilt."""
    return Path(shutil.copytree(weights_dir(), tmp_path / "models" / "mine"))


class _Planted:
    """Unpickling this makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.file,)


def index_of(shard: object) -> str:
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": {"conv_in.weight": shard}})


def weights_of(part: Path) -> Path:
    return next(part.glob("*.safetensors"))


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize(
    "shard",
    [
        "../../elsewhere.bin",
        "planted.bin",
        "../../elsewhere.safetensors",
        "/etc/a.safetensors",
        "a/b.safetensors",
        3,
    ],
)
def test_shards_are_safetensors_in_the_same_folder(
    tmp_path: Path, model: Path, part: str, shard: object
) -> None:
    sign = tmp_path / "sign"
    for file in (
        tmp_path / "elsewhere.bin",
        model / "unet" / "planted.bin",
        model / "text_encoder" / "planted.bin",
    ):
        file.write_bytes(pickle.dumps(_Planted(sign)))
    weights = weights_of(model / part)
    shutil.copy(weights, tmp_path / "elsewhere.safetensors")
    weights.unlink()
    (model / part / f"{weights.name}.index.json").write_text(index_of(shard), encoding="utf-8")
    with pytest.raises(InputError, match=r"index\.json: the shard .*nothing else is loaded"):
        load_pipeline(model)
    assert not sign.exists()


def test_a_pickle_is_not_loaded(tmp_path: Path, model: Path) -> None:
    sign = tmp_path / "sign"
    for part, name in (("unet", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin")):
        weights = weights_of(model / part)
        kept = weights.read_bytes()
        weights.unlink()
        (model / part / name).write_bytes(pickle.dumps(_Planted(sign)))
        with pytest.raises(InputError, match="cannot load the model"):
            load_pipeline(model)
        weights.write_bytes(kept)
        (model / part / name).unlink()
    assert not sign.exists()


def test_an_adapter_that_names_another_model_is_not_loaded(model: Path) -> None:
    (model / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}')
    with pytest.raises(InputError, match="adapters inside a model's folder are not loaded"):
        load_pipeline(model)


def test_missing_and_misshapen_shards_are_named(model: Path) -> None:
    weights = weights_of(model / "unet")
    for content, words in (
        (index_of("none.safetensors"), "the shard none.safetensors is missing"),
        ('{"weight_map": []}', "`weight_map` should be an object"),
        ("[" * 100_000, "nested"),
    ):
        (model / "unet" / f"{weights.name}.index.json").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=words):
            check_model_files(model)


def test_links_out_of_the_folder_are_refused_but_those_of_a_hub_cache(tmp_path: Path, model: Path) -> None:
    weights = weights_of(model / "unet")
    outside = tmp_path / "weights.safetensors"
    weights.rename(outside)
    weights.symlink_to(outside)
    with pytest.raises(InputError, match=r"unet/.*is a link to .*out of the model's folder"):
        load_pipeline(model)
    weights.unlink()
    weights.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="link to nowhere"):
        load_pipeline(model)
    weights.unlink()
    outside.rename(weights)
    shutil.move(model / "unet", tmp_path / "unet")
    (model / "unet").symlink_to(tmp_path / "unet")
    with pytest.raises(InputError, match="out of the model's folder"):
        load_pipeline(model)


def test_a_hub_cache_is_loaded_through_its_links(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / ("0" * 40)
    (cache / "blobs").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    for number, file in enumerate(sorted(weights_dir().rglob("*"))):
        if file.is_file():
            blob = cache / "blobs" / str(number)
            shutil.copy(file, blob)
            link = snapshot / file.relative_to(weights_dir())
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    assert type(load_pipeline(snapshot)).__name__ == "StableDiffusionPipeline"
    by_name = load_pipeline("org/name", cache_dir=tmp_path, local_files_only=True)
    assert type(by_name).__name__ == "StableDiffusionPipeline"
    weights_link = next((snapshot / "unet").glob("*.safetensors"))
    content = weights_link.read_bytes()
    weights_link.unlink()
    (tmp_path / "other").write_bytes(content)
    weights_link.symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match="out of the model's folder"):
        load_pipeline("org/name", cache_dir=tmp_path, local_files_only=True)


def with_index(model: Path, **changed: object) -> Path:
    file = model / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changed), encoding="utf-8")
    return model


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"unet": []}, r"`unet` should be \[library, class\], got \[\]"),
        ({"unet": ["diffusers"]}, r"should be \[library, class\]"),
        ({"unet": ["diffusers", 3]}, r"should be \[library, class\]"),
        ({"unet": [["diffusers"], "UNet2DConditionModel"]}, r"should be \[library, class\]"),
        ({"unet": ["os", "system"]}, "code of others is not run"),
        ({"tokenizer": ["my_code", "Tokenizer"]}, "code of others is not run"),
        ({"../../away": ["diffusers", "UNet2DConditionModel"]}, "can be no part"),
        ({"_class_name": ["pipeline", "Mine"]}, "names no pipeline|cannot load"),
        ({"_class_name": "logging"}, "names no pipeline|cannot load"),
        ({"_class_name": "UNet2DConditionModel"}, "names no pipeline|cannot load"),
    ],
)
def test_indices_of_others_are_refused(model: Path, changed: dict[str, Any], words: str) -> None:
    sign = model / "sign"
    (model / "pipeline.py").write_text(f"open({str(sign)!r}, 'w')\nclass Mine: pass\n", encoding="utf-8")
    (model / "my_code.py").write_text(f"open({str(sign)!r}, 'w')\n", encoding="utf-8")
    with_index(model, **changed)
    for load in (supported_parts, load_pipeline):
        with pytest.raises(InputError, match=words):
            load(model)
    assert not sign.exists()


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_json_out_of_bounds_is_one_line(model: Path, name: str) -> None:
    for content in (
        "[" * 100_000,
        '{"a": ' * 100_000,
        '{"sample_size": ' + "9" * 5000 + "}",
        "[]",
        "\x00",
    ):
        (model / name).write_text(content, encoding="utf-8")
        with pytest.raises(InputError) as raised:
            load_pipeline(model)
        assert "\n" not in str(raised.value)


def test_names_that_are_no_models() -> None:
    for name in ("x" * 5000, "nul\0", "~nobody-at-all/x", "\udcff", "https://example.org/a/b"):
        with pytest.raises(InputError):
            load_pipeline(name)
