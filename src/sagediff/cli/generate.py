"""`sagediff generate`: prompts in, a folder of images out, that a kill at any moment leaves resumable."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sagediff.cli.scale import ScaleOptions, plan_at_scale
from sagediff.cli.settings import RunSettings, quiet_libraries
from sagediff.cli.waves import ImageTask, MadeWave, WaveMaker
from sagediff.denoiser.micro_batch import MicroBatch
from sagediff.distributed.cluster import PoolOptions
from sagediff.distributed.pool import Pool
from sagediff.errors import InputError
from sagediff.files.contact_sheet import contact_sheet
from sagediff.files.digest import texts_digest
from sagediff.files.output_folder import OutputFolder
from sagediff.files.shards import ShardStore, check_shard_size
from sagediff.pipelines.loading import supported_parts
from sagediff.pipelines.lora import sharing_record, sharing_warnings
from sagediff.pipelines.placement import open_pipeline
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import SharePolicy
from sagediff.plan.waves import Waves, noise_seeds
from sagediff.progress import stderr_progress
from sagediff.sampling.plan_prompts import default_guidance
from sagediff.sampling.sampler import SharedSampler


@dataclass(frozen=True)
class GenerateRequest:
    """What to make and where to; `settings` and the prompts decide the images, the rest only how."""

    prompts: list[str]
    settings: RunSettings
    out: Path
    seed: int
    resume: bool
    wave_size: int
    micro_batch_size: MicroBatch
    device: str
    dtype: str
    scale: ScaleOptions | None = None  # None: planned in memory
    pool: PoolOptions | None = None  # None: made in this process
    shard_size: int | None = (
        None  # images per shard, where there are more prompts than that; None: a file each
    )

    @property
    def sharded(self) -> bool:
        return self.shard_size is not None and len(self.prompts) > self.shard_size

    def manifest(self) -> dict[str, Any]:
        """What a resumed run must repeat."""
        settings = self.settings
        return {
            "model": settings.model,
            "lora": None if settings.lora is None else str(settings.lora),
            **asdict(settings.policy),
            "num_steps": settings.num_steps,
            "guidance_scale": settings.guidance_scale,
            "scheduler": settings.scheduler,
            "encoder": settings.encoder,
            "seed": self.seed,
            "handover_noise": settings.handover_noise,
            "prompts": texts_digest(self.prompts),
            "shard_size": self.shard_size if self.sharded else None,
        }


def micro_batch_option(text: str | None) -> MicroBatch:
    """What --micro-batch means.

    Raises:
        InputError: neither a whole number nor 'auto'.
    """
    if text is None or text == "auto":
        return "auto" if text else None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--micro-batch must be a whole number of at least 1, or 'auto'; got {text!r}")
    return int(text)


def run_generate(request: GenerateRequest) -> None:
    """Do it; the report goes to the folder and to stdout, progress to stderr."""
    start = time.perf_counter()
    settings, prompts = request.settings, request.prompts
    folder = OutputFolder(request.out)
    folder.check(request.manifest(), request.resume)
    if request.shard_size is not None:
        check_shard_size(request.shard_size)
    sampler = _sampler(request)
    guidance = (
        default_guidance(type(sampler.pipe)) if settings.guidance_scale is None else settings.guidance_scale
    )
    if request.scale is None:
        plan = sampler.plan(prompts, settings.num_steps, guidance)
    else:
        denoiser = sampler.denoiser_class
        plan = plan_at_scale(prompts, settings, request.scale, sampler.pipe, denoiser, guidance)
    sampler.check(prompts, plan)
    if settings.lora is not None:
        _warn_of_lora(settings.lora, plan, settings.policy)
    folder.begin(request.manifest(), plan.to_json())
    shards = None
    if request.sharded and request.shard_size is not None:
        record = partial(_record, request, plan, noise_seeds(prompts, plan, request.seed))
        shards = ShardStore(folder, [i for group in plan.groups for i in group], request.shard_size, record)
    done = folder.finished(len(prompts)) if shards is None else shards.finished()
    save = folder.save_png if shards is None else shards.save_png
    print(
        f"{plan.num_prompts} prompts in {len(plan.groups)} groups: {plan.evaluations} evaluations instead of "
        f"{plan.evaluations_independent} ({plan.cost_saving:.1%} saved)"
        + (f"; {len(done)} images are there already" if done else ""),
        file=sys.stderr,
    )
    sampling_start = time.perf_counter()
    waves = Waves(prompts, plan, request.seed, request.wave_size, done)
    if request.pool is None:
        made, run = _sample(_here(sampler, guidance), waves, request, plan, save, done)
    else:
        del sampler  # its memory is the workers'
        made, run = _sample(_elsewhere(request, guidance), waves, request, plan, save, done)
    sampling_seconds = time.perf_counter() - sampling_start
    _finish(request, plan, folder, shards, {
        "evaluations_run": run,
        "images_made": made,
        "seconds": time.perf_counter() - start,
        "images_per_second": made / sampling_seconds if made else 0.0,
    })  # fmt: skip


def _sampler(request: GenerateRequest) -> SharedSampler:
    quiet_libraries()
    settings = request.settings
    supported_parts(settings.model)  # refused before gigabytes of weights are read
    pipe = open_pipeline(settings.model, settings.scheduler, request.device, request.dtype, settings.lora)
    policy = settings.policy
    return SharedSampler(
        pipe,
        policy.threshold,
        policy.share_ratio,
        policy.max_group_size,
        shared_guidance=policy.shared_guidance,
        unguided=policy.unguided,
        wave_size=request.wave_size,
        micro_batch_size=request.micro_batch_size,
        encoder=settings.encoder,
        handover_noise=settings.handover_noise,
        rungs=policy.rungs,
        parting=policy.parting,
    )


def _warn_of_lora(file: Path, plan: SharePlan, policy: SharePolicy) -> None:
    record = sharing_record(file)
    if record is not None:
        for words in sharing_warnings(record, policy.ladder[-1].share_ratio, max(map(len, plan.groups))):
            print(f"warning: {words}; images may suffer", file=sys.stderr)


MakeAll = Callable[[Callable[[int], ImageTask], Waves, Callable[[int], None]], Iterator[MadeWave]]
"""Makes every wave, given how to put its task together; tells the prompts' steps as they are taken."""


def _here(sampler: SharedSampler, guidance: float) -> MakeAll:
    def make(
        task: Callable[[int], ImageTask], waves: Waves, on_steps: Callable[[int], None]
    ) -> Iterator[MadeWave]:
        maker = WaveMaker(sampler, guidance, on_steps)
        return (maker(task(number)) for number in range(len(waves)))

    return make


def _elsewhere(request: GenerateRequest, guidance: float) -> MakeAll:
    assert request.pool is not None
    pool = Pool(_WorkerFactory(request, guidance), request.pool, lambda words: print(words, file=sys.stderr))

    def make(
        task: Callable[[int], ImageTask], waves: Waves, on_steps: Callable[[int], None]
    ) -> Iterator[MadeWave]:
        for number, made in pool.run(task, waves.costs()):
            on_steps(len(waves.members[number]) * request.settings.num_steps)
            yield made

    return make


@dataclass(frozen=True)
class _WorkerFactory:
    """Builds a worker's pipeline, where the worker is."""

    request: GenerateRequest
    guidance: float

    def __call__(self) -> WaveMaker:
        import torch

        request = self.request
        assert request.pool is not None
        torch.set_num_threads(max(1, int(request.pool.cpus_per_worker)))
        return WaveMaker(_sampler(request), self.guidance)


def _sample(
    make_all: MakeAll,
    waves: Waves,
    request: GenerateRequest,
    plan: SharePlan,
    save: Callable[[int, bytes], None],
    done: list[int],
) -> tuple[int, int]:
    """Run what is missing, save each image as its wave ends; returns (images made, denoiser rows run)."""
    finished = set(done)
    made = run = 0

    def task(number: int) -> ImageTask:
        wave = waves.task(number)
        texts = [None if i in finished else _texts(request, plan, waves, i) for i in wave.members]
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


def _texts(request: GenerateRequest, plan: SharePlan, waves: Waves, index: int) -> dict[str, str]:
    """What stands in an image's text chunks."""
    return {
        "prompt": request.prompts[index],
        "seed": str(waves.noise_seeds[index]),
        "plan": json.dumps(_image_plan(plan, index)),
    }


def _image_plan(plan: SharePlan, index: int) -> dict[str, Any]:
    node = plan.levels[0][1][index]
    return {
        "num_steps": plan.num_steps,
        "group": node,
        "members": plan.groups[node],
        "branch_step": plan.branch_steps[index],
        "shared_guidance": plan.shared_guidance,
        "unguided_steps": plan.unguided_steps,
    }


def _record(request: GenerateRequest, plan: SharePlan, seeds: Sequence[int], index: int) -> dict[str, Any]:
    """An image's metadata, but for where it is."""
    return {
        "prompt": request.prompts[index],
        "seed": seeds[index],
        "group": plan.levels[0][1][index],
        "branch_step": plan.branch_steps[index],
        "evaluations": round(float(plan.prompt_evaluations[index]), 6),
    }


def _finish(
    request: GenerateRequest,
    plan: SharePlan,
    folder: OutputFolder,
    shards: ShardStore | None,
    figures: dict[str, Any],
) -> None:
    """Metadata, contact sheet and report; the report last, so that its presence means a finished run."""
    if shards is None:
        seen = f"images in {folder.path / 'images'}, seen at once in {_show(request, plan, folder)}"
    else:
        folder.write_lines("shards.jsonl", shards.summary())
        figures = figures | {"shards": len(shards)}
        seen = f"{len(shards)} shards in {folder.path / 'shards'}"
    report = plan.summary() | {"threshold": request.settings.policy.threshold} | figures
    folder.write_text("report.json", json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    print(seen, file=sys.stderr)


def _show(request: GenerateRequest, plan: SharePlan, folder: OutputFolder) -> Path:
    """Metadata and contact sheet of images that are files."""
    prompts = request.prompts
    seeds = noise_seeds(prompts, plan, request.seed)
    names = [folder.image_path(i).relative_to(folder.path).as_posix() for i in range(len(prompts))]
    records = [{"file_name": name} | _record(request, plan, seeds, i) for i, name in enumerate(names)]
    folder.write_lines("metadata.jsonl", records)
    title = (
        f"{plan.num_prompts} prompts, {len(plan.groups)} groups, {plan.num_steps} steps: "
        f"{plan.cost_saving:.1%} of the model evaluations saved"
    )
    images = [folder.image_path(i) for i in range(len(prompts))]
    return folder.save_sheet(contact_sheet(images, prompts, plan.groups, title))
