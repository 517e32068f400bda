"""The table of denoiser classes: the one place that knows a model's particulars.

How to add a model family: put one `Family` under the denoiser's class name into `FAMILIES`.  Go through the
parameters of its `forward` and name every tensor:

    row        one entry per sample (latents, timesteps, sizes); equal among members, the first's is taken
    condition  what differs between prompts; merged over the members by the group condition
    mask       belongs to a condition; merged with it
    neither    has no row for each sample, even if its size equals the batch's by chance (FLUX: `txt_ids`)

Entries of a dictionary argument are named with a dot (`added_cond_kwargs.text_embeds`).  Nothing is guessed
from shapes: a tensor that is not named here is refused.  Then read the loop of its pipeline: how guidance
runs, what comes first, how prompts of different length are padded, and in its documented example which half
precision it runs in.  Last, add a tiny pipeline of it to the tests (`tests/tiny/families.py`): the exactness
tests do the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sagediff.denoiser.family import Family, Role

GUIDED_IN_ONE_CALL: dict[str, Any] = {"guidance": "batched", "first": "negative"}
GUIDED_IN_TWO_CALLS: dict[str, Any] = {"guidance": "two calls", "first": "conditional"}


def _family(
    rows: str, conditions: str, *, masks: Mapping[str, str] | None = None, neither: str = "", **more: Any
) -> Family:
    """A `Family` from names with spaces between them; the first row is the noisy latents."""
    masks = masks or {}
    roles: dict[str, Role] = {
        **dict.fromkeys(rows.split(), "row"),
        **dict.fromkeys(conditions.split(), "condition"),
        **dict.fromkeys(masks, "mask"),
        **dict.fromkeys(neither.split(), "neither"),
    }
    return Family(sample=rows.split()[0], arguments=roles, masks=masks, **more)


FAMILIES: dict[str, Family] = {
    "UNet2DConditionModel": _family(  # Stable Diffusion 1 and 2, SDXL, Kandinsky 2.2
        "sample timestep class_labels timestep_cond added_cond_kwargs.time_ids",
        "encoder_hidden_states added_cond_kwargs.text_embeds "
        "added_cond_kwargs.image_embeds "  # Kandinsky's; a list with one for each IP-Adapter
        "down_block_additional_residuals mid_block_additional_residual",  # ControlNet's: it has read each prompt
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        parts=frozenset({"added_cond_kwargs.image_embeds", "down_block_additional_residuals"}),
        **GUIDED_IN_ONE_CALL,
    ),
    "SD3Transformer2DModel": _family(
        "hidden_states timestep",
        "encoder_hidden_states pooled_projections",
        **GUIDED_IN_ONE_CALL,
    ),
    "FluxTransformer2DModel": _family(
        "hidden_states timestep guidance",
        "encoder_hidden_states pooled_projections",
        neither="txt_ids img_ids",
        scale="true_cfg_scale",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "Flux2Transformer2DModel": _family(  # FLUX.2 (never a second call) and Klein
        "hidden_states timestep guidance txt_ids img_ids",
        "encoder_hidden_states",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "PixArtTransformer2DModel": _family(  # PixArt-alpha and -Sigma
        "hidden_states timestep added_cond_kwargs.resolution added_cond_kwargs.aspect_ratio",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        **GUIDED_IN_ONE_CALL,
    ),
    "SanaTransformer2DModel": _family(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        dtype="bfloat16",
        vae_dtype="float32",
        **GUIDED_IN_ONE_CALL,
    ),
    "AuraFlowTransformer2DModel": _family(
        "hidden_states timestep",
        "encoder_hidden_states",
        zero_padded=frozenset({"encoder_hidden_states"}),
        **GUIDED_IN_ONE_CALL,
    ),
    "ChromaTransformer2DModel": _family(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"attention_mask": "encoder_hidden_states"},  # of the text's tokens, then the image's
        neither="txt_ids img_ids",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "CogView4Transformer2DModel": _family(
        "hidden_states timestep original_size target_size crop_coords",
        "encoder_hidden_states",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "HunyuanDiT2DModel": _family(
        "hidden_states timestep image_meta_size style",
        "encoder_hidden_states encoder_hidden_states_t5",
        masks={
            "text_embedding_mask": "encoder_hidden_states",
            "text_embedding_mask_t5": "encoder_hidden_states_t5",
        },
        neither="image_rotary_emb",
        **GUIDED_IN_ONE_CALL,
    ),
    "Lumina2Transformer2DModel": _family(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "QwenImageTransformer2DModel": _family(
        "hidden_states timestep guidance img_shapes",
        "encoder_hidden_states",
        masks={"encoder_hidden_states_mask": "encoder_hidden_states"},
        lists=frozenset({"img_shapes"}),
        scale="true_cfg_scale",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "ZImageTransformer2DModel": _family(
        "x t",
        "cap_feats",
        lists=frozenset({"cap_feats", "x"}),
        unguided_scale=0.0,
        guidance="batched",
        first="conditional",
        dtype="bfloat16",
    ),
    "WanTransformer3DModel": _family(
        "hidden_states timestep encoder_hidden_states_image",  # the image is equal within a group
        "encoder_hidden_states",
        zero_padded=frozenset({"encoder_hidden_states"}),
        makes="videos",
        dtype="bfloat16",
        vae_dtype="float32",
        **GUIDED_IN_TWO_CALLS,
    ),
    "LTXVideoTransformer3DModel": _family(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        makes="videos",
        dtype="bfloat16",
        **GUIDED_IN_ONE_CALL,
    ),
}
