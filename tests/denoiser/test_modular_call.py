"""Modular pipelines behind the call of the others, and what their guiders say beforehand."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.guiders import MagnitudeAwareGuidance
from diffusers.hooks import LayerSkipConfig
from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep
from tiny import families
from tiny.every_modular import MODULAR
from tiny.parts import SCHEDULERS, embeddings

from sagediff.denoiser.guiders import conditions_at, guiding
from sagediff.denoiser.modular_call import call_parameters, with_plain_call
from sagediff.errors import InputError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling
from sagediff.sampling.sampler import SharedSampler


@pytest.fixture(scope="module")
def flux3() -> Any:
    """FLUX.3 with an autoencoder; what its text encoder would say is the test's."""
    parts = MODULAR["Flux3ModularPipeline"].build(SCHEDULERS["flow"]()).components
    blocks = diffusers.Flux3AutoBlocks()
    del blocks.sub_blocks["prompt_upsampler"]
    pipe = diffusers.Flux3ModularPipeline(blocks)
    pipe.update_components(vae=families.RECIPES["flux2-klein"].build(None).vae)
    pipe.update_components(transformer=parts["transformer"], scheduler=parts["scheduler"])
    return pipe


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts in the order in which they are encoded, each to as many tokens as it has letters."""
    seen: list[str] = []

    def encode(*args: Any, prompt: str, **kwargs: Any) -> torch.Tensor:
        seen.append(prompt)
        return embeddings([sum(map(ord, prompt))], max(len(prompt), 3))

    monkeypatch.setattr(Flux3TextEncoderStep, "_get_qwen3_vl_prompt_embeds", staticmethod(encode))
    return seen


def test_prompts_of_flux3_are_encoded_one_by_one_and_run_together(flux3: Any, encoded: list[str]) -> None:
    texts, options = ["cat", "dog", "owl"], {"num_inference_steps": 2, "height": 32, "width": 32}

    def encoder(prompts: list[str]) -> Any:
        return np.eye(len(prompts)) + 1

    alone = SharedSampler(flux3, threshold=1.0, share_ratio=0.0, encoder=encoder)(texts, **options)
    assert encoded == ["cat", "", "dog", "", "owl", ""]
    assert alone.report["evaluations_run"] == alone.plan.evaluations == 2 * 3 * 2
    for text, seed, image in zip(texts, alone.seeds, alone.images, strict=True):
        generator = torch.Generator().manual_seed(seed)
        own = flux3(prompt=text, generator=generator, output="images", output_type="pil", **options)
        assert np.abs(np.asarray(own[0], int) - np.asarray(image, int)).max() <= 1
    shared = SharedSampler(flux3, threshold=-1.0, share_ratio=0.5, encoder=encoder)(texts, **options)
    assert (
        shared.report["evaluations_run"] == shared.plan.evaluations == 1 + 2 * 3
    )  # unguided while it is shared
    with pytest.raises(
        InputError, match=r"prompts of 3 and 5 tokens \(`prompt_embeds`\) cannot run in one call"
    ):
        SharedSampler(flux3, threshold=1.0, encoder=encoder)(["cat", "mouse"], **options)


def test_a_plain_call_names_what_the_blocks_take(flux3: Any) -> None:
    pipe = with_plain_call(flux3)
    assert type(pipe).__name__ == "Flux3ModularPipeline" and with_plain_call(pipe) is pipe
    assert {"prompt", "negative_prompt", "height", "generator"} <= call_parameters(pipe).keys()
    assert call_parameters(pipe)["guidance_scale"].default == 3.5
    assert "guidance_scale" not in call_parameters(flux3).keys() - call_parameters(pipe).keys()
    assert pipe.vae_scale_factor == flux3.vae_scale_factor
    pipe.vae_scale_factor = 1  # asked for as if there were no autoencoder
    assert pipe.vae_scale_factor == 1 != flux3.vae_scale_factor


def test_guiders_say_beforehand_how_many_conditions_they_run(flux3: Any) -> None:
    assert conditions_at(flux3, 4) == (2, 2, 2, 2) and conditions_at(flux3, 4, 1.0) == (1, 1, 1, 1)
    found = flux3.guider
    try:
        flux3.guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0, start=0.25, stop=0.75)
        assert conditions_at(flux3, 4) == (1, 2, 2, 1)
        flux3.guider.disable()
        with guiding(flux3, 5.0):
            assert flux3.guider.guidance_scale == 5.0 and flux3.guider.get_state()["enabled"]
        assert flux3.guider.guidance_scale == 3.0 and not flux3.guider.get_state()["enabled"]
    finally:
        flux3.guider = found
    assert conditions_at(families.RECIPES["flux2-klein"].build(None), 4) is None


# -- guiders ----------------------------------------------------------------------------------------


GUIDERS: dict[str, Any] = {
    "cfg": lambda: diffusers.ClassifierFreeGuidance(4.0),
    "original formulation": lambda: diffusers.ClassifierFreeGuidance(3.0, use_original_formulation=True),
    "rescaled": lambda: diffusers.ClassifierFreeGuidance(4.0, guidance_rescale=0.5),
    "in the middle": lambda: diffusers.ClassifierFreeGuidance(4.0, start=0.25, stop=0.75),
    "zero star": lambda: diffusers.ClassifierFreeZeroStarGuidance(4.0),
    "adaptive projected": lambda: diffusers.AdaptiveProjectedGuidance(
        4.0, adaptive_projected_guidance_momentum=0.5
    ),
    "tangential": lambda: diffusers.TangentialClassifierFreeGuidance(4.0),
    "magnitude aware": lambda: MagnitudeAwareGuidance(4.0),
    "auto": lambda: diffusers.AutoGuidance(4.0, auto_guidance_config=LayerSkipConfig([0]), dropout=1.0),
    "skip layer": lambda: diffusers.SkipLayerGuidance(
        4.0, 2.8, 0.0, 0.8, skip_layer_config=LayerSkipConfig([0])
    ),
    "perturbed attention": lambda: diffusers.PerturbedAttentionGuidance(
        4.0, 2.8, 0.0, 0.8, perturbed_guidance_layers=[0]
    ),
    "smoothed energy": lambda: diffusers.SmoothedEnergyGuidance(4.0, 2.8, seg_guidance_layers=[0]),
}


ON_OTHERS = {
    "zero star": "StableDiffusion3",
    "auto": "Wan",
    "skip layer": "Wan",
}  # do not work with Qwen-Image


@pytest.mark.parametrize("name", GUIDERS)
def test_every_guider_is_exact(name: str) -> None:
    recipe = MODULAR[f"{ON_OTHERS.get(name, 'QwenImage')}ModularPipeline"]
    torch.manual_seed(0)
    pipe = recipe.build(SCHEDULERS[recipe.schedulers[0]]())
    pipe.update_components(guider=GUIDERS[name]())
    planned = conditions_at(pipe, 4)
    assert planned is not None

    def latents() -> torch.Tensor:
        inputs = recipe.inputs([7, 8, 7], True) | {"generator": plans[1].generators(0)}
        made: torch.Tensor = pipe(num_inference_steps=4, output="latents", **inputs)
        return made

    plans = [SharePlan.from_groups([[0, 2], [1]], num_steps=4, share_ratio=ratio) for ratio in (0.0, 0.5)]
    rows = ([3, 3, 3, 3], [2, 2, 3, 3])  # of each condition at each step
    expected = latents()
    for plan, nodes in zip(plans, rows, strict=True):
        with shared_sampling(pipe, plan) as run:
            torch.testing.assert_close(latents(), expected, rtol=0, atol=1e-5)
        assert (
            run.evaluations == run.plan.evaluations == sum(n * c for n, c in zip(nodes, planned, strict=True))
        )
    assert not {"prepare_inputs", "set_state"} & vars(pipe.guider).keys()
    unguided = SharePlan.from_groups([[0, 2], [1]], num_steps=4, share_ratio=0.5, shared_guidance=1.0)
    with shared_sampling(pipe, unguided) as run:
        assert latents().isfinite().all() and run.evaluations == run.plan.evaluations
