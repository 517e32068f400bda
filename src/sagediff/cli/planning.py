"""What `generate` and `plan` do alike: images asked for -> groups, in memory or on disk -> a costed plan."""

from __future__ import annotations

from typing import Any

from sagediff.cli.job_options import ScaleOptions
from sagediff.distributed.cluster import usable_cores
from sagediff.pipelines.content import embedding_source
from sagediff.pipelines.run_settings import RunSettings
from sagediff.plan.compatibility import copy_numbers, sharing_pools
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.printable import printable
from sagediff.progress import stage_bars
from sagediff.prompts.embeddings import text_encoder
from sagediff.prompts.image_list import ImageList
from sagediff.sampling.input_images import ImageKeywords
from sagediff.sampling.plan_prompts import default_guidance, plan_prompts
from sagediff.sampling.reading import Reading, read_prompts
from sagediff.sampling.sizes import check_sizes
from sagediff.scale.cover import CoverOptions
from sagediff.scale.disk_groups import groups_at_scale


def plan_images(
    images: ImageList,
    settings: RunSettings,
    guided: Sharing,
    scale: ScaleOptions,
    pipe: Any,
    denoiser_class: str,
) -> tuple[SharePlan, Reading]:
    """The plan of a run, and what the model's text encoders read of its prompts; no denoiser runs or need be loaded.

    Args:
        guided: how rows share that name a guidance scale.

    Raises:
        InputError: a number out of range, a size or an image that the model does not take, or a folder of --work that
            belongs to another run.
    """
    sampling = settings.sampling
    is_whole = getattr(pipe, "vae", None) is not None  # else loaded to plan only
    check_sizes(pipe, images.requests, images.where, knows_factor=is_whole)
    ImageKeywords.of(pipe).check(images.requests, {}, images.where)
    reading = read_prompts(pipe, images.prompts)
    groups = None if scale.work is None else _groups_on_disk(images, settings, scale, pipe, reading)
    guidance = sampling.guidance_scale
    plan = plan_prompts(
        images.requests,
        settings.sharing,
        pipe,
        denoiser_class,
        sampling.num_inference_steps,
        default_guidance(type(pipe)) if guidance is None else guidance,
        encoder=sampling.encoder,
        groups=groups,
        read=reading.keys,
        guided=guided,
    )
    return plan, reading


def messages(images: ImageList, plan: SharePlan, reading: Reading) -> list[str]:
    """What a user should know of a plan before its images are made, a line each."""
    words = [f"note: {note}" for note in images.notes]
    if cut := reading.warning():
        words.append(f"warning: {cut}")
    idle = sum(
        request.negative_prompt is not None and not guided
        for request, guided in zip(images.requests, plan.is_guided(), strict=True)
    )
    if idle:
        many = "1 image has a negative prompt" if idle == 1 else f"{idle} images have negative prompts"
        words.append(f"warning: {many} but no guidance, without which it changes nothing; give --guidance")
    return [printable(each) for each in words]


def _groups_on_disk(
    images: ImageList, settings: RunSettings, scale: ScaleOptions, pipe: Any, reading: Reading
) -> list[list[int]]:
    sharing = settings.sharing
    assert scale.work is not None
    pools = sharing_pools(images.requests, sharing)
    copies = None
    if not sharing.repeats_may_share:
        copies = copy_numbers(list(zip(pools, reading.keys, strict=True)))
    cover = CoverOptions(sharing.threshold, sharing.max_group_size, jobs=scale.jobs or usable_cores())
    with stage_bars() as show:
        return groups_at_scale(
            images.prompts,
            text_encoder(pipe, settings.sampling.encoder),
            scale.work,
            cover,
            source=embedding_source(settings),
            copies=copies,
            pools=pools,
            on_progress=show,
        )
