"""What `generate` and `plan` are asked, checked as far as can be before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sagediff.cli.early_checks import check_row_loras, check_settings, check_work
from sagediff.pipelines.run_settings import ModelOptions, RunSettings, SamplingOptions, resolve
from sagediff.plan.sharing import Sharing
from sagediff.prompts.image_list import ImageList


def asked_run(
    images: ImageList,
    model: ModelOptions,
    sampling: SamplingOptions,
    given: Mapping[str, Any],
    policy: Path | None,
    work: Path | None,
) -> tuple[ImageList, RunSettings, Sharing]:
    """The images, each with the LoRAs that it does not have from the run; the run's settings; and how rows share
    that name a guidance scale.

    Args:
        given: options of sharing that the command line names.
        work: the folder to plan in.

    Raises:
        InputError: settings that cannot be, a row's LoRA that is none, or a folder that cannot be planned in.
    """
    settings = resolve(model, sampling, given, policy, cautious=True)
    check_settings(settings)
    check_row_loras(images, settings.model)
    images = images.beside_own(settings.model.loras())
    check_work(work)
    return images, settings, guided_sharing(images, settings, model, sampling, given, policy)


def guided_sharing(
    images: ImageList,
    settings: RunSettings,
    model: ModelOptions,
    sampling: SamplingOptions,
    given: Mapping[str, Any],
    policy: Path | None,
) -> Sharing:
    """How rows share that name a guidance scale: as all would if the run named one; the settings' sharing without any.

    The arguments behind the first two are those of `resolve`, which the settings came from.
    """
    scales = (request.guidance_scale for request in images.requests)
    scale = next((scale for scale in scales if scale is not None), None)
    if scale is None:
        return settings.sharing
    return resolve(model, replace(sampling, guidance_scale=scale), given, policy, cautious=True).sharing
