"""`python -m sagediff.builtin.emoji.cache`: what training reads, computed once: latents and caption states.

OUT/latents.safetensors: of all training images of the chosen vendors, in the data's order.
OUT/captions-K.npy and captions-K.mask.npy, K = 0, 1, ...: states of one caption of each of those images, drawn
from (K, row); the last row is the empty caption. More of them can be added at any time.
OUT/probe.safetensors: latents and plain captions of fixed images, training, held-out and unseen, for validation.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertModel, BertTokenizerFast

from sagediff.builtin.emoji.autoencoder import encode
from sagediff.builtin.emoji.captions import plain_caption, seeded, vary_caption
from sagediff.builtin.emoji.checkpoint import write_tensors
from sagediff.builtin.emoji.images import Row, read_pixels, read_rows
from sagediff.builtin.emoji.loop import bf16_pays
from sagediff.builtin.emoji.packages import FLAT_VENDORS, VENDORS
from sagediff.builtin.emoji.text import MAX_TOKENS, TEXT_WIDTH, encode_captions, load_encoder, unpack_encoder

PROBE_IMAGES = {"train": 256, "held_out": 512, "unseen": 128}


def caption_of(row: Row, variant: int) -> str:
    return vary_caption(row.subject, seeded("caption", variant, row.file_name))


def choose_probe(rows: Sequence[Row], split: str, count: int) -> list[Row]:
    """Fixed images on white of a split, spread over names and vendors."""
    known = [row for row in rows if row.split == split and row.background == "white"]
    order = seeded("probe", split).permutation(len(known))
    return [known[i] for i in order[:count]]


@dataclass(frozen=True)
class Probe:
    """Fixed images and their plain captions; the last caption is the empty one.

    Attributes:
        latents: (N, C, 16, 16) float32.
        text, mask: (N + 1, L, D) float32 and (N + 1, L) bool.
        splits: of each image.
        captions: of each image.
    """

    latents: Tensor
    text: Tensor
    mask: Tensor
    splits: list[str]
    captions: list[str]

    @classmethod
    def read(cls, path: Path) -> Probe:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            words = json.loads(file.metadata()["words"])
        return cls(
            tensors["latents"].float(), tensors["text"].float(), tensors["mask"].bool(), words["splits"],
            words["captions"],
        )  # fmt: skip


def write_probe(
    path: Path,
    data: Path,
    rows: Sequence[Row],
    vae: AutoencoderKL,
    tokenizer: BertTokenizerFast,
    encoder: BertModel,
) -> None:
    chosen = [row for split, count in PROBE_IMAGES.items() for row in choose_probe(rows, split, count)]
    captions = [plain_caption(row.subject) for row in chosen]
    text, mask = encode_captions(tokenizer, encoder, [*captions, ""])
    words = json.dumps({"splits": [row.split for row in chosen], "captions": captions})
    latents = encode(vae, read_pixels(data, chosen))
    write_tensors(path, {"latents": latents.half(), "text": text, "mask": mask}, {"words": words})


def write_captions(
    out: Path, variant: int, rows: Sequence[Row], tokenizer: BertTokenizerFast, encoder: BertModel
) -> None:
    """Both files of one variant; the states' file appears last, and whole."""
    count = len(rows) + 1
    partial = out / f"captions-{variant}.partial.npy"
    states = np.lib.format.open_memmap(partial, "w+", np.float16, (count, MAX_TOKENS, TEXT_WIDTH))
    masks = np.empty((count, MAX_TOKENS), dtype=np.bool_)
    captions = [*(caption_of(row, variant) for row in rows), ""]
    for start in range(0, count, 1024):
        text, mask = encode_captions(tokenizer, encoder, captions[start : start + 1024], bf16=bf16_pays())
        states[start : start + 1024], masks[start : start + 1024] = text.numpy(), mask.numpy()
        print(f"captions-{variant} {start + len(text)}/{count}", file=sys.stderr, flush=True)
    states.flush()
    np.save(out / f"captions-{variant}.mask.npy", masks)
    os.replace(partial, out / f"captions-{variant}.npy")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sagediff.builtin.emoji.cache", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vendors", nargs="+", choices=list(VENDORS), default=list(FLAT_VENDORS))
    parser.add_argument(
        "--backgrounds", type=int, default=2, help="images of each drawing, the first on white"
    )
    parser.add_argument(
        "--variants", type=int, nargs="+", default=[0], help="numbers of the caption files to write"
    )
    parser.add_argument("--only-captions", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer, encoder = load_encoder(unpack_encoder(args.out / "encoder"))
    rows = read_rows(args.data, args.vendors, backgrounds=args.backgrounds)
    train_rows = [row for row in rows if row.split == "train"]
    if not args.only_captions:
        vae = AutoencoderKL.from_pretrained(args.vae).eval()
        write_probe(args.out / "probe.safetensors", args.data, rows, vae, tokenizer, encoder)
        latents = encode(vae, read_pixels(args.data, train_rows)).half()
        write_tensors(args.out / "latents.safetensors", {"latents": latents})
    for variant in args.variants:
        if not (args.out / f"captions-{variant}.npy").is_file():
            write_captions(args.out, variant, train_rows, tokenizer, encoder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
