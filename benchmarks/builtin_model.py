"""How well does the built-in model draw? The judge's accuracy on held-out captions and on reconstructions.

    python benchmarks/builtin_model.py --captions 512 --steps 20 --seeds 0 1 2

Reconstructions need the font Noto Color Emoji; without it that row is left out, with a message.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from world_eval import accuracy, judge_images, mean_spread

import sagediff
from sagediff.builtin.scenes import judge_dir
from sagediff.builtin.scenes.networks import load_judge
from sagediff.builtin.scenes.render import Renderer
from sagediff.builtin.scenes.scene_perception import held_out_captions
from sagediff.builtin.scenes.world import parse_caption
from sagediff.errors import InputError


def reconstructions(pipe: object, captions: list[str], seed: int) -> dict[str, float] | None:
    try:
        renderer = Renderer()
    except InputError as error:
        print(error, file=sys.stderr)
        return None
    real = torch.from_numpy(renderer.batch([parse_caption(c) for c in captions], np.random.default_rng(seed)))
    judge = load_judge(judge_dir())
    made = []
    with torch.no_grad():
        for part in real.mul(2).sub(1).split(64):
            latents = pipe.vae.encode(part).latent_dist.mean  # type: ignore[attr-defined]
            made.append(pipe.vae.decode(latents).sample)  # type: ignore[attr-defined]
    images = torch.cat(made).clamp(-1, 1)
    return accuracy(judge, images, captions) | {"mse": float((images - (real * 2 - 1)).square().mean())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", default=[4.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pipe = sagediff.load_pipeline(args.model)
    pipe.set_progress_bar_config(disable=True)
    captions = held_out_captions(args.captions)
    judge = load_judge(judge_dir())
    results: dict[str, object] = {"captions": len(captions), "steps": args.steps, "seeds": args.seeds}
    if (found := reconstructions(pipe, captions, 0)) is not None:
        results["reconstructions"] = found
        print("reconstructions", json.dumps(found), file=sys.stderr)
    for guidance in args.guidance:
        rows = []
        for seed in args.seeds:
            images = judge_images(pipe, captions, args.steps, guidance, seed)
            rows.append(accuracy(judge, images, captions))
            print(f"guidance {guidance} seed {seed}", json.dumps(rows[-1]), file=sys.stderr)
        results[f"guidance {guidance}"] = {key: mean_spread([row[key] for row in rows]) for key in rows[0]}
    text = json.dumps(results, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
