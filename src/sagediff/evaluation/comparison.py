"""The bench: every setting with every seed, one cell each, that a kill at any moment leaves resumable.

It loads no model and shows no progress: both are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sagediff.denoiser.scheduler import scheduler_like
from sagediff.errors import InputError
from sagediff.evaluation.figures import Yardstick, measure
from sagediff.evaluation.grid import Setting, Weights
from sagediff.evaluation.perception import Perception
from sagediff.evaluation.reference import Reference
from sagediff.evaluation.result_store import CellStore
from sagediff.evaluation.sampled_images import as_tensor, sampled
from sagediff.evaluation.similarity import similarity_bands
from sagediff.evaluation.summary import Row, row
from sagediff.plan.grouping import group_prompts
from sagediff.prompts.embeddings import Encoder, embed_prompts

STRIP_GROUPS = 6  # groups whose images are kept for the strip


@dataclass(frozen=True)
class Bench:
    """All that a bench is made of.

    Attributes:
        prompts: one image each, the same for every setting.
        settings: in the order of the table.
        seeds: at least one; every figure is a mean over them.
        guidance: guidance scale of settings that name none, None for the pipeline's own.
        pipelines: gives the pipeline with those weights and its own solver; called once for each that is needed.
        encoder: as `SharedSampler` takes it.

    Raises:
        InputError: no prompts or seeds, or a seed twice.
    """

    prompts: list[str]
    settings: list[Setting]
    seeds: tuple[int, ...]
    guidance: float | None
    pipelines: Callable[[Weights], Any]
    encoder: Encoder | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("a bench needs prompts")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"seeds must be given, each once; got {list(self.seeds)}")


def yardstick(
    bench: Bench,
    vectors: npt.NDArray[np.float32],
    perception: Perception,
    reference: Reference | None,
    band_edges: Sequence[float] | None = None,
) -> Yardstick:
    """Groups and bands of the bench's prompts, the same for every setting.

    Args:
        vectors: (N, D) prompt embeddings of the base model, which `embeddings_of` gives.
    """
    groups = {g: group_prompts(vectors, *g) for g in {setting.grouping for setting in bench.settings}}
    bands = {g: similarity_bands(vectors, groups[g], band_edges) for g in groups}
    return Yardstick(perception, reference, groups, bands)


def embeddings_of(bench: Bench, pipe: Any) -> npt.NDArray[np.float32]:
    """(N, D) unit vectors, from the encoder that the sampler groups by."""
    return embed_prompts(bench.prompts, pipe, bench.encoder).vectors


def missing_cells(bench: Bench, store: CellStore, measure_by: Yardstick) -> list[tuple[Setting, int]]:
    """What is still to be made: cells, and those whose images for the strip are not there."""
    groups = strip_groups(bench, measure_by)

    def is_there(setting: Setting, seed: int) -> bool:
        strips = groups if seed == bench.seeds[0] else ()
        return store.read(setting, seed) is not None and all(store.has_strip(setting, g) for g in strips)

    return [(s, seed) for s in bench.settings for seed in bench.seeds if not is_there(s, seed)]


def run_bench(
    bench: Bench,
    store: CellStore,
    vectors: npt.NDArray[np.float32],
    measure_by: Yardstick,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[tuple[Setting, int]]:
    """Make what is missing; yields each cell when it is written.

    Args:
        vectors: (N, D) prompt embeddings of the base model, which `embeddings_of` gives: fine-tuned weights must
            not change the groups.
        on_step: called after every sampling step with the number of prompts that took it.
    """
    loaded: Weights | None = None
    pipe: Any = None
    own: Any = None
    for setting, seed in missing_cells(bench, store, measure_by):
        if setting.weights != loaded:
            pipe = None  # freed before the next is loaded
            pipe, loaded = bench.pipelines(setting.weights), setting.weights
            own = pipe.scheduler
        pipe.scheduler = solver(setting, own)
        scale = bench.guidance if setting.guidance_scale is None else setting.guidance_scale
        made = sampled(pipe, bench.prompts, vectors, setting.sharing, setting.num_steps, scale, seed, on_step)
        figures, bands = measure(as_tensor(made.images), bench.prompts, setting.grouping, measure_by)
        each = made.plan.prompt_evaluations
        for band in bands:
            chosen = band.pop("prompts")
            band["num_prompts"] = len(chosen)
            band["evaluations_per_image"] = float(each[chosen].mean()) if chosen else None
        if seed == bench.seeds[0]:
            for group, members in strip_groups(bench, measure_by).items():
                store.save_strip(setting, group, [made.images[i] for i in members])
        store.write(setting, seed, {
            "setting": setting.record(),
            "seed": seed,
            "num_prompts": len(made.images),
            "num_groups": len(made.plan.groups),
            "figures": {
                "evaluations_per_image": made.report["evaluations_run"] / len(made.images),
                "cost_saving": made.plan.cost_saving,
                "sharing_saving": made.plan.sharing_saving,
                "seconds": made.report["seconds"],
                **figures,
            },
            "bands": bands,
        })  # fmt: skip
        yield setting, seed


def solver(setting: Setting, own: Any) -> Any:
    """The scheduler of a setting, from a pipeline's own.

    Raises:
        InputError: it does not fit the model.
    """
    name = setting.scheduler
    return own if name is None else scheduler_like(own, name, setting.weights)


def rows_of(bench: Bench, store: CellStore) -> list[Row]:
    """The table's rows, from the cells that are there; a setting without any has none."""
    found = {s: [cell for seed in bench.seeds if (cell := store.read(s, seed))] for s in bench.settings}
    return [row(setting, cells) for setting, cells in found.items() if cells]


def strip_groups(bench: Bench, measure_by: Yardstick) -> dict[int, list[int]]:
    """The groups that the strip shows, by number: the first ones of three to five members, else the largest."""
    groups = measure_by.groups[bench.settings[0].grouping]
    order = sorted(range(len(groups)), key=lambda g: (not 3 <= len(groups[g]) <= 5, -len(groups[g]), g))
    return {g: groups[g] for g in sorted(order[:STRIP_GROUPS])}
