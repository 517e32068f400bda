"""`SharedSampler`: prompts in, images or videos out in the same order, in waves of whole groups."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from sagediff.denoiser.attention import check_perturbed_attention
from sagediff.denoiser.audio_families import NO_AUDIO
from sagediff.denoiser.condition import GroupCondition, mean_condition
from sagediff.denoiser.lookup import denoiser_of, family_of
from sagediff.denoiser.lora_adapters import LoraAdapters
from sagediff.denoiser.micro_batch import MicroBatch, micro_batches
from sagediff.denoiser.modular_call import with_plain_call
from sagediff.denoiser.private_names import lacks_ftfy, unwrapped
from sagediff.denoiser.scheduler import check_noise_source, noise_levels_of
from sagediff.errors import InputError, ModelError, UnsupportedPipelineError
from sagediff.files.lora_files import LoraSet
from sagediff.plan.compatibility import check_groups_agree
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing, for_guidance
from sagediff.plan.waves import Waves, WaveTask, repeats
from sagediff.prompts.embeddings import Encoder
from sagediff.prompts.requests import ImageRequest, as_requests
from sagediff.sampling.input_images import ImageKeywords, check_prompts_per_call
from sagediff.sampling.per_prompt import PerPrompt
from sagediff.sampling.plan_prompts import default_guidance, plan_prompts
from sagediff.sampling.reading import Reading, read_prompts
from sagediff.sampling.sizes import check_frames, check_sizes, other_size
from sagediff.sampling.strength import check_steps
from sagediff.sampling.wave import Hopeless, images_missing, run_wave

_OWN = {
    "prompt",
    "prompt_embeds",
    "generator",
    "num_inference_steps",
    "callback_on_step_end",
    "output_type",
    "return_dict",
    "num_images_per_prompt",
    "num_videos_per_prompt",
}


@dataclass(frozen=True)
class Wave:
    """Images of some whole groups.

    Attributes:
        prompts: their numbers.
        images: PIL images in that order; of a pipeline that makes videos lists of frames, PIL images too.
        evaluations: denoiser rows run.
    """

    prompts: list[int]
    images: list[Any]
    evaluations: int


@dataclass(frozen=True)
class SharedResult:
    """What a call gives.

    Attributes:
        images: PIL images in the order of the prompts; none where the pipeline makes videos.
        plan: which prompts shared which steps.
        report: `SharePlan.summary` with seconds and more.
        seeds: of each image's noise (`plan.waves.Waves.seeds`): sampled alone with it, a prompt that shared nothing
            gets the same image.
        videos: of a pipeline that makes videos, for each prompt its frames, PIL images.
    """

    images: list[Any]
    plan: SharePlan
    report: dict[str, Any]
    seeds: list[int]
    videos: list[list[Any]] = field(default_factory=list)


class SharedSampler:
    """Groups prompts, plans, and samples them on a diffusers pipeline.

    Args:
        pipe: any pipeline that `shared_sampling` supports.
        sharing: how prompts share; in its place its options may be given as keywords (`threshold=0.8, ...`).
        group_condition: makes the members' conditions into one (`condition.py`); the default is their mean.
        wave_size: most prompts carried at once; a larger group still runs whole. Bounds memory for latents, and for
            the frames of a wave's videos; more than 16 images, few large ones, and videos are decoded one by one where
            the autoencoder can.
        micro_batch_size: most denoiser rows run at once; bounds memory for the denoiser. "auto" measures.
        encoder: what embeds prompts for grouping; None for the pipeline's own text encoder.
        guided: what holds for requests that name a guidance scale in place of `sharing`, which may be for sampling
            without guidance (`for_guidance`); None: `sharing`. Both form the same groups.
        options: of `Sharing`.

    Attributes:
        makes: "images" or "videos", as the pipeline does; fps: of videos, the frames per second that it was made for.
        images: how it takes the images of requests; loras: the LoRAs that requests name, which stay loaded after
            `run`, until they are released.

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
        guided: Sharing | None = None,
        **options: Any,
    ) -> None:
        self.sharing = _sharing(sharing, options)
        self.guided = self.sharing if guided is None else guided
        if for_guidance(asdict(self.guided)) != for_guidance(asdict(self.sharing)):
            raise InputError(
                "guided must equal sharing but for the options that are for sampling without guidance"
            )
        if wave_size < 1:
            raise InputError(f"wave_size must be at least 1, got {wave_size}")
        if not callable(group_condition):
            raise InputError(f"group_condition must be a callable, got {group_condition!r}")
        pipe = with_plain_call(pipe)
        check_prompts_per_call(pipe)
        if lacks_ftfy(pipe):
            raise InputError(f"{type(pipe).__name__} needs the package ftfy: pip install 'sagediff[video]'")
        denoiser = unwrapped(denoiser_of(pipe))
        if "prompt" not in inspect.signature(type(pipe).__call__).parameters:
            raise UnsupportedPipelineError(
                f"SharedSampler gives prompts, and {type(pipe).__name__} takes none (it takes embeddings that "
                f"another pipeline makes): take a pipeline that combines both, or run this one inside "
                f"shared_sampling"
            )
        self.pipe, self.encoder = pipe, encoder
        self.denoiser_class = type(denoiser).__name__
        family = family_of(denoiser, pipe)
        if family.makes == "audio":
            raise UnsupportedPipelineError(
                f"SharedSampler makes images and videos, and {type(pipe).__name__} makes audio: {NO_AUDIO}"
            )
        self.makes, self.fps = family.makes, family.fps
        self.images = ImageKeywords.of(pipe)
        self.loras = LoraAdapters(pipe)
        self.group_condition = group_condition
        self.wave_size = wave_size
        self.micro_batches = micro_batches(micro_batch_size)  # what they measure serves all waves

    def plan(
        self,
        prompts: Iterable[str | ImageRequest],
        num_inference_steps: int = 30,
        guidance_scale: float | None = None,
        true_cfg_scale: float | None = None,
        groups: Sequence[Sequence[int]] | None = None,
        has_negative: bool | None = None,
        starts: Sequence[Hashable] | None = None,
        read: Sequence[Hashable] | None = None,
        strength: float | None = None,
        keywords: Mapping[str, Any] = MappingProxyType({}),
    ) -> SharePlan:
        """Group the prompts and plan; runs the text encoder only. The cost is exact for that guidance, as long as the
        pipeline guides alike at all steps, and else an upper bound.

        Args:
            prompts: texts or requests, in any list, column or generator.
            true_cfg_scale, has_negative, starts, read, strength, keywords: as `plan_prompts` has them.
            groups: prompt numbers, where the prompts were grouped elsewhere.
        """
        scale = default_guidance(type(self.pipe)) if guidance_scale is None else guidance_scale
        return plan_prompts(
            prompts, self.sharing, self.pipe, self.denoiser_class, num_inference_steps, scale, true_cfg_scale,
            self.encoder, groups, has_negative, starts, read, self.guided, strength, keywords=keywords,
        )  # fmt: skip

    def read(self, prompts: Iterable[str | ImageRequest], max_sequence_length: int | None = None) -> Reading:
        """What the pipeline's text encoders read of the prompts; runs their tokenizers only."""
        return read_prompts(self.pipe, [each.prompt for each in as_requests(prompts)], max_sequence_length)

    def check(
        self,
        prompts: Iterable[str | ImageRequest],
        plan: SharePlan,
        read: Sequence[Hashable] | None = None,
        num_inference_steps: int | None = None,
        keywords: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Refuse, before anything runs, a plan that this pipeline could not carry out to the end.

        Args:
            read: the keys of what was `read` of the prompts; None reads them here.
            num_inference_steps: of the pipeline's calls; None: the plan's.
            keywords: of the pipeline's calls, as they are given for all prompts.

        Raises:
            InputError: a plan for other prompts or steps, or a negative prompt, an image, a strength, a LoRA or a size
                that the pipeline does not take.
            UnsupportedPipelineError: the solver's noise comes from no prompt's seed; or members get noise of their own,
                and its noise levels, which that needs, are not known.
        """
        check_noise_source(self.pipe.scheduler)
        requests = as_requests(prompts)
        if len(requests) != plan.num_prompts:
            raise InputError(f"the plan is for {plan.num_prompts} prompts, got {len(requests)}")
        parameters = inspect.signature(type(self.pipe).__call__).parameters
        if "negative_prompt" not in parameters and any(each.negative_prompt is not None for each in requests):
            raise InputError(f"{type(self.pipe).__name__} takes no negative prompts; leave them out")
        self.images.check(requests, keywords)
        for chosen in _lora_sets(requests):
            self.loras.check(chosen)
        check_groups_agree(requests, plan.groups, self.images.calls(requests))
        check_steps(self.pipe, requests, plan.num_steps, num_inference_steps, keywords.get("strength"))
        read = self.read(requests).keys if read is None else read
        check_sizes(self.pipe, requests)
        check_frames(self.pipe, keywords.get("num_frames", keywords.get("frames")))
        again = repeats(requests, plan.groups, read)
        for sharing in {self.sharing_of(request) for request in requests}:
            noise = sharing.noise(plan, again)
            if any(isinstance(strength, float) and strength > 0 for strength in noise.values()):
                noise_levels_of(self.pipe.scheduler)

    def sharing_of(self, request: ImageRequest) -> Sharing:
        """How a request, and with it all that may run in one call with it, shares."""
        return self.sharing if request.guidance_scale is None else self.guided

    def __call__(
        self,
        prompts: Iterable[str | ImageRequest],
        num_inference_steps: int = 30,
        guidance_scale: float | None = None,
        seed: int = 0,
        *,
        on_step: Callable[[int], None] | None = None,
        **kwargs: Any,
    ) -> SharedResult:
        """One image (or video) per prompt. It depends on seed, its prompt and its group, not on order or waves.

        Args:
            prompts: texts, or requests that say more than a text, in any list, column or generator.
            guidance_scale: where a request names none; None takes the pipeline's own default.
            seed: every prompt's seed is derived from it, unless its request names one.
            on_step: called after every step with the number of prompts that took it.
            kwargs: passed to the pipeline (`waves`).

        Raises:
            InputError: an empty prompt, a number out of range, or a keyword that the sampler sets itself, that the
                pipeline does not take, or of which it is not known whether it holds something for each prompt.
            ModelError: the model gave numbers that are not finite; it holds the images that could be made.
        """
        start = time.perf_counter()
        requests = as_requests(prompts)
        per_prompt = self._per_prompt(kwargs, len(requests))
        self.images.check(requests, kwargs)
        scale, strength = (kwargs.get(name) for name in ("true_cfg_scale", "strength"))
        reading = self.read(requests, kwargs.get("max_sequence_length"))
        plan = self.plan(
            requests,
            num_inference_steps,
            guidance_scale,
            None if scale is None else float(scale),
            has_negative=_has_negative(self.pipe, kwargs),
            starts=per_prompt.starts(),
            read=reading.keys,
            strength=None if strength is None else float(strength),
            keywords=kwargs,
        )
        images: list[Any] = [None] * len(requests)
        run = 0
        self.check(requests, plan, reading.keys, num_inference_steps, kwargs)
        waves = self.waves_of(requests, plan, seed, reading.keys, num_inference_steps)
        try:
            for wave in self._waves(waves, requests, per_prompt, guidance_scale, on_step):
                run += wave.evaluations
                for index, image in zip(wave.prompts, wave.images, strict=True):
                    images[index] = image
        except ModelError as error:
            raise ModelError(str(error), error.bad, images) from error
        seconds = time.perf_counter() - start
        report = plan.summary() | {
            "threshold": self.sharing.threshold,
            "evaluations_run": run,
            "cut_prompts": len(reading.cut),
            "seconds": seconds,
            "images_per_second": len(requests) / seconds,
        }
        seeds = waves.seeds(self.sharing_of)
        if self.makes == "videos":
            return SharedResult([], plan, report, seeds, images)
        return SharedResult(images, plan, report, seeds)

    def waves(
        self,
        prompts: Iterable[str | ImageRequest],
        plan: SharePlan,
        guidance_scale: float | None = None,
        seed: int = 0,
        *,
        skip: Sequence[int] = (),
        num_inference_steps: int | None = None,
        on_step: Callable[[int], None] | None = None,
        **kwargs: Any,
    ) -> Iterator[Wave]:
        """Sample wave by wave, so that a caller can save what is finished.

        Args:
            num_inference_steps: of the pipeline's calls, where a strength below 1 leaves fewer, which the plan has;
                None: the plan's.
            skip: prompts that are finished already; a wave all of whose members are is left out, the others run whole,
                so that their images do not differ even by rounding from those of a run without `skip`.
            on_step: called after every step with the number of prompts that took it.
            kwargs: passed to the pipeline; what is given for each prompt (negative prompts, say, in a list, an array
                or a tensor) is cut to the wave's.  `per_prompt.PER_PROMPT` says which those are.

        Raises:
            InputError: as `__call__`.
            ModelError: some images were not finite; after the last wave, or where none of the first two has any image.
        """
        requests = as_requests(prompts)
        per_prompt = self._per_prompt(kwargs, len(requests))
        read = self.read(requests, kwargs.get("max_sequence_length")).keys
        self.check(requests, plan, read, num_inference_steps, kwargs)
        waves = self.waves_of(requests, plan, seed, read, num_inference_steps).without(skip)
        yield from self._waves(waves, requests, per_prompt, guidance_scale, on_step)

    def waves_of(
        self,
        requests: Sequence[ImageRequest],
        plan: SharePlan,
        seed: int,
        read: Sequence[Hashable] | None = None,
        num_inference_steps: int | None = None,
    ) -> Waves:
        """The plan's waves, as this pipeline can run them; the arguments are those of `check`."""
        calls = self.images.calls(requests)
        return Waves(requests, plan, seed, self.wave_size, read, calls, num_inference_steps)

    def _waves(
        self,
        waves: Waves,
        requests: Sequence[ImageRequest],
        per_prompt: PerPrompt,
        guidance_scale: float | None,
        on_step: Callable[[int], None] | None,
    ) -> Iterator[Wave]:
        try:
            for chosen in _lora_sets(requests):
                self.loras.load(chosen)
            yield from self._run_all(waves, requests, per_prompt, guidance_scale, on_step)
        finally:
            self.loras.release()

    def _run_all(
        self,
        waves: Waves,
        requests: Sequence[ImageRequest],
        per_prompt: PerPrompt,
        guidance_scale: float | None,
        on_step: Callable[[int], None] | None,
    ) -> Iterator[Wave]:
        bad: list[int] = []
        is_hopeless = Hopeless()
        for task in map(waves.task, range(len(waves))):
            try:
                wave = self._run(task, guidance_scale, on_step, per_prompt.of(task.members))
                is_hopeless(len(wave.images))
                yield wave
            except ModelError as error:
                bad += [task.members[row] for row in error.bad]
                made = {
                    i: image
                    for i, image in zip(task.members, error.images or (), strict=False)
                    if image is not None
                }
                if is_hopeless(len(made)):
                    break
                if made:
                    yield Wave(list(made), list(made.values()), task.plan.evaluations)
        if bad:
            raise images_missing({i: requests[i].prompt for i in sorted(bad)}, bad)

    def run(
        self,
        task: WaveTask,
        guidance_scale: float | None = None,
        on_step: Callable[[int], None] | None = None,
        **kwargs: Any,
    ) -> Wave:
        """Sample one wave; the arguments are those of `waves`, for the members of the wave in their order.

        Raises:
            ModelError: some images are not finite; it holds the others, in the order of the wave's members.
        """
        count = len(task.members)
        return self._run(task, guidance_scale, on_step, self._per_prompt(kwargs, count).of(range(count)))

    def _run(
        self,
        task: WaveTask,
        guidance_scale: float | None,
        on_step: Callable[[int], None] | None,
        options: Mapping[str, Any],
    ) -> Wave:
        with self.loras.using(task.requests[0].lora):
            images, run = run_wave(
                self.pipe,
                task,
                self.sharing_of(task.requests[0]),
                guidance_scale=guidance_scale,
                group_condition=self.group_condition,
                micro_batch_size=self.micro_batches,
                on_step=on_step and (lambda run, tensors: on_step(len(task.members))),
                **options,
            )
        for request, image in zip(task.requests, images, strict=True):
            if words := other_size((request.width, request.height), image):
                raise InputError(words)
        return Wave(task.members, images, run.evaluations)

    def _per_prompt(self, kwargs: Mapping[str, Any], count: int) -> PerPrompt:
        if taken := sorted(_OWN & set(kwargs)):
            raise InputError(f"{', '.join(taken)} cannot be given here: the sampler sets it")
        leaves_out = any(
            each.shared_guidance == 1.0 or each.unguided > 0 for each in (self.sharing, self.guided)
        )
        check_perturbed_attention(self.pipe, kwargs, leaves_out)
        return PerPrompt(self.pipe, kwargs, count)


def _lora_sets(requests: Iterable[ImageRequest]) -> Iterable[LoraSet]:
    """The sets of LoRAs that requests name, each once."""
    return dict.fromkeys(request.lora for request in requests if request.lora is not None)


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


def _has_negative(pipe: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the pipeline takes these keywords for negative prompts: a text, or embeddings with all that belongs to
    them."""
    if kwargs.get("negative_prompt") is not None:
        return True
    parameters = inspect.signature(type(pipe).__call__).parameters
    wanted = {"negative_prompt_embeds", "negative_pooled_prompt_embeds"} & set(parameters)
    return bool(wanted) and all(kwargs.get(name) is not None for name in wanted)
