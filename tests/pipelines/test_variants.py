"""Variants of weights: which files they are, and what is not there is said with what is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sagediff.builtin.scenes import weights_dir
from sagediff.cli.main import main
from sagediff.errors import InputError
from sagediff.pipelines.content import model_digest
from sagediff.pipelines.loading import load_pipeline
from sagediff.pipelines.model_source import ModelSource
from sagediff.pipelines.run_settings import ModelOptions, resolve
from sagediff.pipelines.variants import variant_of


@pytest.mark.parametrize(
    "name, variant",
    [
        ("model.safetensors", ""), ("model-00001-of-00002.safetensors", ""), ("model.safetensors.index.json", ""),
        ("model.fp16.safetensors", "fp16"), ("model.fp16-00001-of-00002.safetensors", "fp16"),
        ("model-00001-of-00002.fp16.safetensors", "fp16"), ("model.safetensors.index.fp16.json", "fp16"),
        ("model.fp16.safetensors.index.json", "fp16"), ("model.non_ema.safetensors", "non_ema"),
        ("config.json", None), ("vocab.txt", None), ("model.bin", None),
    ],
)  # fmt: skip
def test_the_name_of_a_file_tells_its_variant(name: str, variant: str | None) -> None:
    assert variant_of(name) == variant


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The built-in model, whose U-Net has a variant with another bias, and nothing else of it."""
    folder = Path(shutil.copytree(weights_dir(), tmp_path / "model"))
    plain = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(plain)
    tensors["conv_out.bias"] = tensors["conv_out.bias"] + 1
    save_file(tensors, plain.with_suffix(".mine.safetensors"), {"format": "pt"})
    return folder


def test_a_variant_is_loaded_where_a_part_has_it(model: Path) -> None:
    plain, mine = load_pipeline(model), load_pipeline(model, variant="mine")
    difference = mine.unet.conv_out.bias - plain.unet.conv_out.bias
    assert torch.allclose(difference, torch.ones_like(difference), atol=1e-2)
    assert torch.equal(mine.vae.decoder.conv_in.bias, plain.vae.decoder.conv_in.bias)


def test_only_its_own_files_make_it_another_model(model: Path) -> None:
    plain, mine = (ModelSource(str(model)), ModelSource(str(model), variant="mine"))
    before = model_digest(plain), model_digest(mine)
    assert before[0] != before[1]
    next((model / "unet").glob("*.mine.safetensors")).write_bytes(b"others")
    assert model_digest(plain) == before[0] and model_digest(mine) != before[1]
    runs = [resolve(ModelOptions(str(model), variant=variant)).record() for variant in (None, "mine")]
    assert "variant" not in runs[0] and runs[1]["variant"] == "mine"


def test_a_variant_that_is_not_there_is_said_with_those_that_are(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has no variant 'fp16'; it has mine"):
        load_pipeline(model, variant="fp16")
    with pytest.raises(InputError, match="no variants"):
        load_pipeline("demo", variant="fp16")
    out = tmp_path / "out"
    assert main(["generate", "a", "--model", str(model), "--variant", "min", "--out", str(out)]) == 2
    assert "it has mine" in capsys.readouterr().err and not out.exists()
    plain = next(each for each in (model / "vae").glob("*.safetensors"))
    plain.rename(plain.with_suffix(".other.safetensors"))
    with pytest.raises(InputError, match=r"vae has weights of other only, neither plain ones nor of 'mine'"):
        load_pipeline(model, variant="mine")
