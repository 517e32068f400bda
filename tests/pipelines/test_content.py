"""A run's content is that of the files behind its names: every file that is loaded, and none that is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sagediff.errors import InputError
from sagediff.pipelines.content import embedding_source, model_digest, named_content, run_content
from sagediff.pipelines.run_settings import ModelOptions, RunSettings, SamplingOptions, resolve


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder laid out as a pipeline's; nothing in it can be loaded."""
    folder = tmp_path / "model"
    index = {"_class_name": "P", "unet": ["diffusers", "U"], "text_encoder": ["t", "C"], "ratio": 0.5}
    for name, text in {
        "model_index.json": json.dumps(index),
        "unet/config.json": "{}",
        "unet/diffusion_pytorch_model-00001-of-00001.safetensors": "weights",
        "unet/diffusion_pytorch_model.safetensors.index.json": "{}",
        "text_encoder/model.safetensors": "weights",
    }.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def changed(model: Path, name: str) -> bool:
    before = model_digest(str(model))
    file = model / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("others")
    return model_digest(str(model)) != before


@pytest.mark.parametrize(
    "name",
    [
        "unet/config.json", "unet/diffusion_pytorch_model-00001-of-00001.safetensors", "unet/more/vocab.txt",
        "unet/diffusion_pytorch_model.safetensors.index.json", "text_encoder/model.safetensors", "unet/new.json",
    ],
)  # fmt: skip
def test_every_file_that_is_loaded_counts(model: Path, name: str) -> None:
    assert changed(model, name)


@pytest.mark.parametrize(
    "name",
    [
        "README.md", "whole.safetensors", "unet/diffusion_pytorch_model.bin", "other/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.fp16-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors.index.json",
    ],
)  # fmt: skip
def test_what_is_never_loaded_does_not(model: Path, name: str) -> None:
    assert not changed(model, name)


def test_the_same_files_elsewhere_are_the_same_model(model: Path, tmp_path: Path) -> None:
    assert model_digest(str(model)) == model_digest(str(shutil.copytree(model, tmp_path / "copy")))
    names = [file.name for file in (model / "unet").iterdir()]
    (model / "unet" / names[0]).rename(model / "unet" / f"x{names[0]}")
    assert model_digest(str(model)) != model_digest(str(tmp_path / "copy"))


def test_each_part_of_a_run_is_told_apart(model: Path, tmp_path: Path) -> None:
    lora, encoder = tmp_path / "lora.safetensors", tmp_path / "encoder"
    lora.write_text("lora")
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    settings = RunSettings(
        ModelOptions(str(model), (str(lora),)),
        SamplingOptions(encoder=str(encoder)),
        resolve(ModelOptions()).sharing,
    )
    own = replace(settings, sampling=SamplingOptions())
    before, sources = run_content(settings), (embedding_source(settings), embedding_source(own))
    assert before.keys() == {"model", "lora", "encoder"} and run_content(own).keys() == {"model", "lora"}
    lora.write_text("another")
    (encoder / "config.json").write_text("[]")
    (model / "unet" / "config.json").write_text("[]")
    after = run_content(settings)
    assert [what for what in before if before[what] == after[what]] == []
    assert embedding_source(settings) != sources[0] and embedding_source(own) != sources[1]
    own = replace(own, model=ModelOptions(str(model)))
    source = embedding_source(own)
    (model / "unet" / "config.json").write_text("{}")  # takes no part in embedding prompts
    assert embedding_source(own) == source
    (model / "text_encoder" / "model.safetensors").write_text("others")
    assert embedding_source(own) != source


def test_a_name_on_the_hub_stands_for_itself(tmp_path: Path) -> None:
    assert named_content(features="org/name", clip=None) == {}
    assert named_content(features=str(tmp_path)).keys() == {"features"}


@pytest.mark.parametrize(
    "harm", [lambda index: index.write_text("{"), lambda index: index.write_text("[]"), Path.unlink]
)
def test_an_index_that_is_none_is_refused_in_words(model: Path, harm: Callable[[Path], object]) -> None:
    harm(model / "model_index.json")
    with pytest.raises(InputError, match=r"model_index\.json"):
        model_digest(str(model))
