"""The autoencoder and the denoiser that all built-in models have: 64 x 64 pixels, latents of 8 x 16 x 16."""

from __future__ import annotations

from diffusers import AutoencoderKL, UNet2DConditionModel

LATENT_CHANNELS = 8


def new_autoencoder() -> AutoencoderKL:
    """1.5 million parameters; without attention, so that it takes images of other sizes as well."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(24, 48, 96), layers_per_block=1,
        latent_channels=LATENT_CHANNELS, norm_num_groups=12, sample_size=64, mid_block_add_attention=False,
    )  # fmt: skip


def new_unet(text_width: int) -> UNet2DConditionModel:
    """17 million parameters; attention at 8 x 8 and 4 x 4, to token states of that width."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, layers_per_block=1,
        block_out_channels=(64, 128, 256), attention_head_dim=4, cross_attention_dim=text_width,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
