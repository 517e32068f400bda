"""A pipeline with a second network for the negative rows: what they take where they are left out."""

from __future__ import annotations

import torch
from tiny.every_ideogram import IDEOGRAM
from tiny.every_pipeline import pipe_of

from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling


def test_a_second_network_left_out_takes_the_first_ones_prediction_of_the_image() -> None:
    recipe, pipe = IDEOGRAM["Ideogram4Pipeline"], pipe_of("Ideogram4Pipeline")
    plan = SharePlan.from_groups([[0, 1], [2]], num_steps=3, share_ratio=1.0, shared_guidance=1.0)
    inputs = recipe.inputs([3, 3, 4], True) | {"num_inference_steps": 3, "output_type": "latent"}
    expected = pipe(**inputs | {"guidance_scale": 1.0}, generator=plan.generators(0)).images
    with shared_sampling(pipe, plan) as run:
        images = pipe(**inputs, generator=plan.generators(0)).images
    torch.testing.assert_close(images[:2], expected[:2], rtol=0, atol=1e-5)
    assert run.evaluations == run.plan.evaluations == 3 * (1 + 2)  # the prompt alone stays guided
