"""`python -m sagediff.builtin.scenes.dataset --out DIR`: renders of the training captions as an imagefolder.

The folder is what `sagediff train --data` and diffusers' own scripts take. Held-out captions are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sagediff.builtin.scenes.render import Renderer
from sagediff.builtin.scenes.world import training_scenes
from sagediff.errors import InputError
from sagediff.files.atomic import write_json_lines
from sagediff.progress import stderr_track


def write_dataset(out: Path, renders: int, seed: int) -> Path:
    """Write `renders` images of every training caption; metadata.jsonl last, so that it names whole files.

    Raises:
        InputError: the folder is in use, or the font is missing.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} is in use; choose another folder")
    renderer = Renderer()
    (out / "images").mkdir(parents=True, exist_ok=True)
    records = []
    scenes = training_scenes()
    for number in stderr_track(range(renders * len(scenes)), "renders"):
        scene = scenes[number % len(scenes)]
        image = renderer.draw(scene, np.random.default_rng([seed, number]))
        name = f"images/{number:06d}.png"
        Image.fromarray((image.transpose(1, 2, 0) * 255).round().astype(np.uint8)).save(out / name)
        records.append({"file_name": name, "text": scene.caption})
    write_json_lines(out / "metadata.jsonl", records)
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sagediff.builtin.scenes.dataset", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--renders", type=int, default=4, help="images of every caption")
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args(argv)
    try:
        print(write_dataset(args.out, args.renders, args.seed), file=sys.stderr)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
