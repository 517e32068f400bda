"""The work of `sagediff bench`: check everything, run what is missing, write the tables and plots."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import sagediff
from sagediff.cli.bench_inputs import Arms, BenchInputs, Material, model_of
from sagediff.cli.comparison_options import BenchOptions, MeasuringOptions
from sagediff.errors import InputError
from sagediff.evaluation.bench_report import write_report
from sagediff.evaluation.comparison import Bench, embeddings_of, missing_cells, run_bench, solver, yardstick
from sagediff.evaluation.figures import Yardstick
from sagediff.evaluation.grid import Grid, Weights
from sagediff.evaluation.perception import Perception
from sagediff.evaluation.reference import Reference, file_features, made_size
from sagediff.evaluation.result_store import CellStore
from sagediff.files.atomic import at_work
from sagediff.files.digest import texts_digest
from sagediff.files.lora_files import loras_digest
from sagediff.pipelines.content import files_digest, named_content, run_content
from sagediff.pipelines.loading import check_makes_images
from sagediff.pipelines.placement import open_pipeline, working_device
from sagediff.pipelines.run_settings import RunSettings
from sagediff.progress import stderr_progress


def run_bench_command(inputs: BenchInputs, options: BenchOptions, measuring: MeasuringOptions) -> None:
    """Run a bench; the table's JSON goes to stdout.

    Raises:
        InputError: weights that cannot be loaded, or a folder in use.
        OutputError: the disk refused.
    """
    arms, grid, seeds = inputs.arms, inputs.grid, inputs.seeds
    settings = next(iter(arms["base"].values()))
    model = settings.model
    check_makes_images(model.source, "bench")
    material = inputs.material(measuring)
    store = CellStore(options.out)
    manifest = _manifest(arms, grid, seeds, material, measuring)
    store.check(manifest, options.resume)
    content = _content(settings, material, measuring)
    if options.resume:
        store.check_content(content)
    device = working_device(model.device)

    def pipelines(weights: Weights) -> Any:
        lora = model_of(arms, weights).lora
        return open_pipeline(replace(model, lora=lora, no_lora=not lora, scheduler=None))

    sampling = settings.sampling
    bench = Bench(material.prompts, grid.settings(), seeds, None, pipelines, sampling.encoder)
    base = pipelines("base")
    for setting in bench.settings:
        solver(setting, base.scheduler)
    for weights in grid.fine_tuned:  # a LoRA that does not fit is said before hours of work
        pipelines(weights)
    perception = measuring.perception(model, device)
    vectors = embeddings_of(bench, base)
    world = model.name if measuring.world_judges(model) else None
    reference = _reference(material, perception, base, world)
    measure_by = yardstick(bench, vectors, perception, reference)
    if reference is None:
        print(
            "no real images (--data or --reference): Frechet and kernel distance are left out",
            file=sys.stderr,
        )
    store.begin(manifest, content)
    with at_work():
        _run(bench, store, vectors, measure_by)
        print(json.dumps(json.loads(write_report(bench, store, measure_by, manifest))))
    print(f"table in {store.path / 'table.md'}, plots beside it", file=sys.stderr)


def _reference(material: Material, perception: Perception, pipe: Any, world: str | None) -> Reference | None:
    """Features of the real images, scaled to the size that the model makes; else of the world's renders."""
    if material.real is None:
        return None if world is None else _world_reference(material.prompts, world)
    size = made_size(pipe, material.prompts[0])
    with stderr_progress("real images") as progress:
        task = progress.add_task("", total=len(material.real))
        features = file_features(
            material.real, perception, size, on_images=lambda n: progress.advance(task, n)
        )
    return Reference(features, material.paired)


def _world_reference(prompts: list[str], world: str) -> Reference:
    from sagediff.builtin.world_judges import judge_of

    reference_features = judge_of(world).reference_features
    try:
        return Reference(reference_features(prompts), paired=True)
    except InputError:  # prompts of the user's own: all real images are the reference
        return Reference(reference_features(None), paired=False)


def _manifest(
    arms: Arms, grid: Grid, seeds: Sequence[int], material: Material, measuring: MeasuringOptions
) -> dict[str, Any]:
    """What a resumed bench must repeat. A LoRA by its content: the same path may hold other weights tomorrow."""
    settings = next(iter(arms["base"].values()))
    digests = {weights: loras_digest(model_of(arms, weights).loras()) for weights in arms}
    return {
        "command": "bench",
        "version": sagediff.__version__,
        "model": settings.model.name,
        "lora": digests.get("sage"),
        "baseline_lora": digests.get("standard"),
        "prompts": texts_digest(material.prompts),
        "num_prompts": len(material.prompts),
        "real_images": None if material.real is None else texts_digest([str(f) for f in material.real]),
        "steps": grid.steps,
        "unguided": grid.unguided,
        "arms": {weights: grid.arm(weights).record() for weights in grid.weights},
        "encoder": settings.sampling.encoder,
        "features": measuring.features,
        "clip": measuring.clip,
        "dtype": settings.model.dtype,
        **settings.model.variations(),
        "seeds": tuple(seeds),
    }


def _content(settings: RunSettings, material: Material, measuring: MeasuringOptions) -> dict[str, str]:
    """Digests of the files behind the names in the manifest; it holds those of the LoRAs itself."""
    content = {what: digest for what, digest in run_content(settings).items() if what != "lora"}
    if material.real is not None:
        content["real_images"] = files_digest(material.real)
    return content | named_content(features=measuring.features, clip=measuring.clip)


def _run(bench: Bench, store: CellStore, vectors: np.ndarray[Any, Any], measure_by: Yardstick) -> None:
    missing = missing_cells(bench, store, measure_by)
    total = len(bench.settings) * len(bench.seeds)
    print(
        f"{len(bench.settings)} settings x {len(bench.seeds)} seeds, {len(bench.prompts)} prompts each"
        + (f"; {total - len(missing)} of {total} are there already" if len(missing) < total else ""),
        file=sys.stderr,
    )
    with stderr_progress("bench", counted=False) as progress:
        task = progress.add_task("", total=sum(s.num_steps for s, _ in missing) * len(bench.prompts))
        for setting, seed in run_bench(
            bench, store, vectors, measure_by, on_step=lambda count: progress.advance(task, count)
        ):
            if not progress.console.is_terminal:
                progress.console.print(f"{setting.method}, {setting.words()}, seed {seed}", highlight=False)
