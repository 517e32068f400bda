"""The stages `autoencoder` and `decoder`: 64 x 64 x 3 -> 16 x 16 x 8, on the training images of all vendors.

After training, means and spreads of the latent channels move into the 1 x 1 convolutions on both sides of the
latents, so that each channel has mean 0 and deviation 1 and `scaling_factor` is 1: Stable Diffusion's pipeline knows
no shift.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from sagediff.builtin.emoji.artwork_folder import read_pixels, read_rows, to_signed
from sagediff.builtin.emoji.training.emoji_stage import EmojiStageConfig
from sagediff.builtin.training.stage_command import require
from sagediff.builtin.training.stage_loop import train
from sagediff.files.atomic import writing
from sagediff.pipelines.model_source import built_in_folder

KL_WEIGHT = 1e-4


def train_autoencoder(config: EmojiStageConfig) -> Path:
    """It starts from the weights of the scenes' autoencoder, or of `config.start`; writes OUT/vae."""
    start = config.start or built_in_folder("demo") / "weights" / "pipeline" / "vae"
    return _train(config, "autoencoder", start, steps=3000)


def train_decoder(config: EmojiStageConfig) -> Path:
    """The decoder of OUT/vae alone: latents, and so every denoiser that was trained on them, stay as they are."""
    require(config.out, ("vae",), "train the stage `autoencoder` into the same --out")
    return _train(config, "decoder", config.out / "vae", steps=3000)


def _train(config: EmojiStageConfig, name: str, start: Path, steps: int) -> Path:
    batch_size = config.batch_size or 16
    torch.manual_seed(config.seed or 0)
    model = AutoencoderKL.from_pretrained(start).float()
    if name == "decoder":
        freeze_encoder(model)
    pixels = read_pixels(config.data, read_rows(config.data, splits=["train"]))

    def losses(step: int, rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        which = torch.from_numpy(rng.integers(len(pixels), size=batch_size))
        return autoencoder_terms(model, vary(to_signed(pixels[which]), rng).to(config.device), noise)

    steps = config.steps or steps
    loop = config.loop(
        name, steps, 1e-3, ema=0.995, warmup=100, cooldown=steps // 2, memory_format=torch.contiguous_format
    )
    trained = train(loop, model, losses).to("cpu")
    if name == "autoencoder":
        latents = encode(trained, pixels[:: max(1, len(pixels) // 2048)])
        normalise_latents(trained, latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))
    with writing(config.out / "vae") as partial:
        trained.save_pretrained(partial)
    return config.out / "vae"


def freeze_encoder(model: AutoencoderKL) -> None:
    """Leave out of training whatever the latents depend on."""
    for module in (model.encoder, model.quant_conv):
        module.requires_grad_(False)


def vary(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirror half of a batch, and permute the colour channels of a quarter: (N, 3, H, W) -> the same."""
    count = len(images)
    mirrored = torch.from_numpy(rng.random(count) < 0.5).view(-1, 1, 1, 1)
    images = torch.where(mirrored, images.flip(3), images)
    permuted = torch.from_numpy(rng.random(count) < 0.25).view(-1, 1, 1, 1)
    return torch.where(permuted, images[:, torch.from_numpy(rng.permutation(3))], images)


def autoencoder_terms(model: AutoencoderKL, images: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
    """Errors of the pixels, of their differences to neighbours (edges, thin lines), and at half the resolution."""
    posterior = model.encode(images).latent_dist
    error = (model.decode(posterior.sample(noise)).sample - images).float()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
    return {
        "pixel": error.abs().mean() + error.square().mean(),
        "edge": (error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean()) / 2,
        "half": F.avg_pool2d(error, 2).abs().mean(),
        "kl": KL_WEIGHT * kl,
    }


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Move an affine map of the latent channels into the layers around them, exactly.

    Args:
        mean, deviation: (C,) of the latents as the model makes them now; afterwards they are 0 and 1.
    """
    moments, latents = model.quant_conv, model.post_quant_conv
    scale = torch.cat([1 / deviation, torch.ones_like(deviation)])
    shift = torch.cat([-mean / deviation, -2 * deviation.log()])  # the other half are logarithms of variances
    moments.weight.mul_(scale.view(-1, 1, 1, 1))
    moments.bias.mul_(scale).add_(shift)
    latents.bias.add_(latents.weight[:, :, 0, 0] @ mean)
    latents.weight.mul_(deviation.view(1, -1, 1, 1))
    model.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def encode(model: AutoencoderKL, pixels: Tensor, batch_size: int = 128) -> Tensor:
    """(N, 3, 64, 64) uint8 -> (N, C, 16, 16) float32, the posterior's means."""
    return torch.cat(
        [model.encode(to_signed(part)).latent_dist.mean for part in torch.split(pixels, batch_size)]
    )


@torch.no_grad()
def decode(model: AutoencoderKL, latents: Tensor, batch_size: int = 128) -> Tensor:
    """(N, C, 16, 16) -> (N, 3, 64, 64) uint8."""
    made = [model.decode(part).sample.float().clamp(-1, 1) for part in torch.split(latents, batch_size)]
    return ((torch.cat(made) + 1) * 127.5).round().to(torch.uint8)
