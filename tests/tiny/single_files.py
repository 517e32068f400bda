"""Pipelines as the single files that other tools write: tensors named as in the code that the models came with."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def single_file(pipe: Any) -> Tensors:
    """Denoiser, autoencoder and text encoders of a Stable Diffusion or SDXL pipeline in one."""
    made = unet_tensors(pipe.unet) | {f"first_stage_model.{n}": t for n, t in vae_tensors(pipe.vae).items()}
    second = getattr(pipe, "text_encoder_2", None)
    first = "cond_stage_model.transformer." if second is None else "conditioner.embedders.0.transformer."
    for name, tensor in pipe.text_encoder.state_dict().items():
        made[f"{first}text_model.{name.removeprefix('text_model.')}"] = tensor
    if second is not None:
        made |= {f"conditioner.embedders.1.model.{n}": t for n, t in _open_clip(second).items()}
    return {name: tensor.detach().clone().contiguous() for name, tensor in made.items()}


def unet_tensors(unet: Any) -> Tensors:
    """Of a `UNet2DConditionModel`."""
    layers = unet.config.layers_per_block
    made = {}
    for name, tensor in unet.state_dict().items():
        top = next((old for old in _TOP if name.startswith(f"{old}.")), None)
        if top is not None:
            new = name.replace(top, _TOP[top], 1)
        else:
            block, number, kind, place, rest = re.fullmatch(
                r"(down_blocks|up_blocks|mid_block)\.?(\d+)?\.(\w+?)\.(\d+)\.(.+)", name
            ).groups()  # type: ignore[union-attr]
            if kind == "resnets":
                own, _, end = rest.partition(".")
                rest = f"{_RESNET[own]}.{end}"
            new = f"{_unet_block(unet, block, int(number or 0), kind, int(place), layers)}.{rest}"
            new = new.replace(".0.conv.", ".0.op.") if kind == "downsamplers" else new
        made[f"model.diffusion_model.{new}"] = tensor
    return made


def _unet_block(unet: Any, block: str, number: int, kind: str, place: int, layers: int) -> str:
    if block == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * place}"
    if kind == "downsamplers":
        return f"input_blocks.{(number + 1) * (layers + 1)}.0"
    if kind == "upsamplers":
        has_attention = hasattr(unet.up_blocks[number], "attentions")
        return f"output_blocks.{number * (layers + 1) + layers}.{2 if has_attention else 1}"
    side = int(kind == "attentions")
    if block == "down_blocks":
        return f"input_blocks.{1 + number * (layers + 1) + place}.{side}"
    return f"output_blocks.{number * (layers + 1) + place}.{side}"


def vae_tensors(vae: Any) -> Tensors:
    """Of an `AutoencoderKL`, as its own single file has them."""
    levels = len(vae.config.block_out_channels)
    made = {}
    for name, tensor in vae.state_dict().items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{levels - 1 - int(found[1])}", new)
        new = re.sub(r"(up\.\d)\.resnets\.(\d)", r"\1.block.\2", new)
        new = re.sub(r"(up\.\d)\.upsamplers\.0", r"\1.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", new)
        if "mid_block.attentions.0" in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1")
            for theirs, ours in {"group_norm": "norm", "to_out.0": "proj_out"}.items():
                new = new.replace(theirs, ours)
            new = re.sub(r"to_([qkv])\.", r"\1.", new)
            if new.endswith("weight") and ".norm." not in new:
                tensor = tensor[..., None, None]
        made[new] = tensor
    return made


def _open_clip(encoder: Any) -> Tensors:
    """Of a `CLIPTextModelWithProjection`."""
    own = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    names = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
    }  # fmt: skip
    made = {names[name]: tensor for name, tensor in own.items() if name in names}
    made["text_projection"] = own["text_projection.weight"].T
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    inside |= {"self_attn.out_proj": "attn.out_proj"}
    for name, tensor in own.items():
        if not name.startswith("encoder.layers."):
            continue
        new = name.replace("encoder.layers", "transformer.resblocks")
        for theirs, ours in inside.items():
            new = new.replace(theirs, ours)
        if "self_attn.q_proj" in new:
            parts = [own[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            made[re.sub(r"self_attn\.q_proj\.(\w+)", r"attn.in_proj_\1", new)] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", new):
            made[new] = tensor
    return made
