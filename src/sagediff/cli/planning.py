"""What `generate` and `plan` do alike: images asked for -> groups, in memory or on disk -> a costed plan."""

from __future__ import annotations

from typing import Any

from sagediff.cli.job_options import ScaleOptions
from sagediff.distributed.cluster import usable_cores
from sagediff.pipelines.content import embedding_source
from sagediff.pipelines.run_settings import RunSettings
from sagediff.plan.compatibility import copy_numbers, sharing_pools
from sagediff.plan.share_plan import SharePlan
from sagediff.progress import stage_bars
from sagediff.prompts.embeddings import text_encoder
from sagediff.prompts.image_list import ImageList
from sagediff.sampling.plan_prompts import default_guidance, plan_prompts
from sagediff.sampling.reading import Reading, read_prompts
from sagediff.scale.cover import CoverOptions
from sagediff.scale.disk_groups import groups_at_scale


def plan_images(
    images: ImageList, settings: RunSettings, scale: ScaleOptions, pipe: Any, denoiser_class: str
) -> tuple[SharePlan, Reading]:
    """The plan of a run, and what the model's text encoders read of its prompts; no denoiser runs or need be loaded.

    Raises:
        InputError: a number out of range, or a folder of --work that belongs to another run.
    """
    sampling = settings.sampling
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
    )
    return plan, reading


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
