"""`python -m sagediff.builtin.emoji.training STAGE --out DIR [--resume]`: run one stage, or all of them in turn."""

from __future__ import annotations

import sys
from pathlib import Path

from sagediff.builtin.emoji.artwork import SPLITS
from sagediff.builtin.emoji.npm_packages import VENDORS
from sagediff.builtin.emoji.training.emoji_pipeline import assemble_emoji
from sagediff.builtin.emoji.training.emoji_stage import EmojiStageConfig, draw_data
from sagediff.builtin.emoji.training.flow_unet import train_unet
from sagediff.builtin.emoji.training.latent_cache import cache_latents
from sagediff.builtin.emoji.training.latents import train_autoencoder, train_decoder
from sagediff.builtin.emoji.training.naming_stage import make_reference, train_naming
from sagediff.builtin.training.stage_command import run_stages, stage_parser

STAGES = {
    "data": draw_data,
    "autoencoder": train_autoencoder,
    "latents": cache_latents,
    "unet": train_unet,
    "decoder": train_decoder,
    "naming": train_naming,
    "reference": make_reference,
    "assemble": assemble_emoji,
}


def main(argv: list[str] | None = None) -> int:
    parser = stage_parser("sagediff.builtin.emoji.training", __doc__, list(STAGES), "runs/emoji")
    parser.add_argument(
        "--vendors", nargs="+", choices=list(VENDORS),
        help="whose artwork (default: all in `data` and `naming`, the three flat ones in `latents` and `unet`)",
    )  # fmt: skip
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=SPLITS, help="data: what to draw (default: all)"
    )
    parser.add_argument(
        "--backgrounds", type=int,
        help="images of each drawing, the first on white (default: 3 in `data`, 2 in `latents` and `unet`)",
    )  # fmt: skip
    parser.add_argument(
        "--captions", type=int, nargs="+", default=(0,), help="latents: numbers of the files of captions"
    )
    parser.add_argument("--only-captions", action="store_true", help="latents: leave those as they are")
    parser.add_argument("--start", type=Path, help="autoencoder: folder to start from (default: the demo's)")
    parser.add_argument("--cooldown", type=int, default=0, help="unet: last steps, of falling learning rate")
    parser.add_argument("--report-every", type=int, default=1000, help="unet, naming: steps between figures")
    parser.add_argument("--sheet-every", type=int, default=1000, help="unet: steps between sheets of samples")
    return run_stages(parser, EmojiStageConfig, STAGES, argv)


if __name__ == "__main__":
    sys.exit(main())
