"""What `sagediff generate` does: plan, sample wave by wave, save each image as its wave ends, report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sagediff.cli.job_options import OutputOptions, ScaleOptions
from sagediff.cli.planning_at_scale import plan_at_scale
from sagediff.denoiser.micro_batch import MicroBatch
from sagediff.distributed.cluster import PoolOptions
from sagediff.distributed.pool import Pool
from sagediff.files.contact_sheet import contact_sheet
from sagediff.files.output_folder import OutputFolder, fingerprint, png_bytes
from sagediff.files.shards import ShardStore, check_shard_size
from sagediff.pipelines.loading import quiet_libraries, supported_parts
from sagediff.pipelines.lora import sharing_record, sharing_warnings
from sagediff.pipelines.placement import open_pipeline
from sagediff.pipelines.run_settings import RunSettings
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.waves import Waves, WaveTask, noise_seeds, own_seeds
from sagediff.progress import stderr_progress
from sagediff.prompts.requests import ImageRequest, as_requests
from sagediff.sampling.plan_prompts import default_guidance
from sagediff.sampling.sampler import SharedSampler


@dataclass(frozen=True)
class Generation:
    """What to make and where to; the settings, the seed and the prompts decide the images, the rest only how."""

    prompts: list[str]
    settings: RunSettings
    output: OutputOptions
    micro_batch_size: MicroBatch
    scale: ScaleOptions
    pool: PoolOptions | None  # None: made in this process

    @cached_property
    def requests(self) -> list[ImageRequest]:
        return as_requests(self.prompts)

    @property
    def shard_size(self) -> int | None:
        """Images per shard; None where each is a file."""
        size = self.output.shard_size
        return size if size is not None and len(self.prompts) > size else None

    def manifest(self) -> dict[str, Any]:
        """What a resumed run must repeat."""
        return self.settings.record() | {
            "seed": self.output.seed,
            "prompts": fingerprint(self.prompts),
            "shard_size": self.shard_size,
        }


def run_generation(job: Generation) -> None:
    """Do it; the report goes to the folder and to stdout, progress to stderr."""
    start = time.perf_counter()
    settings, prompts, seed = job.settings, job.prompts, job.output.seed
    folder = OutputFolder(job.output.out)
    folder.check(job.manifest(), job.output.resume)
    if job.output.shard_size is not None:
        check_shard_size(job.output.shard_size)
    sampler = _sampler(job)
    steps, scale = settings.sampling.num_inference_steps, settings.sampling.guidance_scale
    guidance = default_guidance(type(sampler.pipe)) if scale is None else scale
    if job.scale.work is None:
        plan = sampler.plan(prompts, steps, guidance)
    else:
        plan = plan_at_scale(prompts, settings, job.scale, sampler.pipe, sampler.denoiser_class, guidance)
    sampler.check(prompts, plan)
    _warn_of_lora(settings, plan)
    folder.begin(job.manifest(), plan.to_json())
    seeds = noise_seeds(job.requests, own_seeds(job.requests, seed), plan.groups)
    record = partial(_record, prompts, plan, seeds)
    shards = None
    if job.shard_size is not None:
        shards = ShardStore(folder, [i for group in plan.groups for i in group], job.shard_size, record)
    done = folder.finished(len(prompts)) if shards is None else shards.finished()
    save = folder.save_png if shards is None else shards.save_png
    print(
        f"{plan.num_prompts} prompts in {len(plan.groups)} groups: {plan.evaluations} evaluations instead of "
        f"{plan.evaluations_independent} ({plan.savings})"
        + (f"; {len(done)} images are there already" if done else ""),
        file=sys.stderr,
    )
    sampling_start = time.perf_counter()
    waves = Waves(job.requests, plan, seed, job.output.wave_size, done)
    if job.pool is None:
        made, run = _sample(_here(sampler, guidance), waves, prompts, plan, save, done)
    else:
        del sampler  # its memory is the workers'
        made, run = _sample(_elsewhere(job, guidance, job.pool), waves, prompts, plan, save, done)
    sampling_seconds = time.perf_counter() - sampling_start
    if shards is None:
        names = [folder.image_path(i).relative_to(folder.path).as_posix() for i in range(len(prompts))]
        folder.write_lines(
            "metadata.jsonl", [{"file_name": name} | record(i) for i, name in enumerate(names)]
        )
        seen = f"images in {folder.path / 'images'}, contact sheet: {_show(prompts, plan, folder)}"
    else:
        folder.write_lines("shards.jsonl", shards.summary())
        seen = f"{len(shards)} shards in {folder.path / 'shards'}"
    report = plan.summary() | {
        "threshold": settings.sharing.threshold,
        "evaluations_run": run,
        "images_made": made,
        "seconds": time.perf_counter() - start,
        "images_per_second": made / sampling_seconds if made else 0.0,
    }
    if shards is not None:
        report["shards"] = len(shards)
    folder.write_text("report.json", json.dumps(report, indent=2) + "\n")  # last: it means a finished run
    print(json.dumps(report))
    print(seen, file=sys.stderr)


def _sampler(job: Generation) -> SharedSampler:
    quiet_libraries()
    settings = job.settings
    supported_parts(settings.model.name)  # refused before gigabytes of weights are read
    return SharedSampler(
        open_pipeline(settings.model),
        settings.sharing,
        wave_size=job.output.wave_size,
        micro_batch_size=job.micro_batch_size,
        encoder=settings.sampling.encoder,
    )


def _warn_of_lora(settings: RunSettings, plan: SharePlan) -> None:
    record = None if settings.model.lora is None else sharing_record(settings.model.lora)
    if record is not None:
        ratio = settings.sharing.ladder[-1].share_ratio
        for words in sharing_warnings(record, ratio, max(map(len, plan.groups))):
            print(f"warning: {words}; images may suffer", file=sys.stderr)


# -- waves, here or on workers


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
    """Makes waves on one pipeline, from a task to PNG files in memory; keeps nothing of them."""

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


@dataclass(frozen=True)
class _WorkerFactory:
    """Builds a worker's pipeline, where the worker is."""

    job: Generation
    guidance: float
    threads: int

    def __call__(self) -> WaveMaker:
        import torch

        torch.set_num_threads(self.threads)
        return WaveMaker(_sampler(self.job), self.guidance)


MakeAll = Callable[[Callable[[int], ImageTask], Waves, Callable[[int], None]], Iterator[MadeWave]]
"""Makes every wave, given how to put its task together; tells the prompts' steps as they are taken."""


def _here(sampler: SharedSampler, guidance: float) -> MakeAll:
    def make(
        task: Callable[[int], ImageTask], waves: Waves, on_steps: Callable[[int], None]
    ) -> Iterator[MadeWave]:
        maker = WaveMaker(sampler, guidance, on_steps)
        return (maker(task(number)) for number in range(len(waves)))

    return make


def _elsewhere(job: Generation, guidance: float, options: PoolOptions) -> MakeAll:
    factory = _WorkerFactory(job, guidance, max(1, int(options.cpus_a_worker)))
    pool = Pool(factory, options, lambda words: print(words, file=sys.stderr))

    def make(
        task: Callable[[int], ImageTask], waves: Waves, on_steps: Callable[[int], None]
    ) -> Iterator[MadeWave]:
        for number, made in pool.run(task, waves.costs()):
            on_steps(len(waves.members[number]) * job.settings.sampling.num_inference_steps)
            yield made

    return make


def _sample(
    make_all: MakeAll,
    waves: Waves,
    prompts: list[str],
    plan: SharePlan,
    save: Callable[[int, bytes], None],
    done: list[int],
) -> tuple[int, int]:
    """Run what is missing, save each image as its wave ends; returns (images made, denoiser rows run)."""
    finished = set(done)
    made = run = 0

    def task(number: int) -> ImageTask:
        wave = waves.task(number)
        seeds = dict(zip(wave.members, wave.noise_seeds, strict=True))
        texts = [None if i in finished else _texts(prompts[i], seeds[i], plan, i) for i in wave.members]
        return ImageTask(wave, texts)

    total = sum(map(len, waves.members)) * plan.num_steps
    with stderr_progress("images", "steps") as progress:
        bar = progress.add_task("images", total=total)
        for wave in make_all(task, waves, lambda count: progress.advance(bar, count)):
            run += wave.evaluations
            for index, data in wave.images:
                save(index, data)
                made += 1
        progress.update(bar, completed=total)
    return made, run


# -- what is written beside the images


def _texts(prompt: str, seed: int, plan: SharePlan, index: int) -> dict[str, str]:
    """What stands in an image's text chunks."""
    node = plan.levels[0][1][index]
    about = {
        "num_steps": plan.num_steps,
        "group": node,
        "members": plan.groups[node],
        "branch_step": plan.branch_steps[index],
        "shared_guidance": plan.shared_guidance,
        "unguided_steps": plan.unguided_steps,
    }
    return {"prompt": prompt, "seed": str(seed), "plan": json.dumps(about)}


def _record(prompts: list[str], plan: SharePlan, seeds: list[int], index: int) -> dict[str, Any]:
    """An image's metadata, but for where it is."""
    return {
        "prompt": prompts[index],
        "seed": seeds[index],
        "group": plan.levels[0][1][index],
        "branch_step": plan.branch_steps[index],
        "evaluations": round(float(plan.prompt_evaluations[index]), 6),
    }


def _show(prompts: list[str], plan: SharePlan, folder: OutputFolder) -> Path:
    """The contact sheet of images that are files."""
    counts = f"{plan.num_prompts} prompts, {len(plan.groups)} groups, {plan.num_steps} steps"
    images = [folder.image_path(i) for i in range(len(prompts))]
    return folder.save_sheet(
        contact_sheet(images, prompts, plan.groups, f"{counts}; evaluations: {plan.savings}")
    )
