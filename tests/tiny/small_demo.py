"""The built-in pipeline with small random networks in its denoiser's and autoencoder's places.

For tests that ask who shares what with whom, what is counted, kept or told, and not what an image shows: its text
encoder groups prompts as the built-in model's does, and a denoiser call takes a tenth of the time.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

WIDTHS = (8, 16, 16)


def with_small_networks(demo: Any) -> Any:
    """A pipeline of its own, that touches nothing of the built-in one's."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(
        dict(demo.unet.config) | {"block_out_channels": WIDTHS, "norm_num_groups": 4}
    )
    vae = AutoencoderKL.from_config(
        dict(demo.vae.config) | {"block_out_channels": (4, 4, 4), "norm_num_groups": 2}
    )
    parts = demo.components | {
        "unet": unet.eval().requires_grad_(False),
        "vae": vae.eval().requires_grad_(False),
        "text_encoder": deepcopy(demo.text_encoder),
        "tokenizer": deepcopy(demo.tokenizer),
        "scheduler": deepcopy(demo.scheduler),
    }
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
