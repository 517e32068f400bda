"""One wave of a run: from its task to finished PNG files in memory, in this process or a worker's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sagediff.files.output_folder import png_bytes
from sagediff.plan.waves import WaveTask
from sagediff.sampling.sampler import SharedSampler


@dataclass(frozen=True)
class ImageTask:
    """A wave, and for each member what to write into its image; None for one that is finished already."""

    wave: WaveTask
    texts: list[dict[str, str] | None]


@dataclass(frozen=True)
class MadeWave:
    """images: (prompt number, PNG); evaluations: denoiser rows run."""

    images: list[tuple[int, bytes]]
    evaluations: int


@dataclass(frozen=True)
class WaveMaker:
    """Makes waves on one pipeline; keeps nothing of them."""

    sampler: SharedSampler
    guidance: float
    on_step: Callable[[int], None] | None = None

    def __call__(self, task: ImageTask) -> MadeWave:
        wave = self.sampler.run(task.wave, self.guidance, self.on_step)
        images = [
            (index, png_bytes(image, texts))
            for index, image, texts in zip(wave.prompts, wave.images, task.texts, strict=True)
            if texts is not None
        ]
        return MadeWave(images, wave.evaluations)
