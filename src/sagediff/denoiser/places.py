"""Where a pipeline holds its denoiser, by the name of the pipeline's class.  Data: it imports neither torch nor
diffusers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

USUAL = ("unet", "transformer", "transformer_2")
PLACES: Mapping[str, tuple[str, ...]] = {
    "Ideogram4Pipeline": (
        "transformer",
        "unconditional_transformer",
    ),  # for the negative call of the same step
    "KandinskyPriorPipeline": ("prior",),
    "KandinskyV22PriorPipeline": ("prior",),
    "KandinskyV22PriorEmb2EmbPipeline": ("prior",),
    "StableCascadePriorPipeline": ("prior",),
    "StableCascadeDecoderPipeline": ("decoder",),
}
"""Names of the modules that are called at the steps, where they are not the usual ones."""


def places_of(pipeline: Iterable[str]) -> tuple[str, ...]:
    """The names under which a pipeline holds its denoisers, by the names of its class and bases."""
    return next((PLACES[name] for name in pipeline if name in PLACES), USUAL)
