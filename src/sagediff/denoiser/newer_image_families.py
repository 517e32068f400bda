"""Rows of the table (`table.py`): denoisers of images, those of models of 2025 and later."""

from __future__ import annotations

from sagediff.denoiser.convention import AS_SCHEDULED, OF_ONE, Convention
from sagediff.denoiser.declared import GUIDED_IN_ONE_CALL, GUIDED_IN_TWO_CALLS, declared
from sagediff.denoiser.family import Family

NEWER_IMAGE_FAMILIES: dict[str, Family] = {
    "BriaTransformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        neither="txt_ids img_ids",
        dtype="bfloat16",
        vae_dtype="float32",
        **GUIDED_IN_ONE_CALL,
        convention=AS_SCHEDULED,
    ),
    "BriaFiboTransformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states text_encoder_layers",
        masks={"joint_attention_kwargs.attention_mask": "encoder_hidden_states text_encoder_layers"},
        neither="txt_ids img_ids",
        parts=frozenset({"text_encoder_layers"}),
        dtype="bfloat16",
        **GUIDED_IN_ONE_CALL,
    ),
    "BriaFibo2Transformer2DModel": declared(
        "hidden_states timestep context_latents",  # of images to edit, equal within a group
        "encoder_hidden_states",  # (rows, layers, tokens, ...)
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        parts=frozenset({"context_latents"}),
        token_axes={"encoder_hidden_states": 2},
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "CogView3PlusTransformer2DModel": declared(
        "hidden_states timestep original_size target_size crop_coords",
        "encoder_hidden_states",
        dtype="bfloat16",
        **GUIDED_IN_ONE_CALL,
        convention=AS_SCHEDULED,
    ),
    "Flux3Transformer2DModel": declared(  # FLUX.3; exists only as a modular pipeline
        "hidden_states timestep target_timestep image_cond_hidden_states",
        "encoder_hidden_states",
        neither="txt_ids img_ids image_cond_ids",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "ErnieImageTransformer2DModel": declared(
        "hidden_states timestep",
        "text_bth",
        lengths={"text_lens": "text_bth"},
        dtype="bfloat16",
        **GUIDED_IN_ONE_CALL,
    ),
    "GlmImageTransformer2DModel": declared(
        "hidden_states timestep target_size crop_coords prior_token_drop",
        "encoder_hidden_states",  # of text to be drawn
        discrete="prior_token_id",
        zero_padded=frozenset({"encoder_hidden_states"}),
        omitted="kv_caches",  # empty, but for images to edit, which make further calls and are refused for that
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "HiDreamImageTransformer2DModel": declared(
        "hidden_states timesteps",
        "encoder_hidden_states_t5 encoder_hidden_states_llama3 pooled_embeds",
        axes={"encoder_hidden_states_llama3": 1},  # (layers, rows, tokens, ...)
        dtype="bfloat16",
        **GUIDED_IN_ONE_CALL,
    ),
    "HunyuanImageTransformer2DModel": declared(
        "hidden_states timestep timestep_r guidance",
        "encoder_hidden_states encoder_hidden_states_2",
        masks={
            "encoder_attention_mask": "encoder_hidden_states",
            "encoder_attention_mask_2": "encoder_hidden_states_2",
        },
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=AS_SCHEDULED,
    ),
    "Ideogram4Transformer2DModel": declared(  # one for the conditional call, one for the negative
        "hidden_states timestep",
        "encoder_hidden_states",
        discrete="position_ids segment_ids indicator",  # they differ with the prompt's length
        text_first=True,
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "JoyImageEditTransformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        zero_padded=frozenset({"encoder_hidden_states"}),  # its pipeline keeps the mask to itself
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=AS_SCHEDULED,
    ),
    "JoyImageEditPlusTransformer3DModel": declared(
        "hidden_states timestep shape_list",
        "encoder_hidden_states",
        masks={"encoder_hidden_states_mask": "encoder_hidden_states"},
        lists=frozenset({"shape_list"}),
        dtype="bfloat16",
        **GUIDED_IN_ONE_CALL,
        convention=AS_SCHEDULED,
    ),
    "Kandinsky3UNet": declared(
        "sample timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        unguided_scale=0.0,
        **GUIDED_IN_ONE_CALL,
        convention=AS_SCHEDULED,
    ),
    "Kandinsky5Transformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states pooled_projections",
        neither="visual_rope_pos text_rope_pos scale_factor",
        pipelines={
            "Kandinsky5T2VPipeline": {"makes": "videos", "fps": 24.0, "convention": None},
            "Kandinsky5I2VPipeline": {"makes": "videos", "fps": 24.0, "convention": None},
        },
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=AS_SCHEDULED,
    ),
    "Krea2Transformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        neither="position_ids",
        unguided_scale=0.0,
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=OF_ONE,
    ),
    "LongCatImageTransformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        neither="txt_ids img_ids",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=OF_ONE,
    ),
    "LuminaNextDiT2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_mask": "encoder_hidden_states"},
        neither="image_rotary_emb",
        dtype="bfloat16",
        guidance="batched",
        first="conditional",
        convention=Convention("1 - t / T", negated=True, with_variance=True),
    ),
    "NucleusMoEImageTransformer2DModel": declared(
        "hidden_states timestep img_shapes",
        "encoder_hidden_states",
        masks={"encoder_hidden_states_mask": "encoder_hidden_states"},
        lists=frozenset({"img_shapes"}),
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=Convention("t / T", negated=True),
    ),
    "OmniGenTransformer2DModel": declared(
        "hidden_states timestep",
        "",
        discrete="input_ids attention_mask position_ids",
        dtype="bfloat16",
        guidance="batched",
        first="conditional",
    ),
    "OvisImageTransformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        zero_padded=frozenset({"encoder_hidden_states"}),
        neither="txt_ids img_ids",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=OF_ONE,
    ),
    "PRXTransformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"attention_mask": "encoder_hidden_states"},
        dtype="bfloat16",
        **GUIDED_IN_ONE_CALL,
    ),
    "PriorTransformer": declared(  # Kandinsky's: an image's embedding from texts
        "hidden_states timestep",
        "proj_embedding encoder_hidden_states",
        masks={"attention_mask": "encoder_hidden_states"},
        predictions={"predicted_image_embedding": "hidden_states"},
        **GUIDED_IN_ONE_CALL,
    ),
    "QwenImage21Transformer2DModel": declared(
        "hidden_states timestep img_shapes img_mask",
        "encoder_hidden_states",
        masks={"encoder_hidden_states_mask": "encoder_hidden_states"},
        lists=frozenset({"img_shapes"}),
        omitted="kv_cache kv_cache_mode",  # of the text's keys: saves no more than they take to compute
        scale="true_cfg_scale",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=Convention("t / T", text_first=True),
    ),
}
