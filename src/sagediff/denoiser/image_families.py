"""Rows of the table (`table.py`): denoisers of images."""

from __future__ import annotations

from sagediff.denoiser.convention import AS_SCHEDULED, FROM_NOISE, OF_ONE, WITH_VARIANCE, Convention
from sagediff.denoiser.declared import GUIDED_IN_ONE_CALL, GUIDED_IN_TWO_CALLS, declared
from sagediff.denoiser.family import Family

IMAGE_FAMILIES: dict[str, Family] = {
    "UNet2DConditionModel": declared(  # Stable Diffusion 1 and 2, SDXL, Kandinsky 2.2
        "sample timestep class_labels timestep_cond added_cond_kwargs.time_ids "
        "added_cond_kwargs.hint "  # Kandinsky's control image
        "down_intrablock_additional_residuals",  # T2I-Adapter's: it has read the image alone
        "encoder_hidden_states added_cond_kwargs.text_embeds "
        "added_cond_kwargs.image_embeds "  # Kandinsky's; a list with one for each IP-Adapter
        "down_block_additional_residuals mid_block_additional_residual",  # ControlNet's: it has read each prompt
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        neither="cross_attention_kwargs.ip_adapter_masks",  # one for all prompts, of each IP-Adapter
        parts=frozenset(
            {
                "added_cond_kwargs.image_embeds",
                "down_block_additional_residuals",
                "down_intrablock_additional_residuals",
            }
        ),
        pipelines={  # where those hold what was read of a text or an image, not a noise level or a scale
            "StableDiffusionLatentUpscalePipeline": {"arguments": {"timestep_cond": "condition"}},
            "StableUnCLIPImg2ImgPipeline": {"arguments": {"class_labels": "condition"}},
            "StableUnCLIPPipeline": {"arguments": {"class_labels": "condition"}},
        },
        **GUIDED_IN_ONE_CALL,
        convention=WITH_VARIANCE,
    ),
    "SD3Transformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states pooled_projections block_controlnet_hidden_states",
        neither="skip_layers",
        parts=frozenset({"block_controlnet_hidden_states"}),
        **GUIDED_IN_ONE_CALL,
        convention=AS_SCHEDULED,
    ),
    "FluxTransformer2DModel": declared(
        "hidden_states timestep guidance",
        "encoder_hidden_states pooled_projections controlnet_block_samples controlnet_single_block_samples "
        "joint_attention_kwargs.ip_adapter_image_embeds",
        neither="txt_ids img_ids",
        parts=frozenset(
            {
                "controlnet_block_samples",
                "controlnet_single_block_samples",
                "joint_attention_kwargs.ip_adapter_image_embeds",
            }
        ),
        scale="true_cfg_scale",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=OF_ONE,
    ),
    "Flux2Transformer2DModel": declared(  # FLUX.2 (never a second call) and Klein
        "hidden_states timestep guidance txt_ids img_ids",
        "encoder_hidden_states",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=OF_ONE,
    ),
    "PixArtTransformer2DModel": declared(  # PixArt-alpha and -Sigma
        "hidden_states timestep added_cond_kwargs.resolution added_cond_kwargs.aspect_ratio",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        **GUIDED_IN_ONE_CALL,
        convention=WITH_VARIANCE,
    ),
    "SanaTransformer2DModel": declared(
        "hidden_states timestep guidance",
        "encoder_hidden_states controlnet_block_samples",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        parts=frozenset({"controlnet_block_samples"}),
        dtype="bfloat16",
        vae_dtype="float32",
        **GUIDED_IN_ONE_CALL,
        convention=Convention("t * timestep_scale", with_variance=True),
    ),
    "AuraFlowTransformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        zero_padded=frozenset({"encoder_hidden_states"}),
        **GUIDED_IN_ONE_CALL,
        convention=OF_ONE,
    ),
    "ChromaTransformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"attention_mask": "encoder_hidden_states"},  # of the text's tokens, then the image's
        neither="txt_ids img_ids",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=OF_ONE,
    ),
    "CogView4Transformer2DModel": declared(
        "hidden_states timestep original_size target_size crop_coords",
        "encoder_hidden_states",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=AS_SCHEDULED,
    ),
    "HunyuanDiT2DModel": declared(
        "hidden_states timestep image_meta_size style",
        "encoder_hidden_states encoder_hidden_states_t5 controlnet_block_samples",
        masks={
            "text_embedding_mask": "encoder_hidden_states",
            "text_embedding_mask_t5": "encoder_hidden_states_t5",
        },
        neither="image_rotary_emb",
        parts=frozenset({"controlnet_block_samples"}),
        **GUIDED_IN_ONE_CALL,
        convention=WITH_VARIANCE,
    ),
    "Lumina2Transformer2DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=FROM_NOISE,
    ),
    "QwenImageTransformer2DModel": declared(
        "hidden_states timestep guidance img_shapes",
        "encoder_hidden_states controlnet_block_samples",
        masks={"encoder_hidden_states_mask": "encoder_hidden_states"},
        lists=frozenset({"img_shapes"}),
        parts=frozenset({"controlnet_block_samples"}),
        scale="true_cfg_scale",
        dtype="bfloat16",
        **GUIDED_IN_TWO_CALLS,
        convention=OF_ONE,
    ),
    "ZImageTransformer2DModel": declared(
        "x t",
        "cap_feats",
        lists=frozenset({"cap_feats", "x"}),
        unguided_scale=0.0,
        guidance="batched",
        first="conditional",
        dtype="bfloat16",
        convention=Convention("1 - t / T", negated=True, time_argument="t"),
    ),
}
