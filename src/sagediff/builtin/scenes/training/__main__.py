"""`python -m sagediff.builtin.scenes.training STAGE --out DIR [--resume]`: train one stage, or all of them in turn."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

import torch

from sagediff.builtin.scenes.training.assemble import assemble
from sagediff.builtin.scenes.training.score import make_reference, train_score
from sagediff.builtin.scenes.training.stages import (
    StageConfig,
    train_autoencoder,
    train_encoder,
    train_judge,
    train_unet,
)
from sagediff.errors import InputError

STAGES = {
    "judge": train_judge,
    "encoder": train_encoder,
    "autoencoder": train_autoencoder,
    "unet": train_unet,
    "score": train_score,
    "reference": make_reference,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sagediff.builtin.scenes.training", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "assemble", "all"])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/builtin"), help="folder of the stages' outputs"
    )
    parser.add_argument(
        "--weights", type=Path, help="assemble: where the pipeline and the judge go (default OUT/weights)"
    )
    parser.add_argument(
        "--text-encoder", type=Path, metavar="DIR",
        help="score: folder with tokenizer/ and text_encoder/, such as a pipeline's (default OUT)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, exactly")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=None, help="(default: where it pays)"
    )
    args = parser.parse_args(argv)
    config = StageConfig(**{field.name: getattr(args, field.name) for field in fields(StageConfig)})
    names = list(STAGES) if args.stage == "all" else [args.stage]
    try:
        for name in names:
            if name in STAGES:
                print(STAGES[name](config), file=sys.stderr)
        if args.stage in ("assemble", "all"):
            print(assemble(args.out, args.weights or args.out / "weights"), file=sys.stderr)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
