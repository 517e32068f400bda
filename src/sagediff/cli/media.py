"""What a run's images, or videos, are written as, and what the options of videos say to the pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeAlias

from sagediff.cli.job_options import Generation, VideoOptions
from sagediff.denoiser.audio_families import NO_AUDIO
from sagediff.denoiser.family import Family
from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.files.image_formats import ImageFormat
from sagediff.files.video_format import VideoFormat, library
from sagediff.sampling.sampler import SharedSampler

_FRAMES = ("num_frames", "frames", "video_length")  # Sana Video has the second, Latte the third
MediaFormat: TypeAlias = ImageFormat | VideoFormat


def check_media(job: Generation, family: Family) -> None:
    """Refuse, before weights are read, options that are not for what the model makes.

    Raises:
        InputError: one is named; or the library that writes videos is not installed.
        UnsupportedPipelineError: the model makes audio.
    """
    check_makes(family)
    if family.makes == "videos":
        job.check_videos()
        library()
    else:
        job.video.check_images()


def check_makes(family: Family) -> None:
    """Raises UnsupportedPipelineError for a model that makes what no command writes."""
    if family.makes == "audio":
        raise UnsupportedPipelineError(f"this model makes audio, which sagediff does not write: {NO_AUDIO}")


def media_format(job: Generation, sampler: SharedSampler) -> MediaFormat:
    """Videos have as many frames per second as were asked for, else as the pipeline makes them for."""
    if sampler.makes == "images":
        return job.output.image_format
    if job.video.fps is not None:
        return VideoFormat(job.video.fps)
    default = getattr(_parameters(sampler).get("frame_rate"), "default", None)
    return VideoFormat(float(default) if isinstance(default, int | float) else sampler.fps)


def call_keywords(video: VideoOptions, sampler: SharedSampler) -> dict[str, Any]:
    """Keywords of the pipeline's calls.

    Raises:
        InputError: a number of frames, and it takes none.
    """
    frames = next((name for name in _FRAMES if name in _parameters(sampler)), None)
    if video.frames is not None and frames is None:
        raise InputError(f"{type(sampler.pipe).__name__} takes no number of frames; leave --frames out")
    given: dict[str, Any] = {} if frames is None else {frames: video.frames}
    if "frame_rate" in _parameters(sampler):
        given["frame_rate"] = video.fps
    return {name: value for name, value in given.items() if value is not None}


def _parameters(sampler: SharedSampler) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(sampler.pipe).__call__).parameters
