"""One wave on the pipeline: requests and their groups in, pictures out. Knows neither threads, queues nor retries."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sagediff.embeddings import Encoder, embed_prompts
from sagediff.errors import UnsupportedPipelineError
from sagediff.levels import part_of_steps
from sagediff.plan import SharePlan
from sagediff.planning import SharePolicy
from sagediff.sampler import FRESH_NOISE
from sagediff.sampling import shared_sampling
from sagediff.serving.errors import Cancelled
from sagediff.serving.grouping import group_requests
from sagediff.serving.preview import previewer_of
from sagediff.serving.requests import PictureRequest
from sagediff.solver import noise_levels_of
from sagediff.waves import repeats


@dataclass(frozen=True)
class Recipe:
    """How waves are sampled: the policy of sharing, and the noise at the hand-over that belongs with it."""

    policy: SharePolicy
    handover_noise: float = 0.0


@dataclass(frozen=True)
class ModelSettings:
    """What the operator decided about sampling.

    Attributes:
        guidance_scale: where a request names none; None for the pipeline's own default.
        recipe: where a request names no guidance scale.
        guided: where it does; weights that are best without guidance may be asked for it all the same.
        encoder: what embeds prompts for grouping; None for the pipeline's own text encoder.
        across_tenants: whether sharing may cross tenants.
        micro_batch_size: most denoiser rows run at once; None for all.
    """

    recipe: Recipe
    guided: Recipe
    guidance_scale: float | None = None
    encoder: Encoder | None = None
    across_tenants: bool = False
    micro_batch_size: int | None = None


@dataclass(frozen=True)
class Job:
    """A request under way.

    Attributes:
        seed: of its noise, drawn if the request brought none.
        previews: steps after which its client wants to see how far the picture is, counted from 1.
        gone: whether its client went away.
        on_step: told (steps done, of how many).
        on_preview: told (number of the preview from 0, PIL picture).
    """

    request: PictureRequest
    seed: int
    previews: tuple[int, ...]
    gone: Callable[[], bool]
    on_step: Callable[[int, int], None]
    on_preview: Callable[[int, Any], None]


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        image: PIL.
        seed: the seed that its request brought or was given.
        evaluations: its part of the denoiser rows, a group's divided evenly.
        evaluations_alone: rows that it would have run without others, with the same guidance.
        group: a random name of its group, equal for its members and for nobody else; tells nothing of them.
        group_size: members of its group, itself included.
        shared_steps: steps that it took together with others.
    """

    image: Any
    seed: int
    evaluations: float
    evaluations_alone: float
    group: str
    group_size: int
    shared_steps: int


@dataclass(frozen=True)
class WaveResult:
    """pictures in the order of the jobs; rows run, and rows that the jobs would have run each alone."""

    pictures: list[Picture]
    evaluations: int
    evaluations_independent: int


class WaveRunner:
    """Runs waves on one pipeline, one at a time.

    Raises:
        UnsupportedPipelineError: noise at the hand-over is asked for, and the solver's noise levels are not known.
    """

    def __init__(self, pipe: Any, settings: ModelSettings) -> None:
        self.pipe, self.settings = pipe, settings
        self._takes_callback = "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters
        self._preview = previewer_of(pipe)
        try:
            noise_levels_of(pipe.scheduler)
        except UnsupportedPipelineError:
            if settings.recipe.handover_noise or settings.guided.handover_noise:
                raise
            self._fresh_noise = 0.0
        else:
            self._fresh_noise = FRESH_NOISE

    def recipe(self, request: PictureRequest) -> Recipe:
        """Which recipe a request, and with it all that are compatible, is sampled by."""
        return self.settings.recipe if request.guidance_scale is None else self.settings.guided

    def groups(self, requests: Sequence[PictureRequest]) -> list[list[int]]:
        """Compatible requests in groups; runs the text encoder where two or more may share."""
        return group_requests(
            requests,
            self.recipe(requests[0]).policy,
            self._embed,
            across_tenants=self.settings.across_tenants,
            repeats_may_share=self._fresh_noise > 0,
        )

    def run(
        self, jobs: Sequence[Job], groups: Sequence[Sequence[int]], micro_batch_size: int | None
    ) -> WaveResult:
        """Sample compatible jobs once, sharing within groups.

        Raises:
            Cancelled: every client has gone; the run ended at the step at which that was seen.
            Exception: whatever the pipeline raises.
        """
        request = jobs[0].request
        recipe = self.recipe(request)
        steps = request.num_inference_steps
        plan = SharePlan.from_groups(
            groups,
            steps,
            recipe.policy.share_ratio,
            recipe.policy.shared_guidance,
            unguided_steps=part_of_steps(recipe.policy.unguided, steps),
        )
        prompts = [job.request.prompt for job in jobs]
        repeated = repeats(prompts, plan)
        # A place for a trajectory cache: a group whose shared phase is recorded would replay it in this context.
        with shared_sampling(
            self.pipe,
            plan,
            micro_batch_size=micro_batch_size,
            fresh_noise=self._fresh_noise if any(repeated) else 0.0,
            fresh_noise_rows=repeated,
            member_noise=[job.seed for job in jobs],
            handover_noise=recipe.handover_noise if any(plan.branch_steps) else 0.0,
        ) as run:
            images = self.pipe(
                prompt=prompts,
                num_inference_steps=steps,
                generator=[torch.Generator().manual_seed(seed) for seed in noise_of(jobs, plan)],
                output_type="pil",
                **self._options(jobs),
            ).images
        # not `evaluations_independent`, which has guidance in every step: early guidance off is no merit of sharing
        alone = replace(run.plan, levels=((0, tuple(range(len(jobs)))),), replayed_steps=None)
        named = [(secrets.token_hex(6), group) for group in plan.groups]
        names = {i: (name, len(group)) for name, group in named for i in group}
        pictures = [
            Picture(
                image,
                job.seed,
                float(run.plan.prompt_evaluations[i]),
                float(alone.prompt_evaluations[i]),
                *names[i],
                plan.branch_steps[i],
            )
            for i, (job, image) in enumerate(zip(jobs, images, strict=True))
        ]
        return WaveResult(pictures, run.evaluations, alone.evaluations)

    def _options(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The pipeline's keywords that not every wave has."""
        request = jobs[0].request
        options: dict[str, Any] = {}
        guidance = self.settings.guidance_scale if request.guidance_scale is None else request.guidance_scale
        if guidance is not None:
            options["guidance_scale"] = guidance
        if request.width is not None:
            options |= {"width": request.width, "height": request.height}
        if request.negative_prompt is not None:
            options["negative_prompt"] = [job.request.negative_prompt for job in jobs]
        if self._takes_callback:
            options["callback_on_step_end"] = self._after_step(jobs)
        return options

    def _after_step(self, jobs: Sequence[Job]) -> Callable[..., dict[str, Any]]:
        done = 0

        def step_done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal done
            done += 1
            # A place for dropping the rows of the few who left; so far a run stops when all have.
            if all(job.gone() for job in jobs):
                raise Cancelled("every client of the wave went away")
            wanting = [i for i, job in enumerate(jobs) if done in job.previews and not job.gone()]
            if wanting and self._preview is not None:
                for i, image in zip(wanting, self._preview(tensors["latents"][wanting]), strict=True):
                    jobs[i].on_preview(jobs[i].previews.index(done), image)
            for job in jobs:
                job.on_step(done, job.request.num_inference_steps)
            return tensors

        return step_done

    def _embed(self, prompts: list[str]) -> npt.NDArray[np.float32]:
        return embed_prompts(prompts, self.pipe, self.settings.encoder).vectors


def noise_of(jobs: Sequence[Job], plan: SharePlan) -> list[int]:
    """The seed of each job's initial noise: that of its group's first member, by text, then by age."""
    seeds = [0] * len(jobs)
    for group in plan.groups:
        first = min(group, key=lambda i: (jobs[i].request.prompt, i))
        for i in group:
            seeds[i] = jobs[first].seed
    return seeds


def preview_steps(count: int, num_steps: int) -> tuple[int, ...]:
    """After which steps, counted from 1, up to `count` previews are shown: evenly spread, the last step left out, whose
    picture comes anyway."""
    wanted = {round((i + 1) * num_steps / (count + 1)) for i in range(count)}
    return tuple(sorted(step for step in wanted if 0 < step < num_steps))
