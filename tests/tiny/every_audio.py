"""Tiny pipelines of every class that makes sound of texts."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AudioLDM2Pipeline,
    AudioLDM2UNet2DConditionModel,
    AutoencoderOobleck,
    FlowMatchEulerDiscreteScheduler,
    LongCatAudioDiTPipeline,
    LongCatAudioDiTTransformer,
    StableAudio3DiTModel,
    StableAudio3Pipeline,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder

from tiny.every_image import filled, read, texts
from tiny.parts import (
    NO_TEXT,
    TOKENS,
    WIDTH,
    Recipe,
    count_words,
    embeddings,
    masks,
    padded,
)


class Part(torch.nn.Module):
    """A part of a pipeline of which only settings are read."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, config: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config or {})
        for name, value in settings.items():
            setattr(self, name, value)


# -- Stable Audio ----------------------------------------------------------------------------------


def _stable_audio(scheduler: Any) -> Any:
    vae = AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 2],
        channel_multiples=[1, 1],
        decoder_channels=4,
        decoder_input_channels=4,
        sampling_rate=16,
    )
    transformer = StableAudioDiTModel(
        sample_size=4,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=4,
        cross_attention_dim=WIDTH,
        time_proj_dim=8,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )
    projection = StableAudioProjectionModel(
        text_encoder_dim=WIDTH, conditioning_dim=WIDTH, min_value=0, max_value=8
    )
    return StableAudioPipeline(
        vae=vae.eval(),
        projection_model=projection.eval(),
        transformer=filled(transformer.eval()),
        scheduler=scheduler,
        **NO_TEXT,
    )


def _stable_audio_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs: dict[str, Any] = {"prompt_embeds": padded(prompts, 9.0), "attention_mask": masks(prompts).long()}
    if guided:
        negative = [-1] * len(prompts)
        inputs |= {
            "negative_prompt_embeds": padded(negative, 9.0),
            "negative_attention_mask": masks(negative).long(),
        }
    return inputs | {"guidance_scale": 4.0 if guided else 1.0}


def _stable_audio_3(scheduler: Any) -> Any:
    transformer = StableAudio3DiTModel(
        io_channels=4,
        embed_dim=16,
        depth=1,
        num_heads=2,
        cond_token_dim=WIDTH,
        global_cond_dim=WIDTH,
        timestep_features_dim=8,
        num_memory_tokens=2,
    )
    vae = Part({"sampling_rate": 4, "latent_dim": 4}, downsampling_ratio=1)
    return StableAudio3Pipeline(
        vae=vae,
        duration_embedder=StableAudio3DurationEmbedder(output_dim=WIDTH).eval(),
        transformer=filled(transformer.eval()),
        scheduler=scheduler,
        **NO_TEXT,
    )


def _stable_audio_3_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = {
        name.replace("attention_mask", "encoder_attention_mask"): value
        for name, value in _stable_audio_inputs(prompts, guided).items()
    }
    return inputs | {"duration": 1.0}


# -- AudioLDM 2, ACE-Step, LongCat Audio ------------------------------------------------------------


def _audioldm2(scheduler: Any) -> Any:
    unet = AudioLDM2UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(WIDTH, WIDTH),
    )
    vocoder = Part({"upsample_rates": (1,), "sampling_rate": 16, "model_in_dim": 4 * 8})
    return AudioLDM2Pipeline(
        vae=None,
        text_encoder=None,
        text_encoder_2=Part({"model_type": "t5"}),
        projection_model=None,
        language_model=Part(),
        tokenizer=None,
        tokenizer_2=None,
        feature_extractor=None,
        unet=unet.eval(),
        scheduler=scheduler,
        vocoder=vocoder,
    )


def _audioldm2_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = _stable_audio_inputs(prompts, guided) | {"generated_prompt_embeds": embeddings(prompts, TOKENS)}
    if guided:
        inputs["negative_generated_prompt_embeds"] = embeddings([-1] * len(prompts), TOKENS)
    return inputs | {"audio_length_in_s": 2.0}


def _ace_step(scheduler: Any) -> Any:
    """Its encoder of texts, lyrics and timbre is one that gives `read`'s words."""
    transformer = AceStepTransformer1DModel(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
        sliding_window=4,
        encoder_hidden_size=WIDTH,
    )

    class Conditions(Part):
        silence_latent = torch.ones(1, 8, 4)
        null_condition_emb = embeddings([-1], 1)

        def forward(self, text_hidden_states: Any, **others: Any) -> Any:
            return text_hidden_states, None

    pipe: Any = AceStepPipeline(
        vae=None,
        transformer=filled(transformer.eval()),
        condition_encoder=Conditions(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1, shift=1.0
        ),  # its times are from 0 to 1
        **NO_TEXT,
    )
    pipe.latents_per_second = 4.0
    pipe.encode_prompt = lambda prompt, **options: (read(prompt), None, None, None)
    return pipe


def _ace_step_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = texts(prompts, guided) | {"audio_duration": 2.0}
    inputs.pop("negative_prompt", None)
    return inputs


def _longcat(scheduler: Any) -> Any:
    transformer = LongCatAudioDiTTransformer(
        dit_dim=16, dit_depth=1, dit_heads=2, dit_text_dim=WIDTH, latent_dim=4
    )
    vae = Part({"sample_rate": 4, "downsampling_ratio": 1})
    pipe: Any = LongCatAudioDiTPipeline(
        vae=vae,
        transformer=filled(transformer.eval()),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True),
        **NO_TEXT,
    )

    def encode(prompts: Sequence[str], device: Any) -> Any:
        numbers = [int(prompt) for prompt in prompts]
        return padded(numbers, 9.0), torch.tensor([count_words(number) for number in numbers])

    pipe.encode_prompt = encode
    return pipe


def _longcat_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return texts(prompts, guided) | {"audio_duration_s": 2.0}


AUDIO: dict[str, Recipe] = {
    "StableAudioPipeline": Recipe(
        _stable_audio,
        _stable_audio_inputs,
        lambda transformer: transformer.cross_attention_proj,
        ("dpmpp_2m",),
    ),
    "StableAudio3Pipeline": Recipe(
        _stable_audio_3, _stable_audio_3_inputs, lambda transformer: transformer.to_cond_embed
    ),
    "AudioLDM2Pipeline": Recipe(_audioldm2, _audioldm2_inputs, lambda unet: unet.conv_in, ("ddim",)),
    "AceStepPipeline": Recipe(
        _ace_step, _ace_step_inputs, lambda transformer: transformer.condition_embedder
    ),
    "LongCatAudioDiTPipeline": Recipe(_longcat, _longcat_inputs, lambda transformer: transformer.time_embed),
}
"""Those that take no embeddings are told what an encoder would say."""
