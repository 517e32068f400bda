"""Tiny pipelines that make images from images, on denoisers of `every_image.py` and its neighbours: by the name of the
class."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    BriaFiboEditPipeline,
    HunyuanImageRefinerPipeline,
    HunyuanImageTransformer2DModel,
    Kandinsky3Img2ImgPipeline,
    Kandinsky5I2IPipeline,
    VQModel,
)

from tiny.every_image import IMAGES, kandinsky5_transformer, vae, with_masks
from tiny.every_image_forms import fibo_states, fibo_transformer
from tiny.parts import NO_TEXT, Recipe, louder
from tiny.prompted import random_image

# -- FIBO edit, HunyuanImage's refiner -------------------------------------------------------------


def _fibo_edit(scheduler: Any) -> Any:
    transformer = fibo_transformer()
    pipe: Any = BriaFiboEditPipeline(scheduler=scheduler, vae=None, transformer=transformer, **NO_TEXT)
    pipe.text_encoder = transformer  # asked for its precision
    pipe.get_prompt_embeds = lambda prompt, **options: fibo_states(
        [int(re.findall(r"-?\d+", text)[0]) for text in prompt]
    )

    def reference(**options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What its autoencoder would make of an image: four latents, and their places."""
        places = torch.tensor([[1.0, y, x] for y in range(2) for x in range(2)])
        return torch.randn((1, 4, 4), generator=torch.Generator().manual_seed(5)), places

    pipe.prepare_reference_latents = reference
    return pipe


def _fibo_edit_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    texts = [json.dumps({"edit_instruction": str(prompt)}) for prompt in prompts]
    inputs: dict[str, Any] = {"prompt": texts, "image": random_image(0), "height": 64, "width": 64}
    if guided:
        inputs["negative_prompt"] = ["-1"] * len(prompts)
    return inputs | {"guidance_scale": 4.0 if guided else 1.0}


def _refiner(scheduler: Any) -> Any:
    transformer = HunyuanImageTransformer2DModel(
        in_channels=8,  # of the noisy image, and of the one to refine
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1, 1),
        text_embed_dim=16,
        rope_axes_dim=(4, 4, 4),
        guidance_embeds=True,
    )
    return HunyuanImageRefinerPipeline(
        scheduler=scheduler, vae=None, transformer=louder(transformer.eval(), 2.0), **NO_TEXT
    )


def _refiner_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Latents of one image for all; guided never by negative rows: the scale is an input of the model."""
    inputs = with_masks(prompts, False, height=32, width=32)
    del inputs["guidance_scale"]
    noise = torch.Generator().manual_seed(5)
    return inputs | {"image": torch.randn((1, 4, 1, 2, 2), generator=noise)}


# -- Kandinsky -------------------------------------------------------------------------------------


def _kandinsky3(scheduler: Any) -> Any:
    movq = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, num_vq_embeddings=4).eval()
    unet = IMAGES["Kandinsky3Pipeline"].build(scheduler).unet
    return Kandinsky3Img2ImgPipeline(scheduler=scheduler, unet=unet, movq=movq, **NO_TEXT)


def _kandinsky3_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = IMAGES["Kandinsky3Pipeline"].inputs(prompts, guided)
    images = [random_image(0, (8, 8))] * len(prompts)
    return inputs | {"image": images, "strength": 1.0, "height": None, "width": None}


def _kandinsky5(scheduler: Any) -> Any:
    pipe = Kandinsky5I2IPipeline(
        transformer=kandinsky5_transformer(visual_cond=True),
        scheduler=scheduler,
        vae=vae(4),
        text_encoder_2=None,
        tokenizer_2=None,
        **NO_TEXT,
    )
    pipe.resolutions = [(64, 64)]
    return pipe


def _kandinsky5_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    images = [random_image(0, (64, 64))] * len(prompts)
    return IMAGES["Kandinsky5T2IPipeline"].inputs(prompts, guided) | {"image": images}


IMAGE_EDITS: dict[str, Recipe] = {
    "BriaFiboEditPipeline": Recipe(_fibo_edit, _fibo_edit_inputs, lambda transformer: transformer.x_embedder),
    "HunyuanImageRefinerPipeline": Recipe(
        _refiner, _refiner_inputs, lambda transformer: transformer.x_embedder, rows=(1, None)
    ),
    "Kandinsky3Img2ImgPipeline": Recipe(
        _kandinsky3, _kandinsky3_inputs, lambda unet: unet.conv_in, ("ddim",)
    ),
    "Kandinsky5I2IPipeline": Recipe(
        _kandinsky5, _kandinsky5_inputs, lambda transformer: transformer.visual_embeddings
    ),
}
