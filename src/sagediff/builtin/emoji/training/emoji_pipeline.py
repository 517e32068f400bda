"""`python -m sagediff.builtin.emoji.assemble`: the trained parts as a diffusers pipeline, in half precision.

A plain `StableDiffusionPipeline` whose text encoder is a `BertModel`: `DiffusionPipeline.from_pretrained` loads it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import BertModel, BertTokenizerFast

from sagediff.builtin.emoji.checkpoint import part
from sagediff.builtin.emoji.denoisers import new_unet
from sagediff.builtin.emoji.flow import new_scheduler
from sagediff.builtin.emoji.text import load_encoder, unpack_encoder


def new_pipeline(
    unet: UNet2DConditionModel, vae: AutoencoderKL, tokenizer: BertTokenizerFast, encoder: BertModel
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=new_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def averaged_unet(checkpoint: Path) -> UNet2DConditionModel:
    """The averaged weights of a training run's checkpoint."""
    unet = new_unet()
    unet.load_state_dict(part(load_file(checkpoint), "average."))
    return unet


def assemble(checkpoint: Path, vae: Path, encoder: Path, out: Path) -> Path:
    """Write the pipeline's folder; an older one is replaced when the new one is whole."""
    tokenizer, text = load_encoder(encoder)
    pipe = new_pipeline(averaged_unet(checkpoint), AutoencoderKL.from_pretrained(vae), tokenizer, text)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.to(dtype=torch.float16)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipe.save_pretrained(partial, safe_serialization=True)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sagediff.builtin.emoji.assemble", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument(
        "--encoder", type=Path, required=True, help="folder for the unpacked sentence encoder"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    print(assemble(args.checkpoint, args.vae, unpack_encoder(args.encoder), args.out), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
