"""How well does the emoji model draw by itself? Its images of held-out pairs named by the judge, beside real artwork.

    python benchmarks/emoji_model.py --captions 512 --steps 20 --guidance 1 3.5 5 --seeds 0 1 2 --real runs/emoji/data

Named right: the caption is the nearest among those of all names of its vendor. `--real` names the imagefolder of the
artwork: what the judge says of it, and of its reconstructions by the autoencoder, is the ceiling.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from world_eval import mean_spread

import sagediff
from sagediff.builtin.emoji.emoji_perception import (
    EmojiPerception,
    held_out_captions,
    reference_features,
)
from sagediff.evaluation.frechet import frechet_distance
from sagediff.files.imagefolder import open_images, read_imagefolder

BATCH = 64


def sampled(pipe: Any, captions: list[str], steps: int, guidance: float, seed: int) -> Tensor:
    """(N, 3, 64, 64) in [0, 1] by the untouched pipeline, one generator for each caption."""
    made = []
    for start in range(0, len(captions), BATCH):
        part = captions[start : start + BATCH]
        generators = [torch.Generator().manual_seed(seed * 100_003 + start + i) for i in range(len(part))]
        images = pipe(
            part, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="pt"
        ).images
        made.append(images.float().cpu())
    return torch.cat(made)


def real_images(folder: Path, captions: list[str]) -> Tensor:
    found = read_imagefolder(folder)
    files = dict(zip(found.captions, found.files, strict=True))
    return torch.from_numpy(open_images([files[caption] for caption in captions], (64, 64))).float()


@torch.no_grad()
def reconstructed(pipe: Any, images: Tensor) -> Tensor:
    made = []
    for part in images.mul(2).sub(1).split(BATCH):
        made.append(pipe.vae.decode(pipe.vae.encode(part).latent_dist.mode()).sample)
    return torch.cat(made).add(1).div(2).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--real", type=Path, help="imagefolder of the held-out artwork")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pipe = sagediff.load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    captions = held_out_captions(args.captions)
    perception, reference = EmojiPerception(), reference_features(captions)
    results: dict[str, Any] = {"captions": len(captions), "steps": args.steps, "seeds": args.seeds}

    def seen(images: Tensor) -> dict[str, float]:
        return {
            "named_right": float(perception.accuracy(images, captions)["all"].float().mean()),
            "clip_score": float(perception.alignment(images, captions).mean()),
            "frechet": frechet_distance(perception.features(images), reference),
        }

    def tell(name: str, figures: Any) -> None:
        results[name] = figures
        print(name, json.dumps(figures), file=sys.stderr, flush=True)

    if args.real is not None:
        real = real_images(args.real, captions)
        tell("real artwork", seen(real))
        tell("reconstructions", seen(reconstructed(pipe, real)))
    for guidance in args.guidance:
        rows = [seen(sampled(pipe, captions, args.steps, guidance, seed)) for seed in args.seeds]
        tell(f"guidance {guidance:g}", {key: mean_spread([row[key] for row in rows]) for key in rows[0]})
    text = json.dumps(results, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
