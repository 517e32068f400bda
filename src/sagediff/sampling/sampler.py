"""`SharedSampler`: prompts in, images out in the same order, in waves of whole groups."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sagediff.denoiser.condition import GroupCondition, mean_condition
from sagediff.denoiser.lookup import denoiser_of, family_of
from sagediff.denoiser.micro_batch import MicroBatch, micro_batches
from sagediff.denoiser.private_names import unwrapped
from sagediff.denoiser.scheduler import noise_levels_of
from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.plan.ladder import Parting
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import SharePolicy
from sagediff.plan.waves import Waves, WaveTask, noise_seeds, repeats
from sagediff.prompts.embeddings import Encoder
from sagediff.sampling.context import shared_sampling
from sagediff.sampling.decoding import decoding_in_parts
from sagediff.sampling.plan_prompts import check_prompts, default_guidance, plan_prompts

FRESH_NOISE = 0.75  # the strongest measured, and it cost nothing: benchmarks/fresh_noise.py
_OWN = {
    "prompt",
    "generator",
    "num_inference_steps",
    "callback_on_step_end",
    "output_type",
    "num_images_per_prompt",
}


@dataclass(frozen=True)
class Wave:
    """Images of some whole groups: prompt numbers, PIL images in that order, denoiser rows run."""

    prompts: list[int]
    images: list[Any]
    evaluations: int


@dataclass(frozen=True)
class SharedResult:
    """images: PIL images in the order of the prompts; report: `SharePlan.summary` with seconds and more."""

    images: list[Any]
    plan: SharePlan
    report: dict[str, Any]
    seeds: list[int]


class SharedSampler:
    """Groups prompts, plans, and samples them on a diffusers pipeline.

    Args:
        pipe: any pipeline that `shared_sampling` supports.
        threshold: least cosine between any two members of a group. Higher: fewer shared steps, safer images.
        share_ratio: part of the steps that a group takes together, in [0, 1]. Higher: cheaper, less faithful.
        max_group_size: most members of a group.
        shared_guidance: guidance scale while sharing; at 1.0 (default) the negative rows are not run, None
            takes the pipeline's. Only nodes of two or more members are touched.
        unguided: part of the steps, the first ones, that run without guidance for every prompt, shared or not
            (limited-interval guidance, arXiv 2404.07724): fewer evaluations.
        group_condition: makes the members' conditions into one (`condition.py`); the default is their mean.
        wave_size: most prompts carried at once; a larger group still runs whole. Bounds memory for latents;
            more than 16 images, or few large ones, are decoded one by one where the autoencoder can.
        micro_batch_size: most denoiser rows run at once; bounds memory for the denoiser. "auto" measures.
        fresh_noise: part of the noise that members with equal prompts get anew at the branch point, so that
            they do not come out identical; 0 lets them.
        handover_noise: part of what is not yet the member's own image that is drawn anew after its first step
            past the branch point (`shared_sampling`); 0 (default) leaves it.
        encoder: what embeds prompts for grouping; None for the pipeline's own text encoder.
        rungs: further (threshold, share ratio) pairs, both growing: closer prompts stay together longer.
        parting: how, with rungs: "tree" or "together" (`SharePolicy`).

    Raises:
        InputError: an option out of range. UnsupportedPipelineError: a denoiser that sharing does not know.
    """

    def __init__(
        self,
        pipe: Any,
        threshold: float = 0.8,
        share_ratio: float = 0.4,
        max_group_size: int = 8,
        *,
        shared_guidance: float | None = 1.0,
        unguided: float = 0.0,
        group_condition: GroupCondition = mean_condition,
        wave_size: int = 64,
        micro_batch_size: MicroBatch = None,
        fresh_noise: float = FRESH_NOISE,
        handover_noise: float = 0.0,
        encoder: Encoder | None = None,
        rungs: Sequence[tuple[float, float]] = (),
        parting: Parting = "tree",
    ) -> None:
        self.policy = SharePolicy(
            threshold, share_ratio, max_group_size, shared_guidance, unguided, tuple(rungs), parting
        )
        if wave_size < 1:
            raise InputError(f"wave_size must be at least 1, got {wave_size}")
        for name, strength in (("fresh_noise", fresh_noise), ("handover_noise", handover_noise)):
            if not 0 <= strength <= 1:
                raise InputError(f"{name} must lie in [0, 1], got {strength}")
        if not callable(group_condition):
            raise InputError(f"group_condition must be a callable, got {group_condition!r}")
        denoiser = unwrapped(denoiser_of(pipe))
        if family_of(denoiser).makes != "images":
            raise UnsupportedPipelineError(
                f"SharedSampler makes images, and {type(pipe).__name__} makes videos: group and plan yourself "
                f"and run the pipeline inside shared_sampling"
            )
        if "prompt" not in inspect.signature(type(pipe).__call__).parameters:
            raise UnsupportedPipelineError(
                f"SharedSampler gives prompts, and {type(pipe).__name__} takes none (it takes embeddings that "
                f"another pipeline makes): take a pipeline that combines both, or run this one inside "
                f"shared_sampling"
            )
        self.pipe, self.encoder = pipe, encoder
        self.denoiser_class = type(denoiser).__name__
        self.group_condition, self.fresh_noise = group_condition, fresh_noise
        self.handover_noise = handover_noise
        self.wave_size = wave_size
        self.micro_batches = micro_batches(micro_batch_size)  # what they measure serves all waves

    def plan(
        self,
        prompts: Sequence[str],
        num_inference_steps: int = 30,
        guidance_scale: float | None = None,
        true_cfg_scale: float = 1.0,
    ) -> SharePlan:
        """Group the prompts and plan; runs the text encoder only. The cost is exact for that guidance."""
        scale = default_guidance(type(self.pipe)) if guidance_scale is None else guidance_scale
        return plan_prompts(
            prompts, self.policy, self.pipe, self.denoiser_class, num_inference_steps, scale, true_cfg_scale,
            self.encoder,
        )  # fmt: skip

    def check(self, prompts: Sequence[str], plan: SharePlan) -> None:
        """Refuse, before anything runs, a plan that this pipeline could not carry out to the end.

        Raises:
            InputError: a plan for another number of prompts.
            UnsupportedPipelineError: equal prompts share, or there is noise at the hand-over, and the solver's noise
                levels, which that needs, are not known.
        """
        check_prompts(prompts)
        if len(prompts) != plan.num_prompts:
            raise InputError(f"the plan is for {plan.num_prompts} prompts, got {len(prompts)}")
        hands_over = self.handover_noise > 0 and any(plan.branch_steps)
        if hands_over or (self.fresh_noise > 0 and any(repeats(prompts, plan))):
            noise_levels_of(self.pipe.scheduler)

    def __call__(
        self,
        prompts: Sequence[str],
        num_inference_steps: int = 30,
        guidance_scale: float | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> SharedResult:
        """One image per prompt. An image depends on seed, its prompt and its group, not on order or waves.

        Args:
            guidance_scale: None takes the pipeline's own default.
            kwargs: passed to the pipeline (`waves`).

        Raises:
            InputError: an empty prompt, a number out of range, or a keyword that the sampler sets itself.
        """
        start = time.perf_counter()
        _check_keywords(kwargs)
        plan = self.plan(
            prompts, num_inference_steps, guidance_scale, float(kwargs.get("true_cfg_scale", 1.0))
        )
        images: list[Any] = [None] * len(prompts)
        run = 0
        for wave in self.waves(prompts, plan, guidance_scale, seed, **kwargs):
            run += wave.evaluations
            for index, image in zip(wave.prompts, wave.images, strict=True):
                images[index] = image
        seconds = time.perf_counter() - start
        report = plan.summary() | {
            "threshold": self.policy.threshold,
            "evaluations_run": run,
            "seconds": seconds,
            "images_per_second": len(prompts) / seconds,
        }
        return SharedResult(images, plan, report, noise_seeds(prompts, plan, seed))

    def waves(
        self,
        prompts: Sequence[str],
        plan: SharePlan,
        guidance_scale: float | None = None,
        seed: int = 0,
        *,
        skip: Sequence[int] = (),
        on_step: Callable[[int], None] | None = None,
        **kwargs: Any,
    ) -> Iterator[Wave]:
        """Sample wave by wave, so that a caller can save what is finished.

        Args:
            skip: prompts that are finished already; a group all of whose members are is left out.
            on_step: called after every step with the number of prompts that took it.
            kwargs: passed to the pipeline; a list with one entry per prompt (negative prompts, say) is cut to
                the wave's.
        """
        self.check(prompts, plan)
        _check_keywords(kwargs)
        waves = Waves(prompts, plan, seed, self.wave_size, skip)
        for task in map(waves.task, range(len(waves))):
            options = {
                k: [v[i] for i in task.members] if _one_a_prompt(k, v, len(prompts)) else v
                for k, v in kwargs.items()
            }
            yield self.run(task, guidance_scale, on_step, **options)

    def run(
        self,
        task: WaveTask,
        guidance_scale: float | None = None,
        on_step: Callable[[int], None] | None = None,
        **kwargs: Any,
    ) -> Wave:
        """Sample one wave; the arguments are those of `waves`, but a list has one entry per member of the wave."""
        _check_keywords(kwargs)
        if guidance_scale is not None:
            kwargs["guidance_scale"] = guidance_scale
        if on_step is not None:
            kwargs["callback_on_step_end"] = _reporter(on_step, len(task.members))
        with (
            decoding_in_parts(self.pipe),
            shared_sampling(
                self.pipe,
                task.plan,
                group_condition=self.group_condition,
                micro_batch_size=self.micro_batches,
                fresh_noise=self.fresh_noise if any(task.repeats) else 0.0,
                fresh_noise_rows=task.repeats,
                member_noise=task.own_seeds,
                handover_noise=self.handover_noise,
            ) as run,
        ):
            images = self.pipe(
                prompt=task.prompts,
                num_inference_steps=task.plan.num_steps,
                generator=[torch.Generator().manual_seed(seed) for seed in task.noise_seeds],
                output_type="pil",
                **kwargs,
            ).images
        return Wave(task.members, list(images), run.evaluations)


def _reporter(on_step: Callable[[int], None], count: int) -> Callable[..., dict[str, Any]]:
    def step_done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(count)
        return tensors

    return step_done


def _one_a_prompt(name: str, value: Any, count: int) -> bool:
    """Whether a keyword holds one entry per prompt; schedules are lists too, and may be as long by chance."""
    return isinstance(value, list) and len(value) == count and name not in ("timesteps", "sigmas")


def _check_keywords(kwargs: dict[str, Any]) -> None:
    if taken := sorted(_OWN & set(kwargs)):
        raise InputError(f"{', '.join(taken)} cannot be given here: the sampler sets it")
