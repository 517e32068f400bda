"""What `generate` and `plan` do alike: images asked for -> groups, in memory or on disk -> a costed plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sagediff.cli.job_options import ScaleOptions
from sagediff.cli.telling.thresholds import MOST_PROMPTS, AtThreshold, hint
from sagediff.cli.telling.told_groups import group_rows
from sagediff.distributed.cluster import usable_cores
from sagediff.pipelines.content import embedding_source
from sagediff.pipelines.run_settings import RunSettings
from sagediff.plan.compatibility import copy_numbers, sharing_pools
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.printable import printable
from sagediff.progress import stage_bars
from sagediff.prompts.embeddings import embed_prompts, text_encoder
from sagediff.prompts.image_list import ImageList
from sagediff.sampling.input_images import ImageKeywords
from sagediff.sampling.plan_prompts import default_guidance, plan_prompts
from sagediff.sampling.reading import Reading, read_prompts
from sagediff.sampling.sizes import check_sizes
from sagediff.scale.cover import CoverOptions
from sagediff.scale.disk_groups import groups_at_scale


@dataclass(frozen=True)
class PlannedImages:
    """A plan of images, and what it was made of.

    Attributes:
        reading: what the model's text encoders read of the prompts.
        vectors: of the prompts, (N, D) of unit length; None where they are on disk.
        at: the plan of the first so many images at another threshold, from the same vectors.
    """

    plan: SharePlan
    reading: Reading
    vectors: npt.NDArray[np.float32] | None
    at: Callable[[float, int], SharePlan] | None

    def curve(self, thresholds: Sequence[float]) -> list[AtThreshold]:
        """The figures at each; none where there are no vectors."""
        return [figures for each in thresholds if (figures := self.figures_at(each)) is not None]

    def figures_at(self, threshold: float) -> AtThreshold | None:
        """Of the first `MOST_PROMPTS` prompts; None where there are no vectors."""
        if self.at is None:
            return None
        return AtThreshold.of(threshold, self.at(threshold, MOST_PROMPTS))


def plan_images(
    images: ImageList,
    settings: RunSettings,
    guided: Sharing,
    scale: ScaleOptions,
    pipe: Any,
    denoiser_class: str,
) -> PlannedImages:
    """The plan of a run; no denoiser runs or need be loaded.

    Args:
        guided: how rows share that name a guidance scale.

    Raises:
        InputError: a number out of range, a size or an image that the model does not take, or a folder of --work that
            belongs to another run.
    """
    sampling, sharing = settings.sampling, settings.sharing
    is_whole = getattr(pipe, "vae", None) is not None  # else loaded to plan only
    check_sizes(pipe, images.requests, images.where, knows_factor=is_whole)
    ImageKeywords.of(pipe).check(images.requests, {}, images.where)
    reading = read_prompts(pipe, images.prompts)
    guidance = default_guidance(type(pipe)) if sampling.guidance_scale is None else sampling.guidance_scale

    def planned(
        used: Sharing,
        count: int | None,
        vectors: npt.NDArray[np.float32] | None,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> SharePlan:
        return plan_prompts(
            images.requests[:count],
            used,
            pipe,
            denoiser_class,
            sampling.num_inference_steps,
            guidance,
            groups=groups,
            read=reading.keys[:count],
            guided=guided,
            vectors=None if vectors is None else vectors[:count],
        )

    if scale.work is not None:
        groups = _groups_on_disk(images, settings, scale, pipe, reading)
        return PlannedImages(planned(sharing, None, None, groups), reading, None, None)
    vectors = embed_prompts(images.prompts, pipe, sampling.encoder).vectors

    def at(threshold: float, most: int) -> SharePlan:
        return planned(replace(sharing, threshold=threshold, rungs=()), most, vectors)

    return PlannedImages(planned(sharing, None, vectors), reading, vectors, at)


def advice(planned: PlannedImages, prompts: Sequence[str], threshold: float) -> list[tuple[str, str]]:
    """Groups that are worth a look, and a word where sharing found little; rows of a table."""
    rows = group_rows(planned.plan, prompts, planned.vectors)
    used = AtThreshold.of(threshold, planned.plan)
    if planned.at is not None and used.num_prompts > MOST_PROMPTS:
        used = AtThreshold.of(threshold, planned.at(threshold, MOST_PROMPTS))
    if words := hint(used, planned.figures_at):
        rows.append(("hint", words))
    return rows


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
