"""The emoji model's parts as one `StableDiffusionPipeline` whose text encoder is a `BertModel`, and its folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from sagediff.builtin.emoji.emoji_perception import REFERENCE
from sagediff.builtin.emoji.naming_tower import FILE
from sagediff.builtin.emoji.npm_packages import VENDORS
from sagediff.builtin.training.pipeline_folder import write_pipeline
from sagediff.builtin.training.stage_command import StageConfig, require
from sagediff.files.atomic import write_text
from sagediff.pipelines.sentence_encoder import load_encoder, load_tokenizer

TEXT_PARTS = ("tokenizer", "text_encoder")
DEFAULTS = {
    "guidance_scale": 3.5
}  # the command line's for this model; the others are measured on finished weights


def new_scheduler() -> DPMSolverMultistepScheduler:
    """The solver, for flow matching. Stable Diffusion's pipeline takes no FlowMatchEulerDiscreteScheduler."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, final_sigmas_type="zero",
        steps_offset=1,
    )  # fmt: skip


def new_pipeline(
    unet: UNet2DConditionModel, vae: AutoencoderKL, tokenizer: Any, encoder: Any
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=new_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def assemble_emoji(config: StageConfig) -> Path:
    """OUT/vae and OUT/unet as WEIGHTS/pipeline, and beside it what there is of the judge.

    The text parts stay in their package.
    """
    require(config.out, ("vae", "unet"), "the stages `autoencoder` and `unet` write it")
    vae = AutoencoderKL.from_pretrained(config.out / "vae")
    unet = UNet2DConditionModel.from_pretrained(config.out / "unet")
    pipe = new_pipeline(unet, vae, load_tokenizer(), load_encoder())
    judge = config.weights_folder / "judge"
    judge.mkdir(parents=True, exist_ok=True)
    for name in filter(lambda name: (config.out / name).is_file(), (FILE, REFERENCE)):
        shutil.copyfile(config.out / name, judge / name)
    folder = write_pipeline(pipe, config.weights_folder / "pipeline", DEFAULTS, elsewhere=TEXT_PARTS)
    write_text(config.weights_folder / "README.md", attribution())
    return folder


def attribution() -> str:
    """Who drew what the weights were trained on; CC BY 4.0 asks that it goes where they go."""
    drawn = "".join(f"- {vendor.credit} ({vendor.licence}): {vendor.words}\n" for vendor in VENDORS.values())
    return f"""# Weights trained on the artwork of others

{drawn}
The artwork was drawn at 64 x 64 pixels on plain backgrounds, and in training mirrored, recoloured, moved and blurred.
The autoencoder and the judge have seen all five sets, the denoiser the flat ones.
CC-BY-4.0: https://creativecommons.org/licenses/by/4.0/
"""
