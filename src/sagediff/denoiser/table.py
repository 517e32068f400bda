"""The table of denoiser classes: the one place that knows a model's particulars.

How to add a model family: put one `Family` under the denoiser's class name into `FAMILIES`.  Go through the
parameters of its `forward` and name every tensor:

    row        one entry per sample (latents, timesteps, sizes); equal among members, the first's is taken
    condition  what differs between prompts; merged over the members by the group condition
    mask       belongs to a condition; merged with it
    neither    has no row for each sample, even if its size equals the batch's by chance (FLUX: `txt_ids`)

Entries of a dictionary argument are named with a dot (`added_cond_kwargs.text_embeds`).  Nothing is guessed
from shapes: a tensor that is not named here is refused.  Then read the loop of its pipeline: how guidance
runs, what comes first, how prompts of different length are padded.  Last, add a tiny pipeline of it to the
tests (`tests/tiny/families.py`): the exactness tests do the rest.
"""

from __future__ import annotations

from sagediff.denoiser.family import Family

FAMILIES: dict[str, Family] = {
    "UNet2DConditionModel": Family(  # Stable Diffusion 1 and 2, SDXL, Kandinsky 2.2
        sample="sample",
        arguments={
            "sample": "row",
            "timestep": "row",
            "class_labels": "row",
            "timestep_cond": "row",
            "encoder_hidden_states": "condition",
            "encoder_attention_mask": "mask",
            "added_cond_kwargs.text_embeds": "condition",
            "added_cond_kwargs.time_ids": "row",
            "added_cond_kwargs.image_embeds": "condition",  # Kandinsky's; a list with one for each IP-Adapter
            "down_block_additional_residuals": "condition",  # ControlNet's: it has read each member's prompt
            "mid_block_additional_residual": "condition",
        },
        guidance="batched",
        first="negative",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        parts=frozenset({"added_cond_kwargs.image_embeds", "down_block_additional_residuals"}),
    ),
    "SD3Transformer2DModel": Family(
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "encoder_hidden_states": "condition",
            "pooled_projections": "condition",
        },
        guidance="batched",
        first="negative",
    ),
    "FluxTransformer2DModel": Family(
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "guidance": "row",
            "encoder_hidden_states": "condition",
            "pooled_projections": "condition",
            "txt_ids": "neither",
            "img_ids": "neither",
        },
        guidance="two calls",
        first="conditional",
        scale="true_cfg_scale",
    ),
    "Flux2Transformer2DModel": Family(  # FLUX.2 (never a second call) and Klein
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "guidance": "row",
            "encoder_hidden_states": "condition",
            "txt_ids": "row",
            "img_ids": "row",
        },
        guidance="two calls",
        first="conditional",
    ),
    "PixArtTransformer2DModel": Family(  # PixArt-alpha and -Sigma
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "encoder_hidden_states": "condition",
            "encoder_attention_mask": "mask",
            "added_cond_kwargs.resolution": "row",
            "added_cond_kwargs.aspect_ratio": "row",
        },
        guidance="batched",
        first="negative",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
    ),
    "SanaTransformer2DModel": Family(
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "encoder_hidden_states": "condition",
            "encoder_attention_mask": "mask",
        },
        guidance="batched",
        first="negative",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
    ),
    "AuraFlowTransformer2DModel": Family(
        sample="hidden_states",
        arguments={"hidden_states": "row", "timestep": "row", "encoder_hidden_states": "condition"},
        guidance="batched",
        first="negative",
        zero_padded=frozenset({"encoder_hidden_states"}),
    ),
    "ChromaTransformer2DModel": Family(
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "encoder_hidden_states": "condition",
            "attention_mask": "mask",  # of the text's tokens, then the image's
            "txt_ids": "neither",
            "img_ids": "neither",
        },
        guidance="two calls",
        first="conditional",
        masks={"attention_mask": "encoder_hidden_states"},
    ),
    "CogView4Transformer2DModel": Family(
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "encoder_hidden_states": "condition",
            "original_size": "row",
            "target_size": "row",
            "crop_coords": "row",
        },
        guidance="two calls",
        first="conditional",
    ),
    "HunyuanDiT2DModel": Family(
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "encoder_hidden_states": "condition",
            "text_embedding_mask": "mask",
            "encoder_hidden_states_t5": "condition",
            "text_embedding_mask_t5": "mask",
            "image_meta_size": "row",
            "style": "row",
            "image_rotary_emb": "neither",
        },
        guidance="batched",
        first="negative",
        masks={
            "text_embedding_mask": "encoder_hidden_states",
            "text_embedding_mask_t5": "encoder_hidden_states_t5",
        },
    ),
    "Lumina2Transformer2DModel": Family(
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "encoder_hidden_states": "condition",
            "encoder_attention_mask": "mask",
        },
        guidance="two calls",
        first="conditional",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
    ),
    "QwenImageTransformer2DModel": Family(
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "guidance": "row",
            "encoder_hidden_states": "condition",
            "encoder_hidden_states_mask": "mask",
            "img_shapes": "row",
        },
        guidance="two calls",
        first="conditional",
        masks={"encoder_hidden_states_mask": "encoder_hidden_states"},
        lists=frozenset({"img_shapes"}),
        scale="true_cfg_scale",
    ),
    "ZImageTransformer2DModel": Family(
        sample="x",
        arguments={"x": "row", "t": "row", "cap_feats": "condition"},
        guidance="batched",
        first="conditional",
        lists=frozenset({"x", "cap_feats"}),
        unguided_scale=0.0,
    ),
    "WanTransformer3DModel": Family(
        sample="hidden_states",
        arguments={"hidden_states": "row", "timestep": "row", "encoder_hidden_states": "condition"},
        guidance="two calls",
        first="conditional",
        zero_padded=frozenset({"encoder_hidden_states"}),
        makes="videos",
    ),
    "LTXVideoTransformer3DModel": Family(
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "encoder_hidden_states": "condition",
            "encoder_attention_mask": "mask",
        },
        guidance="batched",
        first="negative",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        makes="videos",
    ),
}
