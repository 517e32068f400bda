"""`sagediff bench`: every way of sampling in one run, one table."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import sagediff
from sagediff.cli.settings import RunSettings, quiet_libraries, run_settings
from sagediff.errors import InputError
from sagediff.evaluation.comparison import (
    Bench,
    as_tensor,
    embeddings_of,
    missing_cells,
    run_bench,
    strip_groups,
    yardstick,
)
from sagediff.evaluation.figures import Yardstick
from sagediff.evaluation.grid import Grid, Setting, Weights
from sagediff.evaluation.perception import DEFAULT_CLIP, DEFAULT_FEATURES, NetworkPerception, Perception
from sagediff.evaluation.reference import Reference, file_features
from sagediff.evaluation.report_table import csv_text, json_text, markdown
from sagediff.evaluation.result_store import CellStore
from sagediff.evaluation.summary import Row, row
from sagediff.files.digest import texts_digest
from sagediff.files.imagefolder import list_images, read_imagefolder
from sagediff.pipelines.lora import lora_file
from sagediff.pipelines.placement import open_pipeline, placement
from sagediff.progress import stderr_progress
from sagediff.prompts.prompt_files import read_prompts

DEFAULT_STEPS = (6, 8, 10, 12, 16, 20)
DEFAULT_SEEDS = (0, 1, 2)
_T = TypeVar("_T", int, float)


@dataclass(frozen=True)
class BenchRequest:
    """The options of the command line; lists as they were given, None where an option was left out."""

    model: str
    out: Path
    lora: Path | None = None
    baseline_lora: Path | None = None
    prompts: Path | None = None
    data: Path | None = None
    reference: Path | None = None
    captions: int | None = None
    share_ratio: Sequence[str] = ()
    threshold: Sequence[str] = ()
    steps: Sequence[str] = ()
    unguided: Sequence[str] = ()
    seeds: Sequence[str] = ()
    shared_guidance: str | None = None
    guidance: float | None = None
    max_group_size: int | None = None
    scheduler: str | None = None
    encoder: str | None = None
    features: str | None = None
    clip: str | None = None
    resume: bool = False
    device: str = "auto"
    dtype: str = "auto"
    handover_noise: float | None = None
    policy: Path | None = None


@dataclass(frozen=True)
class Material:
    """What is drawn and what it is compared with.

    Attributes:
        prompts: one image each.
        real: files of real images; None where there are none, or those of the built-in world.
        paired: whether file i shows prompt i.
    """

    prompts: list[str]
    real: list[Path] | None
    paired: bool


def run_bench_command(request: BenchRequest) -> None:
    """Check everything, run what is missing, write the tables and plots; the table's JSON goes to stdout."""
    if find_spec("matplotlib") is None:
        raise InputError("sagediff bench needs matplotlib: pip install 'sagediff[eval]'")
    settings, grid, seeds = _checked(request)
    material = _material(request)
    store = CellStore(request.out)
    manifest = _manifest(request, settings, grid, seeds, material)
    store.check(manifest, request.resume)
    quiet_libraries()
    device, _ = placement(request.device, request.dtype)
    loras: dict[Weights, Path | None] = {
        "base": None,
        "standard": request.baseline_lora,
        "sage": request.lora,
    }

    def pipelines(weights: Weights) -> Any:
        return open_pipeline(
            settings.model, settings.scheduler, request.device, request.dtype, loras[weights]
        )

    bench = Bench(
        material.prompts, grid.settings(), seeds, settings.guidance_scale, pipelines, settings.policy.max_group_size,
        settings.encoder,
    )  # fmt: skip
    base = pipelines("base")
    for weights in grid.fine_tuned:  # a LoRA that does not fit is said before hours of work
        pipelines(weights)
    perception = open_perception(request.model, request.features, request.clip, device)
    vectors = embeddings_of(bench, base)
    reference = _reference(request, material, perception, base)
    measure_by = yardstick(bench, vectors, perception, reference)
    if reference is None:
        print(
            "no real images (--data or --reference): Frechet and kernel distance are left out",
            file=sys.stderr,
        )
    store.begin(manifest)
    _run(bench, store, vectors, measure_by)
    rows = _rows(bench, store)
    _write(request, bench, store, measure_by, rows, manifest)


def _checked(request: BenchRequest) -> tuple[RunSettings, Grid, tuple[int, ...]]:
    steps = numbers("--steps", request.steps, int) or DEFAULT_STEPS
    settings = run_settings(
        model=request.model, steps=steps[0], guidance=request.guidance, threshold=None, share_ratio=None,
        handover_noise=request.handover_noise, policy_file=request.policy,
        shared_guidance=request.shared_guidance, max_group_size=request.max_group_size,
        scheduler=request.scheduler, encoder=request.encoder,
    )  # fmt: skip
    fine_tuned: list[Weights] = []
    if request.baseline_lora is not None:
        lora_file(request.baseline_lora)
        fine_tuned.append("standard")
    if request.lora is not None:
        lora_file(request.lora)
        fine_tuned.append("sage")
    policy = settings.policy
    ratios = numbers("--share-ratio", request.share_ratio, float)
    thresholds = numbers("--threshold", request.threshold, float)
    grid = Grid(
        steps,
        ratios or (policy.share_ratio,),
        thresholds or (policy.threshold,),
        numbers("--unguided", request.unguided, float),
        policy.shared_guidance,
        tuple(fine_tuned),
        settings.handover_noise,
        () if ratios or thresholds else policy.rungs,  # who names either gets a fixed split, as elsewhere
        policy.parting,
    )
    seeds = numbers("--seeds", request.seeds, int) or DEFAULT_SEEDS
    if len(set(seeds)) != len(seeds):
        raise InputError(f"every --seeds must be given once; got {', '.join(map(str, seeds))}")
    return settings, grid, seeds


def numbers(name: str, texts: Sequence[str], kind: Callable[[str], _T]) -> tuple[_T, ...]:
    """Values of an option given several times, or once with commas."""
    try:
        return tuple(kind(part) for text in texts for part in text.split(","))
    except ValueError:
        whole = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{name} takes {whole}, several with commas; got {', '.join(texts)}") from None


def _material(request: BenchRequest) -> Material:
    if request.prompts is not None and request.data is not None:
        raise InputError("give --prompts or --data, not both")
    real = None if request.reference is None else list_images(request.reference)
    if request.data is not None:
        folder = read_imagefolder(request.data)
        prompts = first_of(folder.captions, request.captions)
        return Material(prompts, real or folder.files[: len(prompts)], paired=real is None)
    if request.prompts is not None:
        return Material(first_of(read_prompts(request.prompts), request.captions), real, paired=False)
    if request.model != "demo":
        raise InputError("--model of your own needs --prompts FILE, or --data FOLDER with metadata.jsonl")
    from sagediff.builtin.scenes.scene_perception import held_out_captions

    captions = held_out_captions(256 if request.captions is None else request.captions)
    return Material(captions, real, paired=False)


def first_of(prompts: list[str], count: int | None) -> list[str]:
    """The first prompts; all for None."""
    if count is not None and not 1 <= count <= len(prompts):
        raise InputError(f"--captions must lie in [1, {len(prompts)}], the prompts there are; got {count}")
    return prompts[:count]


def _is_world(request: BenchRequest) -> bool:
    """Whether the built-in judge looks at the images."""
    return request.model == "demo" and request.features is None and request.clip is None


def open_perception(model: str, features: str | None, clip: str | None, device: str) -> Perception:
    """What looks at the images: the built-in judge at those of its world, unless networks are named."""
    if model == "demo" and features is None and clip is None:
        from sagediff.builtin.scenes.scene_perception import WorldPerception

        return WorldPerception()
    return NetworkPerception(features or DEFAULT_FEATURES, clip or DEFAULT_CLIP, device)


def _reference(
    request: BenchRequest, material: Material, perception: Perception, pipe: Any
) -> Reference | None:
    """Features of the real images, scaled to the size that the model makes; else of the world's renders."""
    if material.real is None:
        return _world_reference(material.prompts) if _is_world(request) else None
    probe = pipe(prompt=material.prompts[:1], num_inference_steps=2, output_type="pil").images
    height, width = as_tensor(probe).shape[-2:]
    with stderr_progress("real images") as progress:
        task = progress.add_task("", total=len(material.real))
        features = file_features(
            material.real, perception, (height, width), on_images=lambda n: progress.advance(task, n)
        )
    return Reference(features, material.paired)


def _world_reference(prompts: list[str]) -> Reference:
    from sagediff.builtin.scenes.scene_perception import reference_features

    try:
        return Reference(reference_features(prompts), paired=True)
    except InputError:  # prompts of the user's own: all renders are the reference
        return Reference(reference_features(), paired=False)


def _manifest(
    request: BenchRequest, settings: RunSettings, grid: Grid, seeds: Sequence[int], material: Material
) -> dict[str, Any]:
    """What a resumed bench must repeat."""
    return {
        "command": "bench",
        "version": sagediff.__version__,
        "model": settings.model,
        "lora": _digest(request.lora),
        "baseline_lora": _digest(request.baseline_lora),
        "prompts": texts_digest(material.prompts),
        "num_prompts": len(material.prompts),
        "real_images": None if material.real is None else texts_digest([str(f) for f in material.real]),
        "steps": grid.steps,
        "share_ratios": grid.share_ratios,
        "thresholds": grid.thresholds,
        "unguided": grid.unguided,
        "shared_guidance": grid.shared_guidance,
        "handover_noise": grid.handover_noise,
        "guidance_scale": settings.guidance_scale,
        "max_group_size": settings.policy.max_group_size,
        "rungs": grid.rungs,
        "parting": grid.parting,
        "scheduler": settings.scheduler,
        "encoder": settings.encoder,
        "features": request.features,
        "clip": request.clip,
        "dtype": request.dtype,
        "seeds": tuple(seeds),
    }


def _digest(lora: Path | None) -> str | None:
    """A LoRA by its content: the same path may hold other weights tomorrow."""
    return None if lora is None else hashlib.blake2b(lora_file(lora).read_bytes(), digest_size=16).hexdigest()


def _run(bench: Bench, store: CellStore, vectors: np.ndarray[Any, Any], measure_by: Yardstick) -> None:
    missing = missing_cells(bench, store)
    total = len(bench.settings) * len(bench.seeds)
    print(
        f"{len(bench.settings)} settings x {len(bench.seeds)} seeds, {len(bench.prompts)} prompts each"
        + (f"; {total - len(missing)} of {total} are there already" if len(missing) < total else ""),
        file=sys.stderr,
    )
    with stderr_progress("bench") as progress:
        task = progress.add_task("", total=sum(s.num_steps for s, _ in missing) * len(bench.prompts))
        for setting, seed in run_bench(
            bench, store, vectors, measure_by, on_step=lambda count: progress.advance(task, count)
        ):
            if not progress.console.is_terminal:
                progress.console.print(f"{setting.method}, {setting.words()}, seed {seed}", highlight=False)


def _rows(bench: Bench, store: CellStore) -> list[Row]:
    rows = []
    for setting in bench.settings:
        cells = [cell for seed in bench.seeds if (cell := store.read(setting, seed)) is not None]
        rows.append(row(setting, cells))
    return rows


def _write(
    request: BenchRequest,
    bench: Bench,
    store: CellStore,
    measure_by: Yardstick,
    rows: list[Row],
    manifest: dict[str, Any],
) -> None:
    from sagediff.evaluation.plots import frontier, strip

    about = {"about": manifest | {"perception": measure_by.perception.name}}
    text = json_text(rows, about)
    store.write_text("table.md", markdown(rows))
    store.write_text("table.csv", csv_text(rows))
    store.write_bytes("frontier.png", frontier(rows))
    shown = _one_a_method(bench.settings)
    groups = strip_groups(bench, measure_by)
    members = measure_by.groups[bench.settings[0].threshold]
    store.write_bytes(
        "strip.png",
        strip(
            shown,
            groups,
            [bench.prompts[members[g][0]] for g in groups],
            [[store.strip_path(setting, g) for setting in shown] for g in groups],
        ),
    )
    store.write_text("table.json", text)  # last: its presence means a finished bench
    print(json.dumps(json.loads(text)))
    print(f"table in {store.path / 'table.md'}, plots beside it", file=sys.stderr)


def _one_a_method(settings: Sequence[Setting]) -> list[Setting]:
    """The first setting of each method, as the options named them."""
    first: dict[str, Setting] = {}
    for setting in settings:
        first.setdefault(setting.method, setting)
    return list(first.values())
