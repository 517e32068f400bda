"""`run_wave`: the one way to run a wave: noise, sharing, the pipeline's call and decoding put together.

The sampler, the server, Ray workers, tuning, benches and validation all run waves by it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from sagediff.denoiser.condition import GroupCondition, mean_condition
from sagediff.denoiser.lookup import denoiser_of, family_of
from sagediff.denoiser.micro_batch import MicroBatch
from sagediff.errors import InputError, ModelError
from sagediff.files.digest import number_of
from sagediff.plan.sharing import Sharing
from sagediff.plan.waves import WaveTask
from sagediff.sampling.context import shared_sampling
from sagediff.sampling.decoding import decoded_rows, decoding_in_parts
from sagediff.sampling.input_images import ImageKeywords
from sagediff.sampling.plan_prompts import takes_guidance
from sagediff.sampling.record_replay import Record
from sagediff.sampling.run import SharedRun
from sagediff.sampling.trajectory import Trajectory

# Pipelines that encode their default negative prompt once, and then cannot go on with more prompts than one
_NEGATIVE_EACH = frozenset({"LongCatImagePipeline"})

OnStep = Callable[[SharedRun, Mapping[str, Any]], None]
"""Told after each step: the run, and what the pipeline gives its callbacks (`latents`)."""


def run_wave(
    pipe: Any,
    task: WaveTask,
    sharing: Sharing,
    *,
    guidance_scale: float | None = None,
    group_condition: GroupCondition = mean_condition,
    micro_batch_size: MicroBatch = None,
    record: Record = (),
    replay: Mapping[int, Trajectory] | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> tuple[list[Any], SharedRun]:
    """Sample one wave.

    Args:
        guidance_scale: where the requests name none; None for the pipeline's own.
        group_condition, micro_batch_size, record, replay: as `shared_sampling` takes them.
        on_step: called where the pipeline has such a callback.
        options: further keywords of the pipeline, as it takes them for the members.

    Returns:
        PIL images, or lists of frames where the pipeline makes videos, in the order of the task's requests; and the
        finished run.

    Raises:
        InputError: an option that the requests name as well.
        StoppedError: every member was dropped on the way.
        ModelError: latents or images of some members are not finite; it holds the images of the others.
        Exception: whatever the pipeline raises.
    """
    given = _request_options(pipe, task, guidance_scale)
    if "width" in given and "max_area" in inspect.signature(type(pipe).__call__).parameters:
        options.setdefault(
            "max_area", given["width"] * given["height"]
        )  # else FLUX Kontext has one of its own
    if both := sorted(set(given) & set(options)):
        raise InputError(f"{', '.join(both)}: given for all images, and by a request too; give it one way")
    if type(pipe).__name__ in _NEGATIVE_EACH and "negative_prompt" not in given:
        options.setdefault("negative_prompt", [""] * len(task.requests))
    makes_videos = family_of(denoiser_of(pipe), pipe).makes == "videos"
    with (
        decoding_in_parts(pipe),
        decoded_rows(pipe) as decoded,
        shared_sampling(
            pipe,
            task.plan,
            group_condition=group_condition,
            micro_batch_size=micro_batch_size,
            member_noise=task.own_seeds,
            record=record,
            replay=replay,
            **sharing.noise(task.plan, task.repeats),
        ) as run,
    ):
        if on_step is not None and takes_callback(pipe):
            options["callback_on_step_end"] = _callback(on_step, run)
        with _global_noise(task) if makes_videos else nullcontext():
            output = pipe(
                prompt=[request.prompt for request in task.requests],
                num_inference_steps=task.num_inference_steps or task.plan.num_steps,
                generator=[torch.Generator().manual_seed(seed) for seed in task.noise_seeds],
                output_type="pil",
                **given,
                **options,
            )
    images = list(_made(output))
    bad = sorted((run.not_finite | decoded.not_finite(len(images))) - run.dropped)
    if bad:
        left = [None if row in bad else image for row, image in enumerate(images)]
        prompts = {task.members[row]: task.requests[row].prompt for row in bad}
        raise images_missing(prompts, bad, left)
    return images, run


class Hopeless:
    """Whether a run is to be given up: its first waves, two of them, have no image that is finite, so that most likely
    no other would have."""

    def __init__(self) -> None:
        self._made = self._empty = 0

    def __call__(self, images: int) -> bool:
        """Told after each wave how many images it has."""
        self._made += images
        self._empty += images == 0
        return not self._made and self._empty >= 2


def images_missing(
    prompts: Mapping[int, str], bad: Sequence[int], images: Sequence[Any] | None = None
) -> ModelError:
    """The error that names prompts, by number and text, whose images are none.

    Args:
        bad, images: as `ModelError` has them.
    """
    named = ", ".join(f"{number} ({shortened(text)})" for number, text in list(prompts.items())[:3])
    more = f" and {len(prompts) - 3} more" if len(prompts) > 3 else ""
    return ModelError(
        f"the model gave numbers that are not finite (NaN or infinite), so there is no image of prompt {named}{more}: "
        f"look at the weights and LoRA files, and where they are in float16 try bfloat16 or float32",
        bad,
        images,
    )


def shortened(text: str, most: int = 60) -> str:
    """A text for a message: quoted, on one line, not too long."""
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def takes_callback(pipe: Any) -> bool:
    """Whether a pipeline can be asked to tell of its steps."""
    return "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters


def _made(output: Any) -> Any:
    """The images or videos in a pipeline's output, by any of the names that pipelines have for them."""
    return next(
        made for name in ("images", "frames", "image") if (made := getattr(output, name, None)) is not None
    )


def _request_options(pipe: Any, task: WaveTask, guidance_scale: float | None) -> dict[str, Any]:
    """The pipeline's keywords that the requests decide; what is not per request is equal in a wave."""
    first = task.requests[0]
    scale = guidance_scale if first.guidance_scale is None else first.guidance_scale
    options: dict[str, Any] = {}
    if scale is not None and takes_guidance(pipe):
        options["guidance_scale"] = scale
    if first.images or first.strength is not None:
        options |= ImageKeywords.of(pipe).of_wave(task.requests)
    if first.width is not None:
        options |= {"width": first.width, "height": first.height}
    if first.negative_prompt is not None:
        options["negative_prompt"] = [request.negative_prompt for request in task.requests]
    return options


@contextmanager
def _global_noise(task: WaveTask) -> Iterator[None]:
    """Inside, torch's own generators begin from the wave's seeds; then they are as they were.

    Autoencoders of videos may draw from them (LTX 0.9.1's decoder does): the same seeds should give the same clips.
    """
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(number_of(repr(task.noise_seeds)) >> 1)
        yield


def _callback(on_step: OnStep, run: SharedRun) -> Callable[..., dict[str, Any]]:
    def step_done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(run, tensors)
        return tensors

    return step_done
