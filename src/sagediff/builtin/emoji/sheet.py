"""A sheet of samples: the same captions and noise each time, beside what the artwork looks like.

It does not know the training; it is handed a module and writes a PNG.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from sagediff.builtin.emoji.cache import Probe
from sagediff.builtin.emoji.denoisers import predict
from sagediff.builtin.emoji.flow import guided, mix, sample

FREE_TEXT = (
    "a happy robot cat", "a red heart with an arrow in Noto style", "a green apple, Twemoji style",
    "a smiling sun wearing sunglasses", "an astronaut riding a horse", "a blue car on a pale yellow background",
    "a slice of pizza on a black background", "a crying dog face",
)  # fmt: skip
COLUMNS = 8


@dataclass(frozen=True)
class SheetConfig:
    """Rows of eight: seen captions, held-out pairs, unseen names (each above its artwork), then free text."""

    per_split: int = 8
    steps: int = 20
    guidance: float = 3.5
    seed: int = 0


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """(N, C, 16, 16) -> (N, 3, 64, 64) uint8."""
    images: Tensor = vae.decode(latents).sample.float().clamp(-1, 1)
    return ((images + 1) * 127.5).round().to(torch.uint8)


def tile(images: Tensor, columns: int = COLUMNS) -> Image.Image:
    """(rows * columns, 3, H, W) uint8 -> one image, row by row."""
    count, channels, height, width = images.shape
    grid = images.reshape(count // columns, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(
        grid.reshape(count // columns * height, columns * width, channels).contiguous().numpy()
    )


@torch.no_grad()
def draw_sheet(
    model: nn.Module, vae: AutoencoderKL, probe: Probe, free_text: tuple[Tensor, Tensor], path: Path,
    config: SheetConfig = SheetConfig(),
) -> None:  # fmt: skip
    """Sample and write `path`.

    Args:
        free_text: states and mask of `FREE_TEXT`.
    """
    chosen = [
        [i for i, split in enumerate(probe.splits) if split == name][: config.per_split]
        for name in ("train", "held_out", "unseen")
    ]
    places = [i for part in chosen for i in part]
    text = torch.cat([probe.text[places], free_text[0]])
    mask = torch.cat([probe.mask[places], free_text[1]])
    noise = torch.randn(
        len(text), *probe.latents.shape[1:], generator=torch.Generator().manual_seed(config.seed)
    )
    velocity = guided(partial(predict, model), text, mask, probe.text[-1:], probe.mask[-1:], config.guidance)
    made = decode(vae, sample(velocity, noise, config.steps))
    real = decode(vae, probe.latents[places])
    rows = []
    for number in range(len(chosen)):
        part = slice(number * config.per_split, (number + 1) * config.per_split)
        rows += [made[part], real[part]]
    path.parent.mkdir(parents=True, exist_ok=True)
    tile(torch.cat([*rows, made[len(places) :]])).save(path)


@torch.no_grad()
def probe_losses(model: nn.Module, probe: Probe, batch_size: int = 64) -> dict[str, float]:
    """Mean squared error of the velocity by split, on fixed noise and stratified times."""
    count = len(probe.latents)
    noise = torch.randn(probe.latents.shape, generator=torch.Generator().manual_seed(1))
    times = (torch.arange(count) * 0.6180339887) % 1.0  # evenly spread within any run of images
    errors = []
    for start in range(0, count, batch_size):
        part = slice(start, min(start + batch_size, count))
        states = mix(probe.latents[part], noise[part], times[part])
        out = predict(model, states, times[part], probe.text[part], probe.mask[part])
        errors.append((out.float() - (noise[part] - probe.latents[part])).square().mean(dim=(1, 2, 3)))
    error = torch.cat(errors)
    places = {
        split: [i for i, s in enumerate(probe.splits) if s == split] for split in dict.fromkeys(probe.splits)
    }
    return {f"probe_{split}": round(float(error[where].mean()), 5) for split, where in places.items()}
