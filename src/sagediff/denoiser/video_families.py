"""Rows of the table (`table.py`): denoisers of videos."""

from __future__ import annotations

from typing import Any

from sagediff.denoiser.convention import AS_SCHEDULED, WITH_VARIANCE
from sagediff.denoiser.declared import GUIDED_IN_ONE_CALL, GUIDED_IN_TWO_CALLS, declared
from sagediff.denoiser.family import Family

_ONE_CALL: dict[str, Any] = {"makes": "videos", "dtype": "bfloat16", **GUIDED_IN_ONE_CALL}
_TWO_CALLS: dict[str, Any] = {"makes": "videos", "dtype": "bfloat16", **GUIDED_IN_TWO_CALLS}
_PADDED_WITH_ZEROS = frozenset({"encoder_hidden_states"})

VIDEO_FAMILIES: dict[str, Family] = {
    "WanTransformer3DModel": declared(
        "hidden_states timestep encoder_hidden_states_image",  # the image is equal within a group
        "encoder_hidden_states",
        zero_padded=_PADDED_WITH_ZEROS,
        vae_dtype="float32",
        **_TWO_CALLS,
        convention=AS_SCHEDULED,
    ),
    "SkyReelsV2Transformer3DModel": declared(
        "hidden_states timestep encoder_hidden_states_image",
        "encoder_hidden_states",
        zero_padded=_PADDED_WITH_ZEROS,
        fps=24.0,
        vae_dtype="float32",
        **_TWO_CALLS,
        convention=AS_SCHEDULED,
    ),
    "ChronoEditTransformer3DModel": declared(
        "hidden_states timestep encoder_hidden_states_image",
        "encoder_hidden_states",
        zero_padded=_PADDED_WITH_ZEROS,
        vae_dtype="float32",
        **_TWO_CALLS,
    ),
    "LTXVideoTransformer3DModel": declared(
        "hidden_states timestep video_coords",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        **_ONE_CALL,
        convention=AS_SCHEDULED,
    ),
    "HunyuanVideoTransformer3DModel": declared(
        "hidden_states timestep guidance",
        "encoder_hidden_states pooled_projections",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        scale="true_cfg_scale",
        fps=15.0,
        **_TWO_CALLS,
        convention=AS_SCHEDULED,
    ),
    "HunyuanVideo15Transformer3DModel": declared(
        "hidden_states timestep image_embeds",
        "encoder_hidden_states encoder_hidden_states_2",
        masks={
            "encoder_attention_mask": "encoder_hidden_states",
            "encoder_attention_mask_2": "encoder_hidden_states_2",
        },
        makes="videos",
        fps=15.0,
        dtype="float16",
        **GUIDED_IN_TWO_CALLS,
    ),
    "CogVideoXTransformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        neither="image_rotary_emb",
        fps=8.0,
        **_ONE_CALL,
        convention=AS_SCHEDULED,
    ),
    "MochiTransformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        fps=30.0,
        **_ONE_CALL,
    ),
    "SanaVideoTransformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        vae_dtype="float32",
        **_ONE_CALL,
        convention=WITH_VARIANCE,
    ),
    "AllegroTransformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        neither="image_rotary_emb",
        fps=15.0,
        vae_dtype="float32",
        **_ONE_CALL,
    ),
    "LatteTransformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        zero_padded=_PADDED_WITH_ZEROS,
        makes="videos",
        fps=8.0,
        **GUIDED_IN_ONE_CALL,
        convention=WITH_VARIANCE,
    ),
    "EasyAnimateTransformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        makes="videos",
        fps=8.0,
        **GUIDED_IN_ONE_CALL,
        convention=WITH_VARIANCE,
    ),
    "MotifVideoTransformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        fps=24.0,
        **_TWO_CALLS,
    ),
    "AnyFlowTransformer3DModel": declared(
        "hidden_states timestep r_timestep",
        "encoder_hidden_states",
        zero_padded=_PADDED_WITH_ZEROS,
        **_ONE_CALL,
    ),
    "ConsisIDTransformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        neither="image_rotary_emb",
        fps=8.0,
        **_ONE_CALL,
    ),
    "CosmosTransformer3DModel": declared(
        "hidden_states timestep condition_mask",
        "encoder_hidden_states",
        neither="padding_mask",
        zero_padded=_PADDED_WITH_ZEROS,
        unguided_scale=0.0,  # c + s (c - u); its pipelines leave guidance out up to 1
        pipelines={"Cosmos2TextToImagePipeline": {"makes": "images"}},
        **_TWO_CALLS,
    ),
}
"""The frames per second, and the half precisions, are those of the documented examples."""
