"""The stage `latents`: what training reads, computed once, and how batches are drawn from it. All in OUT/latents.

latents.safetensors: of all training images of the chosen vendors, in the data's order.
captions-K.npy, K = 0, 1, ...: token states of one caption of each of those images, drawn from (K, image); the last row
is the empty caption. More of them can be added at any time.
probe.safetensors: latents and plain captions of fixed images, training, held-out and unseen, for validation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sagediff.builtin.emoji.artwork_folder import ArtworkRow, draw_rows, image_weights, read_pixels
from sagediff.builtin.emoji.emoji_captions import plain_caption, seeded, vary_caption
from sagediff.builtin.emoji.training.emoji_stage import EmojiStageConfig
from sagediff.builtin.emoji.training.latents import encode
from sagediff.builtin.training.stage_command import require
from sagediff.builtin.training.stage_loop import write_tensors
from sagediff.errors import InputError
from sagediff.files.atomic import sweep, writing
from sagediff.files.digest import texts_digest
from sagediff.files.json_input import parse_object
from sagediff.pipelines.sentence_encoder import MAX_TOKENS, TEXT_WIDTH, load_encoder, load_tokenizer
from sagediff.progress import stderr_track

PROBE_IMAGES = {"train": 256, "held_out": 512, "unseen": 128}
DROPPED = 0.1  # part of the captions, for guidance


def cache_latents(config: EmojiStageConfig) -> Path:
    """Latents and probe, unless `only_captions`, and the files of captions that are not there yet."""
    folder = config.out / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    tokenizer, encoder = load_tokenizer(), load_encoder()
    rows = config.rows()
    seen = [row for row in rows if row.split == "train"]
    if not config.only_captions:
        require(config.out, ("vae",), "train the stage `autoencoder` into the same --out")
        vae = AutoencoderKL.from_pretrained(config.out / "vae").eval()
        chosen = [row for split, count in PROBE_IMAGES.items() for row in choose_probe(rows, split, count)]
        captions = [plain_caption(row.subject) for row in chosen]
        words = json.dumps({"splits": [row.split for row in chosen], "captions": captions})
        probe = {
            "latents": encode(vae, read_pixels(config.data, chosen)).half(),
            "text": encode_captions(tokenizer, encoder, captions),
        }
        write_tensors(folder / "probe.safetensors", probe, {"words": words})
        latents = encode(vae, read_pixels(config.data, seen)).half()
        write_tensors(folder / "latents.safetensors", {"latents": latents}, {"images": _images(seen)})
    for number in config.captions:
        if not (folder / f"captions-{number}.npy").is_file():
            captions = [*(caption_of(row, number) for row in seen), ""]
            _write_captions(folder / f"captions-{number}.npy", captions, tokenizer, encoder, config.uses_bf16)
    return folder


def caption_of(row: ArtworkRow, number: int) -> str:
    return vary_caption(row.subject, seeded("caption", number, row.file_name))


def choose_probe(rows: Sequence[ArtworkRow], split: str, count: int) -> list[ArtworkRow]:
    """Fixed images on white of a split, spread over names and vendors."""
    known = [row for row in rows if row.split == split and row.background == "white"]
    order = seeded("probe", split).permutation(len(known))
    return [known[i] for i in order[:count]]


@torch.no_grad()
def encode_captions(tokenizer: Any, encoder: Any, captions: Sequence[str], bf16: bool = False) -> Tensor:
    """(N captions) -> states (N, MAX_TOKENS, width) float16 as the pipeline makes them.

    It pads every caption to `MAX_TOKENS`; states of the padding are kept, for Stable Diffusion's U-Net reads them.

    Args:
        bf16: compute in bfloat16: half the time, states that differ by a hundredth.
    """
    states = []
    for start in range(0, len(captions), 64):
        tokens = tokenizer(
            list(captions[start : start + 64]), padding="max_length", truncation=True, return_tensors="pt"
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            states.append(encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0].half())
    return torch.cat(states)


def _write_captions(path: Path, captions: Sequence[str], tokenizer: Any, encoder: Any, bf16: bool) -> None:
    """Hundreds of megabytes: written as they come, under a temporary name."""
    with writing(path) as partial:
        shape = (len(captions), MAX_TOKENS, TEXT_WIDTH)
        states = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
        for start in stderr_track(range(0, len(captions), 1024), path.stem):
            part = captions[start : start + 1024]
            states[start : start + 1024] = encode_captions(tokenizer, encoder, part, bf16).numpy()
        states.flush()


def _images(rows: Sequence[ArtworkRow]) -> str:
    return texts_digest(row.file_name for row in rows)


@dataclass(frozen=True)
class Probe:
    """Fixed images and their plain captions.

    Attributes:
        latents: (N, C, 16, 16) float32.
        text: (N, L, D) float32.
        splits, captions: of each image.
    """

    latents: Tensor
    text: Tensor
    splits: list[str]
    captions: list[str]

    @classmethod
    def read(cls, path: Path) -> Probe:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            words = parse_object(file.metadata()["words"], str(path))
        latents = tensors["latents"].float()
        return cls(latents, tensors["text"][: len(latents)].float(), words["splits"], words["captions"])


class CachedBatches:
    """Draws batches from the folder: latents with one of each image's captions, some captions dropped.

    Args:
        rows: the training images, in the order of the cache.

    Raises:
        InputError: the folder is of other images, or lacks files.
    """

    def __init__(self, folder: Path, rows: Sequence[ArtworkRow]) -> None:
        require(
            folder, ("latents.safetensors", "captions-0.npy"), "run the stage `latents` into the same --out"
        )
        self._latents = load_file(folder / "latents.safetensors")["latents"]
        self._text = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("captions-*[0-9].npy"))]
        with safe_open(folder / "latents.safetensors", "pt") as file:
            images = (file.metadata() or {}).get("images", _images(rows))
        sizes = {len(self._latents), *(len(text) - 1 for text in self._text)}
        if sizes != {len(rows)} or images != _images(rows):
            raise InputError(
                f"{folder} is of {sorted(sizes)} images, which are not the {len(rows)} of the data; run the stage "
                "`latents` again"
            )
        self._bounds = np.cumsum(image_weights(rows))

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """latents (count, C, 16, 16) and token states (count, L, D), float32."""
        which = draw_rows(self._bounds, count, rng)
        files = rng.integers(len(self._text), size=count)
        captions = np.where(rng.random(count) < DROPPED, len(self._latents), which)  # the last one is empty
        text = np.stack([self._text[file][caption] for file, caption in zip(files, captions, strict=True)])
        return self._latents[torch.from_numpy(which)].float(), torch.from_numpy(text).float()
