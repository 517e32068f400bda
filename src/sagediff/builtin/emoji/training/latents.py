"""`python -m sagediff.builtin.emoji.autoencoder`: the autoencoder, 64 x 64 x 3 -> 16 x 16 x 8.

Trained on the training split of all artwork that the data folder holds. It starts from the weights of `--start`
where that is given. After training, means and spreads of the latent channels move into the 1 x 1 convolutions on
both sides of the latents, so that each channel has mean 0 and deviation 1 and `scaling_factor` is 1: Stable
Diffusion's pipeline knows no shift.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from sagediff.builtin.emoji.images import read_pixels, read_rows, to_signed
from sagediff.builtin.emoji.loop import LoopConfig, bf16_pays, train

LATENT_CHANNELS = 8


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(24, 48, 96), layers_per_block=1,
        latent_channels=LATENT_CHANNELS, norm_num_groups=12, sample_size=64, mid_block_add_attention=False,
    )  # fmt: skip


def vary(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirror half of a batch, and permute the colour channels of a quarter: (N, 3, H, W) -> the same."""
    count = len(images)
    mirrored = torch.from_numpy(rng.random(count) < 0.5).view(-1, 1, 1, 1)
    images = torch.where(mirrored, images.flip(3), images)
    permuted = torch.from_numpy(rng.random(count) < 0.25).view(-1, 1, 1, 1)
    return torch.where(permuted, images[:, torch.from_numpy(rng.permutation(3))], images)


def reconstruction_terms(made: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Errors of the pixels, of their differences to neighbours (edges, thin lines), and at half the resolution."""
    error = (made - real).float()
    across, down = error.diff(dim=3), error.diff(dim=2)
    half = F.avg_pool2d(error, 2)
    return {
        "pixel": error.abs().mean() + error.square().mean(),
        "edge": (across.abs().mean() + down.abs().mean()) / 2,
        "half": half.abs().mean(),
    }


@dataclass(frozen=True)
class AutoencoderLosses:
    """The loss of one step on pixels (N, 3, 64, 64), uint8."""

    pixels: Tensor
    batch_size: int
    kl_weight: float

    def __call__(
        self, model: nn.Module, step: int, rng: np.random.Generator, noise: torch.Generator
    ) -> dict[str, Tensor]:
        assert isinstance(model, AutoencoderKL)
        which = torch.from_numpy(rng.integers(len(self.pixels), size=self.batch_size))
        images = vary(to_signed(self.pixels[which]), rng)
        posterior = model.encode(images).latent_dist
        made = model.decode(posterior.sample(noise)).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
        return reconstruction_terms(made, images) | {"kl": self.kl_weight * kl}


def freeze_encoder(model: AutoencoderKL) -> None:
    """Leave out of training whatever the latents depend on."""
    for module in (model.encoder, model.quant_conv):
        module.requires_grad_(False)


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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sagediff.builtin.emoji.autoencoder", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint and log; the result in OUT/vae")
    parser.add_argument("--start", type=Path, help="folder of an autoencoder of this shape to start from")
    parser.add_argument(
        "--decoder-only", action="store_true",
        help="leave --start's encoder, and so its latents and every denoiser trained on them, as they are",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--kl-weight", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = AutoencoderKL.from_pretrained(args.start).float() if args.start else new_autoencoder()
    if args.decoder_only:
        freeze_encoder(model)
    pixels = read_pixels(args.data, read_rows(args.data, splits=["train"]))
    config = LoopConfig(
        args.out, args.steps, args.batch_size, args.learning_rate, warmup=100, cooldown=args.steps // 2,
        ema=0.995, bf16=bf16_pays(),
    )  # fmt: skip
    trained = train(config, model, AutoencoderLosses(pixels, args.batch_size, args.kl_weight))
    if trained is None:
        return 1
    assert isinstance(trained, AutoencoderKL)
    if not args.decoder_only:
        latents = encode(trained, pixels[:: max(1, len(pixels) // 2048)])
        normalise_latents(trained, latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))
    trained.save_pretrained(args.out / "vae")
    print(args.out / "vae", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
