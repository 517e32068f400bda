"""What the commands take beside model, sampling and sharing: where images go, and how the work grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

from sagediff.distributed.cluster import NO_RAY, PoolOptions
from sagediff.errors import InputError
from sagediff.files.file_names import FIELDS, NameTemplate
from sagediff.files.image_formats import QUALITY, Format, ImageFormat
from sagediff.options import check, option
from sagediff.pipelines.run_settings import RunSettings
from sagediff.plan.sharing import Sharing
from sagediff.prompts.image_list import ImageList


@dataclass(frozen=True)
class OutputOptions:
    """Where the images go, and how many are made at once; none of it decides what they look like, but for the seed."""

    out: Path = option(Path("out"), "Folder for images, metadata, report and contact sheet.")
    seed: int = option(0, "Seed that every prompt's own seed is derived from.")
    resume: bool = option(False, "Go on with a run that was stopped.")
    wave_size: int = option(64, "Most prompts sampled at once; whole groups stay together.", low=1)
    micro_batch: str | None = option(
        None,
        "Most denoiser rows at once, or 'auto'. Lower: less memory. [default: all]",
    )
    format: str = option("png", "png, jpg or webp.", choices=("png", "jpg", "webp"))
    quality: int | None = option(
        None, f"Quality of jpg and webp, 1 to 100. [default: {QUALITY}]", low=1, high=100
    )
    file_name: str | None = option(
        None,
        f"Names, of {' '.join(f'{{{each}}}' for each in FIELDS)}. [default: {{index:06d}}]",
    )
    shard_size: int | None = option(
        None,
        "With more prompts: webdataset shards of so many images. [default: none]",
    )

    def __post_init__(self) -> None:
        check(self)
        if self.quality is not None and self.format == "png":
            raise InputError("--quality is for --format jpg and webp; png loses nothing")
        if self.file_name is not None and self.shard_size is not None:
            raise InputError("--file-name is for files of their own, and shards number theirs; leave out one")
        _ = self.template  # its own check

    @property
    def image_format(self) -> ImageFormat:
        return ImageFormat(cast("Format", self.format), self.quality)

    @property
    def template(self) -> NameTemplate | None:
        """What files are called; None for their numbers."""
        return None if self.file_name is None else NameTemplate(self.file_name, self.image_format.suffix)


@dataclass(frozen=True)
class VideoOptions:
    """What videos have beside what images have."""

    frames: int | None = option(None, "Frames of a video. [default: the model's own]", low=1, high=10_000)
    fps: float | None = option(
        None, "Frames per second of a video. [default: the model's own]", above=0, high=240
    )

    def __post_init__(self) -> None:
        check(self)

    def check_images(self) -> None:
        """For a model that makes images: none of these options is named.

        Raises:
            InputError: one is.
        """
        for name, value in (("--frames", self.frames), ("--fps", self.fps)):
            if value is not None:
                raise InputError(f"{name} is for models that make videos; this one makes images")


@dataclass(frozen=True)
class ScaleOptions:
    """How very many prompts are planned."""

    work: Path | None = option(
        None,
        "Plan in this folder, kept for later runs. [default: in memory]",
    )
    jobs: int | None = option(None, "Processes that group, with --work. [default: one per core]", low=1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class WorkerOptions:
    """Ray workers of `generate`."""

    ray: str | None = option(
        None,
        "Ray workers: 'local', 'auto' (this machine's), or an address. [default: none]",
    )
    workers: int | None = option(None, "Workers, one pipeline each, with --ray. [default: 1]")
    worker_cpus: float | None = option(
        None, "Cores of a worker. [default: an even part with --ray local, else 1]"
    )
    worker_gpus: float = option(0.0, "GPUs of a worker; by a fraction several share one.")

    def pool(self) -> PoolOptions | None:
        """Raises InputError: an option of workers without --ray, or a number out of range."""
        return pool_options(self.ray, self.workers, self.worker_cpus, self.worker_gpus, "worker")


@dataclass(frozen=True)
class ReplicaOptions:
    """Ray Serve replicas of `serve`."""

    ray: str | None = option(
        None,
        "Ray replicas: 'local', 'auto' (this machine's), or an address. [default: none]",
    )
    replicas: str | None = option(
        None,
        "Replicas, with --ray: a number, or MIN:MAX to follow the load. [default: 1]",
    )
    replica_cpus: float | None = option(
        None, "Cores of a replica. [default: an even part with --ray local, else 1]"
    )
    replica_gpus: float = option(0.0, "GPUs of a replica; by a fraction several share one.")

    def least(self) -> int:
        """Raises InputError: neither a number nor two with a colon."""
        return replica_range(self.replicas)[0]

    def pool(self) -> PoolOptions | None:
        """As many workers as replicas at most. Raises InputError as `WorkerOptions.pool` and `least`."""
        most = None if self.replicas is None else replica_range(self.replicas)[1]
        return pool_options(self.ray, most, self.replica_cpus, self.replica_gpus, "replica")


@dataclass(frozen=True)
class Generation:
    """What to make and where to; the settings, the seed and the prompts decide the images, the rest only how."""

    images: ImageList
    settings: RunSettings
    guided: Sharing  # of rows that name a guidance scale
    output: OutputOptions
    micro_batch_size: int | Literal["auto"] | None
    scale: ScaleOptions
    pool: PoolOptions | None  # None: made in this process
    video: VideoOptions = VideoOptions()

    @property
    def shard_size(self) -> int | None:
        """Images per shard; None where each is a file."""
        size = self.output.shard_size
        return size if size is not None and len(self.images) > size else None

    def manifest(self) -> dict[str, Any]:
        """What a resumed run must repeat."""
        return self.settings.record() | {
            "seed": self.output.seed,
            **self.images.digests(),
            "guided": self.guided.record() if self.images.names_guidance else None,
            "shard_size": self.shard_size,
            "format": self.output.format,
            "quality": self.output.quality,
            "file_name": self.output.file_name,
            "frames": self.video.frames,
            "fps": self.video.fps,
        }

    def check_videos(self) -> None:
        """Options that are for images only; for a model that makes videos.

        Raises:
            InputError: one is named.
        """
        if self.output.format != "png" or self.output.quality is not None:
            raise InputError(
                "--format and --quality are for images; this model makes videos, which are .mp4 files"
            )
        if self.output.shard_size is not None:
            raise InputError("--shard-size is for images; this model makes videos, each a file of its own")

    def file_names(self, seeds: Sequence[int] | None = None) -> list[str] | None:
        """What each image's file is called, without the ending; None for its number.

        Args:
            seeds: of each image; None while they are not known.

        Raises:
            InputError: one that cannot be a file's name, or two that are the same.
        """
        template, images = self.output.template, self.images
        if template is None or (seeds is None and "seed" in template.fields):
            return None
        names = []
        for index, request in enumerate(images.requests):
            row = images.row(index)
            values: dict[str, str | int | None] = {
                "index": index,
                "row": row,
                "copy": images.copy(index),
                "id": images.ids[row],
                "seed": None if seeds is None else seeds[index],
                "prompt": request.prompt,
            }
            names.append(template.name(values, images.where(index)))
        template.check_distinct(names, map(images.where, range(len(images))))
        return names


def replica_range(text: str | None) -> tuple[int, int]:
    """The least and the most replicas that --replicas asks for.

    Raises:
        InputError: neither a number nor two with a colon.
    """
    least, _, most = ("1" if text is None else text).partition(":")
    try:
        numbers = int(least), int(most or least)
    except ValueError:
        numbers = (0, 0)
    if not 1 <= numbers[0] <= numbers[1] or (text or "").endswith(":"):
        raise InputError(
            f"--replicas takes a number from 1 up, or two as in 1:4, the lesser one first, got {text!r}"
        )
    return numbers


def pool_options(
    ray: str | None, workers: int | None, cpus: float | None, gpus: float, what: str
) -> PoolOptions | None:
    """What --ray and its companions, which are named after `what` there are many of, ask for; None without it."""
    if ray is None:
        if workers is not None or cpus is not None or gpus:
            raise InputError(f"--{what}s, --{what}-cpus and --{what}-gpus are for --ray; add --ray local")
        return None
    if find_spec("ray") is None:
        raise InputError(NO_RAY)
    return PoolOptions(1 if workers is None else workers, None if ray == "local" else ray, cpus, gpus)
