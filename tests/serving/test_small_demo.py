"""The pipeline of many tests tells prompts, seeds and groups apart, or what they compare would be equal anyhow."""

from __future__ import annotations

from typing import Any

import numpy as np
from engines import CAT, DOG, ROUNDING

from sagediff import SharedSampler


def test_images_differ_by_prompt_seed_and_group(small_demo: Any) -> None:
    sampler = SharedSampler(small_demo, threshold=0.35, share_ratio=0.5, handover_noise=1.0)

    def images(*prompts: str, seed: int = 0) -> list[Any]:
        made = sampler(list(prompts), num_inference_steps=2, guidance_scale=4.0, seed=seed).images
        return [np.asarray(image).astype(int) for image in made]

    cat, dog = images(CAT, DOG)
    others = [dog, images(CAT, DOG, seed=1)[0], images(DOG, CAT)[0]]
    assert all(np.abs(cat - other).max() > 10 * ROUNDING for other in others)
