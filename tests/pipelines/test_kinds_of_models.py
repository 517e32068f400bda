"""What a model's folder makes is known from its index, before weights are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sagediff.errors import UnsupportedPipelineError
from sagediff.pipelines.loading import check_makes_images


def index(folder: Path, pipeline: str, denoiser: str) -> Path:
    parts = {"_class_name": pipeline, "transformer": ["diffusers", denoiser]}
    (folder / "model_index.json").write_text(json.dumps(parts))
    return folder


def test_a_model_of_videos_is_refused_where_images_are_wanted(tmp_path: Path) -> None:
    check_makes_images("demo", "tune")
    check_makes_images(index(tmp_path, "FluxPipeline", "FluxTransformer2DModel"), "tune")
    for pipeline, denoiser in (
        ("WanPipeline", "WanTransformer3DModel"),
        ("LTXPipeline", "LTXVideoTransformer3DModel"),
    ):
        with pytest.raises(UnsupportedPipelineError, match=r"tune works with images.*makes videos.*generate"):
            check_makes_images(index(tmp_path, pipeline, denoiser), "tune")
