"""LoRAs that rows name: looked at and loaded before any image is made, with the row in every message."""

from __future__ import annotations

from collections.abc import Callable

from sagediff.denoiser.lora_adapters import check_lora_weights
from sagediff.errors import InputError
from sagediff.files.lora_files import LoraSet
from sagediff.pipelines.lora import sharing_warnings
from sagediff.plan.share_plan import SharePlan
from sagediff.prompts.image_list import ImageList


def check_lora_files(images: ImageList) -> None:
    """Raises InputError: a file that is broken (`check_lora_weights`); names the row."""

    def checked(chosen: LoraSet) -> None:
        for lora in chosen.loras:
            check_lora_weights(lora.file)

    for_each_set(images, checked)


def for_each_set(images: ImageList, act: Callable[[LoraSet], None]) -> None:
    """Do something with each set of LoRAs; an InputError of it names the first row that has the set."""
    for chosen, image in images.lora_sets.items():
        try:
            act(chosen)
        except InputError as error:
            raise InputError(f"{images.where(image)}: {error}") from error


def row_warnings(images: ImageList, plan: SharePlan, share_ratio: float) -> list[str]:
    """What is asked of rows' LoRAs beyond what they were trained for, in words."""
    words = []
    for chosen, image in images.lora_sets.items():
        sizes = [len(group) for group in plan.groups if images.requests[group[0]].lora == chosen]
        words += [
            f"{images.where(image)}: {each}"
            for each in sharing_warnings(chosen.loras, share_ratio, max(sizes, default=1))
        ]
    return words
