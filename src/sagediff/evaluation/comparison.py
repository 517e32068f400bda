"""The bench: every setting with every seed, one cell each, that a kill at any moment leaves resumable.

It loads no model and shows no progress: both are handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sagediff.errors import InputError
from sagediff.evaluation.figures import Yardstick, measure
from sagediff.evaluation.grid import Setting, Weights
from sagediff.evaluation.perception import Perception
from sagediff.evaluation.reference import Reference
from sagediff.evaluation.result_store import CellStore
from sagediff.evaluation.similarity import similarity_bands
from sagediff.plan.grouping import group_prompts
from sagediff.plan.share_plan import SharePlan
from sagediff.prompts.embeddings import Encoder, embed_prompts
from sagediff.sampling.sampler import SharedSampler

STRIP_GROUPS = 6  # groups whose images are kept for the strip


@dataclass(frozen=True)
class Bench:
    """All that a bench is made of.

    Attributes:
        prompts: one image each, the same for every setting.
        settings: in the order of the table.
        seeds: at least one; every figure is a mean over them.
        guidance: guidance scale of every setting, None for the pipeline's own.
        pipelines: gives the pipeline with those weights; called once for each that is needed.
        max_group_size, encoder, wave_size, micro_batch_size: as `SharedSampler` takes them.

    Raises:
        InputError: no prompts or seeds, or a seed twice.
    """

    prompts: list[str]
    settings: list[Setting]
    seeds: tuple[int, ...]
    guidance: float | None
    pipelines: Callable[[Weights], Any]
    max_group_size: int = 8
    encoder: Encoder | None = None
    wave_size: int = 64
    micro_batch_size: int | None = None

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
    thresholds = {setting.threshold for setting in bench.settings}
    groups = {t: group_prompts(vectors, t, bench.max_group_size) for t in thresholds}
    bands = {t: similarity_bands(vectors, groups[t], band_edges) for t in thresholds}
    return Yardstick(perception, reference, groups, bands)


def embeddings_of(bench: Bench, pipe: Any) -> npt.NDArray[np.float32]:
    """(N, D) unit vectors, from the encoder that the sampler groups by."""
    return embed_prompts(bench.prompts, pipe, bench.encoder).vectors


def missing_cells(bench: Bench, store: CellStore) -> list[tuple[Setting, int]]:
    """What is still to be made."""
    return [(s, seed) for s in bench.settings for seed in bench.seeds if store.read(s, seed) is None]


def run_bench(
    bench: Bench,
    store: CellStore,
    vectors: npt.NDArray[np.float32],
    measure_by: Yardstick,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[tuple[Setting, int]]:
    """Make what is missing; yields each cell when it is written.

    Args:
        vectors: (N, D) prompt embeddings of the base model, which `embeddings_of` gives.
        on_step: called after every sampling step with the number of prompts that took it.
    """
    loaded: Weights | None = None
    pipe: Any = None
    known = dict(zip(bench.prompts, vectors, strict=True))  # fine-tuned weights must not change the groups
    for setting, seed in missing_cells(bench, store):
        if setting.weights != loaded:
            pipe = None  # freed before the next is loaded
            pipe, loaded = bench.pipelines(setting.weights), setting.weights
        start = time.perf_counter()
        plan, made, run = _sample(bench, setting, seed, pipe, known, on_step)
        seconds = time.perf_counter() - start
        images = as_tensor(made)
        figures, bands = measure(images, bench.prompts, setting.threshold, measure_by)
        for band in bands:
            chosen = band.pop("prompts")
            band["num_prompts"] = len(chosen)
            band["evaluations_per_image"] = float(plan.prompt_evaluations[chosen].mean()) if chosen else None
        if seed == bench.seeds[0]:
            for group in strip_groups(bench, measure_by):
                members = measure_by.groups[bench.settings[0].threshold][group]
                store.save_strip(setting, group, [made[i] for i in members])
        store.write(setting, seed, {
            "setting": asdict(setting),
            "seed": seed,
            "num_prompts": len(made),
            "num_groups": len(plan.groups),
            "figures": {
                "evaluations_per_image": run / len(made),
                "cost_saving": plan.cost_saving,
                "seconds": seconds,
                **figures,
            },
            "bands": bands,
        })  # fmt: skip
        yield setting, seed


def strip_groups(bench: Bench, measure_by: Yardstick) -> list[int]:
    """The groups that the strip shows: the first ones of three to five members, else the largest."""
    groups = measure_by.groups[bench.settings[0].threshold]
    order = sorted(range(len(groups)), key=lambda g: (not 3 <= len(groups[g]) <= 5, -len(groups[g]), g))
    return sorted(order[:STRIP_GROUPS])


def as_tensor(images: Sequence[Image.Image]) -> Tensor:
    """PIL images of equal size -> (N, 3, H, W) in [0, 1]."""
    stack = np.stack([np.asarray(image.convert("RGB"), np.float32) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous() / 255


def _sample(
    bench: Bench,
    setting: Setting,
    seed: int,
    pipe: Any,
    known: Mapping[str, npt.NDArray[np.float32]],
    on_step: Callable[[int], None] | None,
) -> tuple[SharePlan, list[Image.Image], int]:
    """(plan, one image per prompt in their order, denoiser rows run)."""
    sampler = SharedSampler(
        pipe,
        setting.threshold,
        setting.share_ratio,
        bench.max_group_size,
        shared_guidance=setting.shared_guidance,
        unguided=setting.unguided,
        handover_noise=setting.handover_noise,
        wave_size=bench.wave_size,
        micro_batch_size=bench.micro_batch_size,
        encoder=lambda texts: np.stack([known[text] for text in texts]),
        rungs=setting.rungs,
        parting=setting.parting,
    )
    plan = sampler.plan(bench.prompts, setting.num_steps, bench.guidance)
    made: dict[int, Image.Image] = {}
    run = 0
    for wave in sampler.waves(bench.prompts, plan, bench.guidance, seed, on_step=on_step):
        run += wave.evaluations
        made.update(zip(wave.prompts, wave.images, strict=True))
    return plan, [made[i] for i in range(len(bench.prompts))], run
