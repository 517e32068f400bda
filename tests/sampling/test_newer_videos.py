"""What pipelines of videos and sound of 2024 and later do otherwise than Wan and LTX."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny.every_pipeline import pipe_of

from sagediff.cli.job_options import VideoOptions
from sagediff.cli.media import call_keywords, check_makes
from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.pipelines.loading import check_makes_images, supported_family
from sagediff.sampling.sampler import SharedSampler
from sagediff.sampling.sizes import check_frames


def folder(path: Path, pipeline: str, denoiser: str) -> str:
    index = {"_class_name": pipeline, "transformer": ["diffusers", denoiser]}
    (path / "model_index.json").write_text(json.dumps(index))
    return str(path)


def test_what_a_model_makes_is_told_by_its_pipeline(tmp_path: Path) -> None:
    for pipeline, makes in ("Kandinsky5T2IPipeline", "images"), ("Kandinsky5T2VPipeline", "videos"):
        model = folder(tmp_path, pipeline, "Kandinsky5Transformer3DModel")
        assert supported_family(model).makes == makes
    with pytest.raises(UnsupportedPipelineError, match="makes videos"):
        check_makes_images(model, "serve")


def test_audio_is_refused_by_commands_and_the_sampler(tmp_path: Path) -> None:
    model = folder(tmp_path, "StableAudioPipeline", "StableAudioDiTModel")
    with pytest.raises(UnsupportedPipelineError, match=r"makes audio.*shared_sampling"):
        check_makes(supported_family(model))
    with pytest.raises(UnsupportedPipelineError, match=r"makes audio.*shared_sampling"):
        check_makes_images(model, "serve")
    with pytest.raises(UnsupportedPipelineError, match=r"StableAudioPipeline makes audio.*shared_sampling"):
        SharedSampler(pipe_of("StableAudioPipeline"), threshold=0.8, share_ratio=0.4)


@pytest.mark.parametrize(
    "name, keyword",
    [("MochiPipeline", "num_frames"), ("SanaVideoPipeline", "frames"), ("LattePipeline", "video_length")],
)
def test_frames_are_asked_for_by_the_pipelines_own_name(name: str, keyword: str) -> None:
    sampler: Any = SimpleNamespace(pipe=pipe_of(name))
    assert call_keywords(VideoOptions(frames=7), sampler) == {keyword: 7}
    check_frames(sampler.pipe, None)


def test_frames_that_a_pipeline_would_change_are_refused() -> None:
    with pytest.raises(InputError, match="take 19 or 25"):
        check_frames(pipe_of("MochiPipeline"), 20)
    check_frames(pipe_of("AllegroPipeline"), 88)  # it makes them all
