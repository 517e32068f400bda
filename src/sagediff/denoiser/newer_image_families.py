"""Rows of the table (`table.py`): denoisers of images, those of models of 2025 and later."""

from __future__ import annotations

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
    ),
    "CogView3PlusTransformer2DModel": declared(
        "hidden_states timestep original_size target_size crop_coords",
        "encoder_hidden_states",
        dtype="bfloat16",
        **GUIDED_IN_ONE_CALL,
    ),
    "Flux3Transformer2DModel": declared(  # FLUX.3; exists only as a modular pipeline
        "hidden_states timestep target_timestep image_cond_hidden_states",
        "encoder_hidden_states",
        neither="txt_ids img_ids image_cond_ids",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
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
    ),
    "JoyImageEditTransformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        zero_padded=frozenset({"encoder_hidden_states"}),  # its pipeline keeps the mask to itself
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "JoyImageEditPlusTransformer3DModel": declared(
        "hidden_states timestep shape_list",
        "encoder_hidden_states",
        masks={"encoder_hidden_states_mask": "encoder_hidden_states"},
        lists=frozenset({"shape_list"}),
        dtype="bfloat16",
        **GUIDED_IN_ONE_CALL,
    ),
    "Kandinsky3UNet": declared(
        "sample timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        unguided_scale=0.0,
        **GUIDED_IN_ONE_CALL,
    ),
    "Kandinsky5Transformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states pooled_projections",
        neither="visual_rope_pos text_rope_pos scale_factor",
        pipelines={
            "Kandinsky5T2VPipeline": {"makes": "videos", "fps": 24.0},
            "Kandinsky5I2VPipeline": {"makes": "videos", "fps": 24.0},
        },
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "Krea2Transformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        neither="position_ids",
        unguided_scale=0.0,
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "LongCatImageTransformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        neither="txt_ids img_ids",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "LuminaNextDiT2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_mask": "encoder_hidden_states"},
        neither="image_rotary_emb",
        dtype="bfloat16",
        guidance="batched",
        first="conditional",
    ),
    "NucleusMoEImageTransformer2DModel": declared(
        "hidden_states timestep img_shapes",
        "encoder_hidden_states",
        masks={"encoder_hidden_states_mask": "encoder_hidden_states"},
        lists=frozenset({"img_shapes"}),
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "OvisImageTransformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        zero_padded=frozenset({"encoder_hidden_states"}),
        neither="txt_ids img_ids",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
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
    ),
}
