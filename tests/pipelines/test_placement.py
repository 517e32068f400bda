"""The dtype of a run follows the model's family and what the accelerator computes in; tested without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from sagediff.denoiser.table import FAMILIES
from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.pipelines import placement
from sagediff.pipelines.placement import computes_in_bfloat16, dtype_for, open_pipeline, working_device
from sagediff.pipelines.run_settings import ModelOptions

PIPELINES = {"UNet2DConditionModel": "StableDiffusionPipeline", "ZImageTransformer2DModel": "ZImagePipeline"}


def model(folder: Path, denoiser: str) -> str:
    """A folder that says which denoiser it has, and holds no weights."""
    part = "unet" if denoiser.startswith("UNet") else "transformer"
    index = {"_class_name": PIPELINES.get(denoiser, "WanPipeline"), part: ["diffusers", denoiser]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


@pytest.mark.parametrize("denoiser", FAMILIES)
def test_auto_is_what_the_family_declares(
    denoiser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, family = model(tmp_path, denoiser), FAMILIES[denoiser]
    assert dtype_for(name, "cpu") == torch.float32
    monkeypatch.setattr(placement, "computes_in_bfloat16", lambda device: True)
    dtype = getattr(torch, family.dtype)
    expected = dtype if family.vae_dtype is None else {"default": dtype, "vae": torch.float32}
    assert dtype_for(name, "cuda") == dtype_for(name, "cuda:1") == dtype_for(name, "mps") == expected
    monkeypatch.setattr(placement, "computes_in_bfloat16", lambda device: False)
    assert dtype_for(name, "cuda") == (torch.float16 if dtype == torch.float16 else torch.float32)


def test_a_denoiser_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPipelineError, match="OtherTransformer2DModel"):
        dtype_for(model(tmp_path, "OtherTransformer2DModel"), "cuda")


@pytest.mark.parametrize(("major", "native"), [(7, False), (8, True), (9, True)])
def test_bfloat16_that_is_only_emulated_does_not_count(
    major: int, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        pass

    properties: Any = Properties()
    properties.major = major
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.version, "hip", None)
    assert computes_in_bfloat16("cuda:1") is native


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_pipeline_is_opened_in_the_dtype_that_was_asked_for(
    dtype: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def loaded(name: str, **options: Any) -> Any:
        given.append(options["dtype"])
        raise KeyboardInterrupt

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", loaded)
    with pytest.raises(KeyboardInterrupt):
        open_pipeline(ModelOptions(dtype=dtype, device="cpu"))
    assert given == [expected]


def test_a_device_that_does_not_work_is_named() -> None:
    assert working_device("cpu") == "cpu"
    with pytest.raises(InputError, match="--device nonsense"):
        working_device("nonsense")
