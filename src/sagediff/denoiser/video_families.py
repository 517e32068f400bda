"""Rows of the table (`table.py`): denoisers of videos."""

from __future__ import annotations

from sagediff.denoiser.convention import AS_SCHEDULED
from sagediff.denoiser.declared import GUIDED_IN_ONE_CALL, GUIDED_IN_TWO_CALLS, declared
from sagediff.denoiser.family import Family

VIDEO_FAMILIES: dict[str, Family] = {
    "WanTransformer3DModel": declared(
        "hidden_states timestep encoder_hidden_states_image",  # the image is equal within a group
        "encoder_hidden_states",
        zero_padded=frozenset({"encoder_hidden_states"}),
        makes="videos",
        dtype="bfloat16",
        vae_dtype="float32",
        **GUIDED_IN_TWO_CALLS,
        convention=AS_SCHEDULED,
    ),
    "LTXVideoTransformer3DModel": declared(
        "hidden_states timestep",
        "encoder_hidden_states",
        masks={"encoder_attention_mask": "encoder_hidden_states"},
        makes="videos",
        dtype="bfloat16",
        **GUIDED_IN_ONE_CALL,
        convention=AS_SCHEDULED,
    ),
}
