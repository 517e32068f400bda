"""`SharedSampler`: prompts in, images out in the same order, in waves of whole groups."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagediff.denoiser.condition import GroupCondition, mean_condition
from sagediff.denoiser.lookup import denoiser_of, family_of
from sagediff.denoiser.micro_batch import MicroBatch, micro_batches
from sagediff.denoiser.private_names import unwrapped
from sagediff.denoiser.scheduler import noise_levels_of
from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.plan.waves import Waves, WaveTask, noise_seeds, own_seeds, repeats
from sagediff.prompts.embeddings import Encoder
from sagediff.prompts.requests import ImageRequest, as_requests
from sagediff.sampling.plan_prompts import default_guidance, plan_prompts
from sagediff.sampling.wave import run_wave

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
        sharing: how prompts share; in its place its options may be given as keywords (`threshold=0.8, ...`).
        group_condition: makes the members' conditions into one (`condition.py`); the default is their mean.
        wave_size: most prompts carried at once; a larger group still runs whole. Bounds memory for latents;
            more than 16 images, or few large ones, are decoded one by one where the autoencoder can.
        micro_batch_size: most denoiser rows run at once; bounds memory for the denoiser. "auto" measures.
        encoder: what embeds prompts for grouping; None for the pipeline's own text encoder.
        options: of `Sharing`.

    Raises:
        InputError: an option out of range, unknown, or given both ways.
        UnsupportedPipelineError: a denoiser that sharing does not know.
    """

    def __init__(
        self,
        pipe: Any,
        sharing: Sharing | None = None,
        *,
        group_condition: GroupCondition = mean_condition,
        wave_size: int = 64,
        micro_batch_size: MicroBatch = None,
        encoder: Encoder | None = None,
        **options: Any,
    ) -> None:
        self.sharing = _sharing(sharing, options)
        if wave_size < 1:
            raise InputError(f"wave_size must be at least 1, got {wave_size}")
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
        self.group_condition = group_condition
        self.wave_size = wave_size
        self.micro_batches = micro_batches(micro_batch_size)  # what they measure serves all waves

    def plan(
        self,
        prompts: Sequence[str | ImageRequest],
        num_inference_steps: int = 30,
        guidance_scale: float | None = None,
        true_cfg_scale: float = 1.0,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> SharePlan:
        """Group the prompts and plan; runs the text encoder only. The cost is exact for that guidance.

        Args:
            groups: prompt numbers, where the prompts were grouped elsewhere.
        """
        scale = default_guidance(type(self.pipe)) if guidance_scale is None else guidance_scale
        return plan_prompts(
            prompts, self.sharing, self.pipe, self.denoiser_class, num_inference_steps, scale, true_cfg_scale,
            self.encoder, groups,
        )  # fmt: skip

    def check(self, prompts: Sequence[str | ImageRequest], plan: SharePlan) -> None:
        """Refuse, before anything runs, a plan that this pipeline could not carry out to the end.

        Raises:
            InputError: a plan for another number of prompts.
            UnsupportedPipelineError: members get noise of their own, and the solver's noise levels, which that needs,
                are not known.
        """
        requests = as_requests(prompts)
        if len(requests) != plan.num_prompts:
            raise InputError(f"the plan is for {plan.num_prompts} prompts, got {len(requests)}")
        noise = self.sharing.noise(plan, repeats(requests, plan.groups))
        if any(isinstance(strength, float) and strength > 0 for strength in noise.values()):
            noise_levels_of(self.pipe.scheduler)

    def __call__(
        self,
        prompts: Sequence[str | ImageRequest],
        num_inference_steps: int = 30,
        guidance_scale: float | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> SharedResult:
        """One image per prompt. An image depends on seed, its prompt and its group, not on order or waves.

        Args:
            prompts: texts, or requests that say more than a text.
            guidance_scale: where a request names none; None takes the pipeline's own default.
            seed: every prompt's seed is derived from it, unless its request names one.
            kwargs: passed to the pipeline (`waves`).

        Raises:
            InputError: an empty prompt, a number out of range, or a keyword that the sampler sets itself.
        """
        start = time.perf_counter()
        _check_keywords(kwargs)
        requests = as_requests(prompts)
        plan = self.plan(
            requests, num_inference_steps, guidance_scale, float(kwargs.get("true_cfg_scale", 1.0))
        )
        images: list[Any] = [None] * len(requests)
        run = 0
        for wave in self.waves(requests, plan, guidance_scale, seed, **kwargs):
            run += wave.evaluations
            for index, image in zip(wave.prompts, wave.images, strict=True):
                images[index] = image
        seconds = time.perf_counter() - start
        report = plan.summary() | {
            "threshold": self.sharing.threshold,
            "evaluations_run": run,
            "seconds": seconds,
            "images_per_second": len(requests) / seconds,
        }
        seeds = noise_seeds(requests, own_seeds(requests, seed), plan.groups)
        return SharedResult(images, plan, report, seeds)

    def waves(
        self,
        prompts: Sequence[str | ImageRequest],
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
        requests = as_requests(prompts)
        self.check(requests, plan)
        _check_keywords(kwargs)
        waves = Waves(requests, plan, seed, self.wave_size, skip)
        for task in map(waves.task, range(len(waves))):
            options = {
                k: [v[i] for i in task.members] if _one_per_prompt(k, v, len(requests)) else v
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
        images, run = run_wave(
            self.pipe,
            task,
            self.sharing,
            guidance_scale=guidance_scale,
            group_condition=self.group_condition,
            micro_batch_size=self.micro_batches,
            on_step=on_step and (lambda run, tensors: on_step(len(task.members))),
            **kwargs,
        )
        return Wave(task.members, images, run.evaluations)


def _sharing(sharing: Sharing | None, options: Mapping[str, Any]) -> Sharing:
    if sharing is not None and not isinstance(sharing, Sharing):
        raise InputError(
            f"sharing must be a Sharing, got {sharing!r}; give its options by name, as threshold=0.8"
        )
    if sharing is not None and options:
        raise InputError(f"give a Sharing, or its options ({', '.join(options)}), not both")
    if unknown := sorted(set(options) - set(Sharing.__dataclass_fields__)):
        raise InputError(
            f"unknown options {', '.join(unknown)}; those of Sharing are {', '.join(Sharing.__dataclass_fields__)}"
        )
    return Sharing(**options) if sharing is None else sharing


def _one_per_prompt(name: str, value: Any, count: int) -> bool:
    """Whether a keyword holds one entry per prompt; schedules are lists too, and may be as long by chance."""
    return isinstance(value, list) and len(value) == count and name not in ("timesteps", "sigmas")


def _check_keywords(kwargs: dict[str, Any]) -> None:
    if taken := sorted(_OWN & set(kwargs)):
        raise InputError(f"{', '.join(taken)} cannot be given here: the sampler sets it")
