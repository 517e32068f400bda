"""Tiny pipelines of every class that shares, by the name of the class; a variant of one is named after a comma.

The families of `tiny.RECIPES` are tested in depth; each pipeline here by the properties that hold for all.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from tiny import every_broadcast, families, more_families
from tiny.every_audio import AUDIO
from tiny.every_control import CONTROLLED
from tiny.every_edit import EDITS
from tiny.every_edit_transformers import TRANSFORMER_EDITS
from tiny.every_guidance import GUIDANCE
from tiny.every_guided_edit import GUIDED_EDITS
from tiny.every_ideogram import IDEOGRAM
from tiny.every_image import IMAGES
from tiny.every_image_edit import IMAGE_EDITS
from tiny.every_image_forms import IMAGE_FORMS
from tiny.every_kandinsky import KANDINSKY
from tiny.every_modular import MODULAR
from tiny.every_unet import UNETS
from tiny.every_video import VIDEOS
from tiny.every_video_from import VIDEOS_FROM
from tiny.every_video_further import VIDEOS_FURTHER
from tiny.parts import SCHEDULERS, Recipe

EVERY: dict[str, Recipe] = {
    "SanaPipeline": families.RECIPES["sana"],
    "WanPipeline, 2.2": more_families.RECIPES["wan2.2"],
    **GUIDANCE,
    **IMAGES,
    **AUDIO,
    **IMAGE_FORMS,
    **IMAGE_EDITS,
    **VIDEOS,
    **VIDEOS_FROM,
    **VIDEOS_FURTHER,
    **UNETS,
    **KANDINSKY,
    **every_broadcast.RECIPES,
    **CONTROLLED,
    **IDEOGRAM,
    **EDITS,
    **TRANSFORMER_EDITS,
    **GUIDED_EDITS,
    **MODULAR,
}


@cache
def pipe_of(name: str) -> Any:
    """The pipeline of a recipe, built once for all tests of a process: they leave it as it was."""
    torch.manual_seed(0)
    recipe = EVERY[name]
    pipe = recipe.build(SCHEDULERS[recipe.schedulers[0]]())
    pipe.set_progress_bar_config(disable=True)
    return pipe
