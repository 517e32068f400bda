"""Rows of the table (`table.py`): denoisers of audio. Commands make none; `shared_sampling` shares their steps."""

from __future__ import annotations

from typing import Any

from sagediff.denoiser.declared import GUIDED_IN_ONE_CALL, GUIDED_IN_TWO_CALLS, declared
from sagediff.denoiser.family import Family

NO_AUDIO = "audio comes from its pipeline, called inside sagediff.shared_sampling"
_ONE_CALL: dict[str, Any] = {"makes": "audio", **GUIDED_IN_ONE_CALL}

AUDIO_FAMILIES: dict[str, Family] = {
    "StableAudioDiTModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states global_hidden_states",  # the second: of the seconds that are asked for
        neither="rotary_embedding",
        zero_padded=frozenset({"encoder_hidden_states"}),
        **_ONE_CALL,
    ),
    "StableAudio3DiTModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states global_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        **_ONE_CALL,
    ),
    "AudioLDM2UNet2DConditionModel": declared(
        "sample timestep",
        "encoder_hidden_states encoder_hidden_states_1",
        masks={"encoder_attention_mask_1": "encoder_hidden_states_1"},
        **_ONE_CALL,
    ),
    "AceStepTransformer1DModel": declared(
        "hidden_states timestep timestep_r context_latents",
        "encoder_hidden_states",
        makes="audio",
        dtype="bfloat16",
        guidance="batched",
        first="conditional",
    ),
    "LongCatAudioDiTTransformer": declared(
        "hidden_states timestep attention_mask latent_cond",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        makes="audio",
        **GUIDED_IN_TWO_CALLS,
    ),
}
