"""What `sagediff generate` does: plan, sample wave by wave, save each image as its wave ends, report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sagediff.cli.job_options import Generation
from sagediff.cli.media import MediaFormat, call_keywords, check_media, media_format
from sagediff.cli.planning import advice, messages, plan_images
from sagediff.cli.row_loras import check_lora_files, for_each_set, row_warnings
from sagediff.cli.telling import run_words
from sagediff.cli.telling.image_progress import WaveSteps, image_progress
from sagediff.distributed.cluster import check_resources, connected
from sagediff.distributed.pool import Pool
from sagediff.errors import ModelError
from sagediff.files.atomic import at_work
from sagediff.files.contact_sheet import contact_sheet
from sagediff.files.output_folder import OutputFolder
from sagediff.files.shards import SHARD_COLUMNS, ShardStore
from sagediff.files.video_format import VideoFormat
from sagediff.pipelines.content import run_content
from sagediff.pipelines.from_images import Begins, begins_from
from sagediff.pipelines.loading import supported_family
from sagediff.pipelines.lora import sharing_warnings
from sagediff.pipelines.placement import open_pipeline
from sagediff.pipelines.run_settings import RunSettings
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.plan.waves import Waves, WaveTask
from sagediff.prompts.columns import beside
from sagediff.prompts.image_list import ImageList
from sagediff.sampling.sampler import SharedSampler
from sagediff.sampling.wave import Hopeless, images_missing

REPORT = "report.json"


def run_generation(job: Generation, folder: OutputFolder, manifest: dict[str, Any]) -> None:
    """Do it; the report goes to the folder and to stdout, progress to stderr.

    Args:
        folder: claimed, and that `check` has found free, or to be gone on with.
        manifest: what a run that goes on must repeat.
    """
    start = time.perf_counter()
    check_media(
        job, supported_family(job.settings.model.source)
    )  # refused before gigabytes of weights are read
    check_lora_files(job.images)
    content = run_content(job.settings)
    if job.output.resume:
        folder.check_content(content)
    with ExitStack() as ray:
        if job.pool is not None:  # what cannot be reached is refused before anything is written
            check_resources(ray.enter_context(connected(job.pool)), job.pool, lambda words: None)
        prepared = _prepared(job)
        names = job.file_names(prepared.seeds)
        name = "{:06d}".format if names is None else names.__getitem__
        folder = OutputFolder(folder.path, prepared.media, name)
        folder.begin(manifest, content, prepared.plan.to_json())
        with at_work():
            _make_all(job, folder, prepared, start)


@dataclass(frozen=True)
class Prepared:
    """All that can be refused is behind it; nothing has been written.

    Attributes:
        sampler: the only reference to it, so that it can be given up where workers make the images.
        seeds: of each image's noise.
        media: what images, or videos, are written as.
        keywords: of the pipeline's calls.
        cut: prompts that the encoder did not read to their end.
        advice: groups worth a look, and whether another threshold would share more: rows of the last table.
    """

    sampler: list[SharedSampler]
    plan: SharePlan
    waves: Waves
    seeds: list[int]
    media: MediaFormat
    keywords: dict[str, Any]
    cut: int
    advice: list[tuple[str, str]]


def _prepared(job: Generation) -> Prepared:
    settings, sharing = job.settings, job.settings.sharing
    sampler = _opened(job).sampler()
    for_each_set(job.images, sampler.loras.load)
    planned = plan_images(job.images, settings, job.guided, job.scale, sampler.pipe, sampler.denoiser_class)
    plan, reading = planned.plan, planned.reading
    requests = job.images.requests
    steps, keywords = settings.sampling.num_inference_steps, call_keywords(job.video, sampler)
    sampler.check(requests, plan, reading.keys, steps, keywords)
    for words in messages(job.images, plan, reading):
        print(words, file=sys.stderr)
    if note := settings.note():
        print(f"note: {note}", file=sys.stderr)
    ratio, largest = sharing.ladder[-1].share_ratio, max(map(len, plan.groups))
    for words in () if settings.measured else sharing_warnings(settings.model.loras(), ratio, largest):
        print(f"warning: {words}; images may suffer", file=sys.stderr)
    for words in row_warnings(job.images, plan, ratio):
        print(f"warning: {words}; images may suffer", file=sys.stderr)
    waves = sampler.waves_of(requests, plan, job.output.seed, reading.keys, steps)
    return Prepared(
        [sampler],
        plan,
        waves,
        waves.seeds(sampler.sharing_of),
        media_format(job, sampler),
        keywords,
        len(reading.cut),
        advice(planned, job.images.prompts, sharing.threshold),
    )


def _make_all(job: Generation, folder: OutputFolder, prepared: Prepared, start: float) -> None:
    """Make what is missing, and write everything.

    Args:
        start: when the run began, on `time.perf_counter`.
    """
    images, plan, waves, seeds = job.images, prepared.plan, prepared.waves, prepared.seeds
    prompts = images.prompts
    sharing = job.settings.sharing
    record, texts = (
        partial(_record, images, plan, seeds, job.shard_size is not None),
        partial(_own_texts, prompts, seeds),
    )
    shards = None
    if job.shard_size is not None:
        order = [i for group in plan.groups for i in group]
        shards = ShardStore(folder, order, job.shard_size, record, texts)
    done = folder.finished(map(texts, range(len(prompts)))) if shards is None else shards.finished()
    save = folder.save_image if shards is None else shards.save_image
    what = prepared.media.folder
    _say(run_words.before(plan, len(done), folder.path, what))
    sampling_start = time.perf_counter()
    made, run, bad, is_hopeless = 0, 0, list[int](), Hopeless()
    left = waves.without(done)
    missing = len(images) - len(done)
    if missing:
        folder.remove(REPORT)  # of a run that had ended, and whose images were harmed since
    with image_progress(missing, round(sum(left.costs())), what) as progress:
        for wave in _made(job, prepared, left, done, texts, progress.step):
            run += wave.evaluations
            for index, data in wave.images:
                save(index, data)
                made += 1
            progress.made(len(wave.images))
            bad += wave.bad
            if is_hopeless(0 if wave.bad and not wave.images else 1):
                break
    if bad:
        raise images_missing({i: prompts[i] for i in sorted(bad)}, sorted(bad))
    if shards is None:
        home = folder.path
        folder.write_lines(
            "metadata.jsonl",
            (
                {"file_name": folder.image_path(i).relative_to(home).as_posix()} | record(i)
                for i in range(len(images))
            ),
        )
        seen = f"{folder.home}, contact sheet: {_show(prompts, plan, folder)}"
    else:
        folder.write_lines("shards.jsonl", shards.summary())
        seen = f"{folder.path / 'shards'}, {len(shards)} of them"
    end = time.perf_counter()
    times = sampling_start - start, end - sampling_start
    report = plan.summary() | {
        "threshold": sharing.threshold,
        "num_rows": len(images.starts),
        "evaluations_run": run,
        "images_made": made,
        "cut_prompts": prepared.cut,
        "seconds": end - start,
        "seconds_loading": times[0],
        "seconds_sampling": times[1],
        "images_per_second": made / (end - start),
    }
    if shards is not None:
        report["shards"] = len(shards)
    folder.write_text(REPORT, json.dumps(report, indent=2) + "\n")  # last: it means a finished run
    print(json.dumps(report), flush=True)
    _say(run_words.after(plan, made, run, times, seen, prepared.advice, what))


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Opened:
    """What makes a run's sampler, here or on a worker."""

    settings: RunSettings
    guided: Sharing
    begins: Begins | None
    switches_loras: bool
    wave_size: int
    micro_batch_size: int | Literal["auto"] | None

    def sampler(self) -> SharedSampler:
        given: dict[str, Any] = {} if self.begins is None else {"begins": self.begins}
        if self.switches_loras:
            given["apart"] = True
        return SharedSampler(
            open_pipeline(self.settings.model, **given),
            self.settings.sharing,
            wave_size=self.wave_size,
            micro_batch_size=self.micro_batch_size,
            encoder=self.settings.sampling.encoder,
            guided=self.guided,
        )


def _opened(job: Generation) -> _Opened:
    begins = begins_from(job.images.requests)
    switches = bool(job.images.lora_sets)
    return _Opened(job.settings, job.guided, begins, switches, job.output.wave_size, job.micro_batch_size)


# -- waves, here or on workers


@dataclass(frozen=True)
class ImageTask:
    """A wave, and for each member what to write into its image; None for one that is finished already."""

    wave: WaveTask
    texts: list[dict[str, str] | None]


@dataclass(frozen=True)
class MadeWave:
    """images: (prompt number, its file); evaluations: denoiser rows run; bad: prompts whose images are not finite."""

    images: list[tuple[int, bytes]]
    evaluations: int
    bad: list[int]


def _make(
    sampler: SharedSampler,
    media: MediaFormat,
    keywords: Mapping[str, Any],
    guidance: float | None,
    on_step: Callable[[int], None] | None,
    task: ImageTask,
) -> MadeWave:
    """A wave's files in memory."""
    bad: list[int] = []
    try:
        wave = sampler.run(task.wave, guidance, on_step, **keywords)
        made, evaluations = wave.images, wave.evaluations
    except ModelError as error:
        if error.images is None:
            raise
        made, evaluations = error.images, task.wave.plan.evaluations
        bad = [task.wave.members[row] for row in error.bad]
    encode: Callable[[Any, dict[str, str]], bytes] = media.encode
    images = [
        (index, encode(image, texts))
        for index, image, texts in zip(task.wave.members, made, task.texts, strict=True)
        if texts is not None and image is not None
    ]
    return MadeWave(images, evaluations, bad)


def _worker(
    opened: _Opened, media: MediaFormat, keywords: Mapping[str, Any], threads: int
) -> Callable[[ImageTask], MadeWave]:
    """What makes waves on a worker; its pipeline is built where the worker is."""
    import torch

    torch.set_num_threads(threads)
    guidance = opened.settings.sampling.guidance_scale
    return partial(_make, opened.sampler(), media, keywords, guidance, None)


def _made(
    job: Generation,
    prepared: Prepared,
    left: Waves,
    done: list[int],
    own_texts: Callable[[int], dict[str, str]],
    on_step: Callable[[int], None],
) -> Iterator[MadeWave]:
    """What is missing, wave by wave, made here or by workers; `on_step` is told the evaluations of each step, or of all
    that are left of a wave at its end. The sampler is given up where workers make the images: its memory is theirs."""
    guidance, finished, own = job.settings.sampling.guidance_scale, set(done), prepared.sampler.pop()
    plan, media, keywords = prepared.plan, prepared.media, prepared.keywords

    def task(number: int) -> ImageTask:
        wave = left.task(number)
        texts = [None if i in finished else own_texts(i) | _plan_texts(plan, i) for i in wave.members]
        return ImageTask(wave, texts)

    if job.pool is None:
        for number in range(len(left)):
            wave = task(number)
            steps = WaveSteps(wave.wave.plan, on_step)
            made = _make(own, media, keywords, guidance, steps.taken, wave)
            steps.end()
            yield made
        return
    del own
    threads = max(1, int(job.pool.cpus_per_worker))
    pool = Pool(partial(_worker, _opened(job), media, keywords, threads), job.pool, _say)
    costs = left.costs()
    for number, made in pool.run(task, costs):
        on_step(round(costs[number]))
        yield made


# -- what is written beside the images


def _own_texts(prompts: list[str], seeds: Sequence[int], index: int) -> dict[str, str]:
    """What only this prompt's image says in its text chunks."""
    return {"prompt": prompts[index], "seed": str(seeds[index])}


def _plan_texts(plan: SharePlan, index: int) -> dict[str, str]:
    """What an image's text chunks say of its group."""
    node = plan.levels[0][1][index]
    about = {
        "num_steps": plan.num_steps,
        "group": node,
        "members": plan.groups[node],
        "branch_step": plan.branch_steps[index],
        "shared_guidance": plan.shared_guidance,
        "unguided_steps": plan.unguided_steps,
    }
    return {"plan": json.dumps(about)}


def _record(
    images: ImageList, plan: SharePlan, seeds: list[int], sharded: bool, index: int
) -> dict[str, Any]:
    """An image's metadata, but for where it is."""
    ours = {
        "prompt": images.requests[index].prompt,
        "seed": seeds[index],
        "group": plan.levels[0][1][index],
        "branch_step": plan.branch_steps[index],
        "evaluations": round(float(plan.prompt_evaluations[index]), 6),
    }
    taken = {*ours, "file_name", *SHARD_COLUMNS} if sharded else {*ours, "file_name"}
    row = images.record(index)
    if (named := images.requests[index].seed) not in (None, seeds[index]):  # it shares all the same
        row = {"seed": named} | row
    return ours | {beside(name) if name in taken else name: value for name, value in row.items()}


def _show(prompts: list[str], plan: SharePlan, folder: OutputFolder) -> Path:
    """The contact sheet of images that are files."""
    counts = f"{plan.num_prompts} prompts, {len(plan.groups)} groups, {plan.num_steps} steps"
    files = [folder.image_path(i) for i in range(len(prompts))]
    title = f"{counts}; evaluations: {plan.savings}"
    media = folder.image_format
    abreast = 3 if isinstance(media, VideoFormat) else 1
    return folder.save_sheet(
        contact_sheet(files, prompts, plan.groups, title, shown=media.shown, abreast=abreast)
    )
