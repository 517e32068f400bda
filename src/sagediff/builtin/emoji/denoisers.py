"""The denoisers that were tried: a U-Net, and a transformer of comparable cost; one call for both.

They know neither captions nor images: latents (N, 8, 16, 16), times in [0, 1], token states (N, 32, 384).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from sagediff.builtin.emoji.autoencoder import LATENT_CHANNELS
from sagediff.builtin.emoji.text import TEXT_WIDTH

LATENT_SIZE = 16
TIMESTEPS = 1000  # the pipeline's schedulers tell time t as 1000 t


def new_unet(widths: tuple[int, ...] = (64, 128, 256), heads: int = 4) -> UNet2DConditionModel:
    """17 million parameters; attention at 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, layers_per_block=1,
        block_out_channels=widths, attention_head_dim=heads, cross_attention_dim=TEXT_WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def new_pixart(width: int = 256, layers: int = 8) -> PixArtTransformer2DModel:
    """9 million parameters; 64 tokens of 2 x 2 latents."""
    return PixArtTransformer2DModel(
        sample_size=LATENT_SIZE, patch_size=2, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        num_layers=layers, num_attention_heads=width // 32, attention_head_dim=32, cross_attention_dim=width,
        caption_channels=TEXT_WIDTH, use_additional_conditions=False,
    )  # fmt: skip


DENOISERS: dict[str, Callable[[], nn.Module]] = {"unet": new_unet, "pixart": new_pixart}


def use_plain_attention(model: nn.Module) -> None:
    """Attention by two matrix products: on a CPU, at these sizes, faster than the fused kernel's backward pass."""
    model.set_attn_processor(AttnProcessor())  # type: ignore[operator]


def predict(model: nn.Module, states: Tensor, times: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """The velocity noise - image at `states`.

    Args:
        states: (N, 8, 16, 16) at `times` (N,): (1 - t) image + t noise.
        text, mask: (N, 32, 384) and (N, 32); the U-Net reads the padding's states too, as its pipeline has it.
    """
    timesteps = times * TIMESTEPS
    if isinstance(model, PixArtTransformer2DModel):
        unused = {"resolution": None, "aspect_ratio": None}
        out: Tensor = model(
            states, encoder_hidden_states=text, timestep=timesteps, added_cond_kwargs=unused,
            encoder_attention_mask=mask.to(torch.float32),
        ).sample  # fmt: skip
    else:
        out = model(states, timesteps, text).sample
    return out
