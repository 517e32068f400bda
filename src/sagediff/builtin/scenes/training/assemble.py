"""Put the trained stages together: a diffusers folder in half precision, and its evaluation networks beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from sagediff.builtin.scenes.tokenizer import MAX_LENGTH
from sagediff.builtin.scenes.training.stages import PREDICTION, SCHEDULE
from sagediff.builtin.training.pipeline_folder import write_pipeline

# the command line's defaults for this model, measured by benchmarks/sharing.py. The scheduler spends more of its
# steps at high noise, where sharing costs no quality, but needs enough of them
DEFAULTS = {
    "threshold": 0.45,
    "share_ratio": 0.3,
    "guidance_scale": 4.0,
    "shared_guidance": 1.0,
    "scheduler": {"name": "dpm++-beta", "least_steps": 20},
}


def assemble(stages: Path, weights: Path) -> Path:
    """`stages` holds the outputs of every stage; writes `weights/pipeline` and `weights/judge`."""
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(stages / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(stages / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(stages / "tokenizer", model_max_length=MAX_LENGTH),
        unet=UNet2DConditionModel.from_pretrained(stages / "unet"),
        scheduler=DPMSolverMultistepScheduler(
            **SCHEDULE, prediction_type=PREDICTION, timestep_spacing="trailing", final_sigmas_type="zero"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = write_pipeline(pipe, weights / "pipeline", DEFAULTS)
    judge = weights / "judge"
    judge.mkdir(parents=True, exist_ok=True)
    for name in ("judge", "score_tower", "reference"):
        shutil.copyfile(stages / f"{name}.safetensors", judge / f"{name}.safetensors")
    return folder
