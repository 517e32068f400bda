"""The stages `naming` and `reference`: what only evaluation needs.

The tower is trained on the artwork of all vendors, held out or not, for it says what an image is and not how to draw
one; slightly moved, scaled, blurred and noisy, and on the autoencoder's reconstructions, so that it reads made images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sagediff.builtin.emoji.artwork_folder import ArtworkRow, read_pixels, read_rows, to_signed
from sagediff.builtin.emoji.emoji_perception import FEATURES, REFERENCE, sentences
from sagediff.builtin.emoji.naming_tower import FILE, CaptionTable, NamingTower
from sagediff.builtin.emoji.training.emoji_stage import EmojiStageConfig
from sagediff.builtin.emoji.training.latents import decode, encode
from sagediff.builtin.training.contrast import choice_terms
from sagediff.builtin.training.stage_command import require
from sagediff.builtin.training.stage_loop import train, write_tensors
from sagediff.evaluation.feature_networks import open_features
from sagediff.files.digest import file_digest, texts_digest
from sagediff.pipelines.sentence_encoder import load_encoder, load_tokenizer
from sagediff.progress import stderr_track

SEED = 4211  # unlike that of any other stage
LATENT_NOISE = 0.1  # on latents before they are decoded
CHECKED = 1024  # images that the log's figures are of


@dataclass(frozen=True)
class NamingPool:
    """Images and captions of all vendors.

    Attributes:
        pixels: (N, 3, 64, 64) uint8: the artwork, then a reconstruction of each drawing on white.
        which: (N,) number of each image's caption.
        artwork: how many of the images are artwork.
        sentences: (captions, 384).
        table: without vectors.
    """

    pixels: Tensor
    which: Tensor
    artwork: int
    sentences: Tensor
    table: CaptionTable


def train_naming(config: EmojiStageConfig) -> Path:
    """Writes OUT/naming.safetensors; the log tells how many images it names, of each kind."""
    batch_size = config.batch_size or 256
    pool = read_pool(config)
    torch.manual_seed(SEED)
    spread = pool.sentences.std(dim=0, correction=0).clamp(min=1e-4)
    tower = NamingTower(pool.sentences.mean(dim=0), spread)
    texts = pool.sentences.to(config.device)

    def losses(step: int, rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.from_numpy(rng.integers(len(pool.pixels), size=batch_size))
        images = augment(to_signed(pool.pixels[chosen]).to(config.device), noise)
        which = pool.which[chosen].to(config.device)
        return choice_terms(tower.image(images), tower.texts(texts), tower.log_scale, which)

    def report(average: NamingTower, done: int) -> Mapping[str, float]:
        return naming_figures(average, pool, config.device)

    loop = config.loop("naming", 4000, 2e-3, SEED, ema=0.99, report_every=config.report_every)
    trained = train(loop, tower, losses, report).to("cpu")
    return write_naming(config.out / FILE, trained, with_vectors(trained, pool))


def write_naming(path: Path, tower: NamingTower, table: CaptionTable) -> Path:
    """The tower and its captions as one file, in half precision."""
    tensors = {name: value.half() for name, value in tower.state_dict().items()}
    words = {"captions": table.captions, "names": table.names, "vendors": table.vendors}
    write_tensors(path, tensors | {"vectors": table.vectors.half()}, {"table": json.dumps(words)})
    return path


def read_pool(config: EmojiStageConfig) -> NamingPool:
    """The artwork with its reconstructions and sentence vectors; what takes minutes is kept in OUT/naming-pool."""
    require(config.out, ("vae",), "train the stage `autoencoder` into the same --out")
    rows = read_rows(config.data, config.vendors, backgrounds=config.backgrounds or 2)
    white = [row for row in rows if row.background == "white"]
    place = {(row.name, row.vendor): number for number, row in enumerate(white)}
    table = CaptionTable(
        [row.text for row in white],
        [row.name for row in white],
        [row.vendor for row in white],
        torch.empty(0),
    )
    pixels = read_pixels(config.data, rows)
    kept = _kept(config, rows, white, pixels)
    which = [place[row.name, row.vendor] for row in rows] + list(range(len(white)))
    whole = torch.cat([pixels, kept["reconstructions"]])
    return NamingPool(whole, torch.tensor(which), len(rows), kept["sentences"].float(), table)


def _kept(
    config: EmojiStageConfig, rows: list[ArtworkRow], white: list[ArtworkRow], pixels: Tensor
) -> dict[str, Tensor]:
    path = config.out / "naming-pool.safetensors"
    made_by = file_digest(config.out / "vae" / "diffusion_pytorch_model.safetensors")
    images = texts_digest([made_by, *(row.file_name for row in white)])
    if path.is_file():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("images") == images:
                return load_file(path)
    vae = AutoencoderKL.from_pretrained(config.out / "vae").eval()
    on_white = pixels[[i for i, row in enumerate(rows) if row.background == "white"]]
    noise = torch.Generator().manual_seed(SEED)
    made = []
    with torch.autocast("cpu", torch.bfloat16, enabled=config.uses_bf16):
        for part in stderr_track(torch.split(on_white, 128), "reconstructions"):
            latents = encode(vae, part).float()
            made.append(decode(vae, latents + LATENT_NOISE * torch.randn(latents.shape, generator=noise)))
    text = load_tokenizer(), load_encoder()
    starts = stderr_track(range(0, len(white), 256), "captions")
    vectors = torch.cat([sentences(*text, [row.text for row in white[i : i + 256]]) for i in starts])
    kept = {"reconstructions": torch.cat(made), "sentences": vectors}
    write_tensors(path, kept, {"images": images})
    return kept


def augment(images: Tensor, noise: torch.Generator) -> Tensor:
    """Move by up to 3 pixels, scale by 0.85 to 1.1, blur and add noise of random strength; (N, 3, H, W) -> the same."""
    count, device = len(images), images.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=noise, device=device) * (high - low) + low

    moved = torch.zeros(count, 2, 3, device=device)
    moved[:, 0, 0] = moved[:, 1, 1] = 1 / uniform(0.85, 1.1)
    moved[:, :, 2] = uniform(-6, 6, 2) / images.shape[-1]  # the grid is 2 wide
    grid = F.affine_grid(moved, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, uniform(-1, 1, 1, 1, 1).clamp(min=0))  # half of them stay sharp
    strength = uniform(0, 0.15, 1, 1, 1)
    return images + strength * torch.randn(images.shape, generator=noise, device=device)


@torch.no_grad()
def with_vectors(tower: NamingTower, pool: NamingPool) -> CaptionTable:
    vectors = F.normalize(tower.texts(pool.sentences.to(tower.mean.device)).float().cpu(), dim=1)
    return CaptionTable(pool.table.captions, pool.table.names, pool.table.vendors, vectors)


@torch.no_grad()
def naming_figures(tower: NamingTower, pool: NamingPool, device: str = "cpu") -> dict[str, float]:
    """Part of the images that are named right among all names of their vendor.

    Of the artwork under moves, blur and noise that training does not draw, as it is, and of its reconstructions; the
    first also for each vendor.
    """
    table = with_vectors(tower, pool)
    rng = np.random.default_rng(SEED)
    chosen = torch.from_numpy(rng.permutation(pool.artwork)[:CHECKED])
    remade = torch.from_numpy(rng.permutation(len(pool.table.captions))[:CHECKED]) + pool.artwork
    noise = torch.Generator(device).manual_seed(SEED)
    clean = to_signed(pool.pixels[chosen])

    def right(images: Tensor, numbers: Tensor) -> Tensor:
        seen = torch.cat([tower.image(part.to(device)).float().cpu() for part in torch.split(images, 256)])
        return table.right(seen, pool.which[numbers].tolist()).float()

    moved = torch.cat([augment(part.to(device), noise).cpu() for part in torch.split(clean, 256)])
    named = right(moved, chosen)
    figures = {
        "augmented": float(named.mean()),
        "clean": float(right(clean, chosen).mean()),
        "reconstructed": float(right(to_signed(pool.pixels[remade]), remade).mean()),
    }
    vendors = np.array([table.vendors[i] for i in pool.which[chosen].tolist()])
    for vendor in dict.fromkeys(table.vendors):
        own = named[torch.from_numpy(vendors == vendor)]
        if len(own):
            figures[f"augmented_{vendor}"] = float(own.mean())
    return {name: round(value, 4) for name, value in figures.items()}


def make_reference(config: EmojiStageConfig) -> Path:
    """Features of the artwork on white of every held-out pair that the denoiser's vendors draw, and their captions."""
    rows = [row for row in config.rows(["held_out"]) if row.background == "white"]
    features = open_features(FEATURES, config.device)
    pixels = read_pixels(config.data, rows)
    found = torch.cat([features(part.float() / 255) for part in torch.split(pixels, 64)])
    path = config.out / REFERENCE
    table = json.dumps({"captions": [row.text for row in rows]})
    write_tensors(path, {"features": found.half()}, {"table": table})
    return path
