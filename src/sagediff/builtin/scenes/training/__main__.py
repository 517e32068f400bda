"""`python -m sagediff.builtin.scenes.training STAGE --out DIR [--resume]`: train one stage, or all of them in turn."""

from __future__ import annotations

import sys
from pathlib import Path

from sagediff.builtin.scenes.training.assemble import assemble
from sagediff.builtin.scenes.training.score import make_reference, train_score
from sagediff.builtin.scenes.training.stages import (
    SceneStageConfig,
    train_autoencoder,
    train_encoder,
    train_judge,
    train_unet,
)
from sagediff.builtin.training.stage_command import run_stages, stage_parser

STAGES = {
    "judge": train_judge,
    "encoder": train_encoder,
    "autoencoder": train_autoencoder,
    "unet": train_unet,
    "score": train_score,
    "reference": make_reference,
    "assemble": lambda config: assemble(config.out, config.weights_folder),
}


def main(argv: list[str] | None = None) -> int:
    parser = stage_parser("sagediff.builtin.scenes.training", __doc__, list(STAGES), "runs/builtin")
    parser.add_argument(
        "--text-encoder", type=Path, metavar="DIR",
        help="score: folder with tokenizer/ and text_encoder/, such as a pipeline's (default OUT)",
    )  # fmt: skip
    return run_stages(parser, SceneStageConfig, STAGES, argv)


if __name__ == "__main__":
    sys.exit(main())
