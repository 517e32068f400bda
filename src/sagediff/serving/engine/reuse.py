"""What a wave may replay from the trajectory cache, and what it leaves there for later ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sagediff.denoiser.lookup import denoiser_of
from sagediff.denoiser.private_names import unwrapped
from sagediff.errors import InputError
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.prompts.requests import QueuedRequest
from sagediff.sampling.plan_prompts import default_guidance
from sagediff.sampling.trajectory import Trajectory
from sagediff.serving.engine.cache_files import CacheKey, Entry, Vector
from sagediff.serving.engine.trajectory_cache import TrajectoryCache, config_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheUse:
    """A trajectory cache and how the operator wants it used.

    Attributes:
        threshold: minimum cosine similarity between a prompt and a trajectory's centroid for a replay, in [-1, 1].
            Higher: fewer replays, safer images.
        identify: told the loaded pipeline, says what tells its weights from others'.
        lora: hash of the LoRA's file; "" for none.
        encoder: name of what embeds prompts; "" for the pipeline's own text encoder.
    """

    cache: TrajectoryCache
    threshold: float
    identify: Callable[[Any], str]
    lora: str = ""
    encoder: str = ""


@dataclass(frozen=True)
class Arrangement:
    """How the jobs of a wave run together, by their numbers.

    Attributes:
        groups: every job once; who replays is alone.
        replays: what those that found something take over.
        kept: embeddings of those whose shared steps are to be recorded.
        vectors: embeddings of all that are in groups, where the policy has rungs, which ask for them.
    """

    groups: list[list[int]]
    replays: Mapping[int, Entry] = field(default_factory=dict)
    kept: Mapping[int, Vector] = field(default_factory=dict)
    vectors: Mapping[int, Vector] = field(default_factory=dict)


class Reuse:
    """The cache for one pipeline.

    Args:
        across_tenants: whether tenants may replay what others left.
    """

    def __init__(self, pipe: Any, use: CacheUse, across_tenants: bool) -> None:
        self._use, self._across_tenants = use, across_tenants
        self._default_guidance = default_guidance(type(pipe))
        self._base = CacheKey(
            tenant="", model=use.identify(pipe), lora=use.lora, scheduler=type(pipe.scheduler).__name__,
            scheduler_config=config_text(pipe.scheduler.config), num_steps=1, branch_step=1, guidance_scale=0.0,
            sharing="", height=0, width=0,
            dtype=str(unwrapped(denoiser_of(pipe)).dtype),
        )  # fmt: skip

    def key(self, request: QueuedRequest, sharing: Sharing, guidance: float | None) -> CacheKey:
        """Everything about the request, its prompt and seed excepted, that decides a trajectory, or who may see it."""
        steps = request.num_inference_steps
        return replace(
            self._base,
            tenant="" if self._across_tenants else request.tenant,
            num_steps=steps,
            branch_step=sharing.shared_steps(steps),
            guidance_scale=self._default_guidance if guidance is None else guidance,
            sharing=json.dumps(sharing.record()),
            height=request.height or 0,  # 0: the model's own
            width=request.width or 0,
            other=json.dumps({"negative prompt": request.negative_prompt, "encoder": self._use.encoder}),
        )

    def find(self, key: CacheKey, vector: Vector, seed: int) -> Entry | None:
        """What a request with that embedding and seed replays, if anything is near enough."""
        try:
            return self._use.cache.pick(self._use.cache.find(key, vector, self._use.threshold), seed)
        except InputError as error:  # what cannot be looked up is no reason to make no image
            log.warning("the trajectory cache could not be asked: %s", error)
            return None

    def keep(
        self, key: CacheKey, vectors: Sequence[Vector], noise_seed: int, trajectory: Trajectory, value: int
    ) -> None:
        """Put what a group with those embeddings ran together.

        Args:
            value: denoiser rows that one replay saves.
        """
        try:
            self._use.cache.put(key, np.mean(vectors, axis=0), noise_seed, trajectory, value)
        except InputError as error:  # the images are there all the same
            log.warning("a shared phase is not kept: %s", error)

    def discard(self, entry: Entry) -> None:
        """It made a run fail."""
        log.warning("a cached trajectory could not be replayed and is removed")
        self._use.cache.discard(entry)


def rows_alone(plan: SharePlan, steps: int) -> int:
    """Denoiser rows that a prompt's first steps cost when it takes them alone, by the plan's cost basis."""
    return sum(plan.rows_of_node(step, 1) for step in range(steps))
