"""The built-in model as shipped: a genuine, small diffusers pipeline whose images show what captions say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from sagediff.builtin.scenes import judge_dir, weights_dir
from sagediff.builtin.scenes.networks import Judge, load_judge
from sagediff.builtin.scenes.world import IMAGE_SIZE, Scene, all_scenes, held_out_scenes
from sagediff.prompts.embeddings import embed_prompts


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge(judge_dir())


def test_it_is_a_genuine_stable_diffusion_pipeline(demo: Any) -> None:
    assert type(demo) is StableDiffusionPipeline
    own = StableDiffusionPipeline.from_pretrained(
        weights_dir(), dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    for name in ("unet", "vae", "text_encoder"):
        mine, theirs = getattr(demo, name).state_dict(), getattr(own, name).state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert demo.unet.dtype == torch.float32


def test_its_weights_are_safetensors_of_at_most_40_megabytes() -> None:
    files = [file for home in (weights_dir(), judge_dir()) for file in home.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 40 * 2**20
    kinds = {".safetensors", ".json", ".txt"}  # .txt: a tokenizer's merges
    assert {file.suffix for file in files} <= kinds
    assert not [f for f in files if f.suffix != ".safetensors" and f.stat().st_size > 2**20]


def _apart(one: Scene, two: Scene) -> int:
    """Number of attributes in which two scenes differ."""
    return sum(a != b for a, b in zip(one.labels, two.labels, strict=True))


def test_its_text_encoder_puts_near_captions_together(demo: Any) -> None:
    """The fewer attributes differ, the more alike; nearest neighbours mostly differ in one."""
    rng = np.random.default_rng(0)
    scenes = all_scenes()
    some = [scenes[i] for i in rng.choice(len(scenes), 400, replace=False)]
    vectors = embed_prompts([scene.caption for scene in some], demo).vectors
    alike = vectors @ vectors.T
    apart = np.array([[_apart(one, two) for two in some] for one in some])
    one, two, nothing_shared = (float(alike[apart == count].mean()) for count in (1, 2, 4))
    assert one > two + 0.1 > nothing_shared + 0.2
    np.fill_diagonal(alike, -1)
    nearest = apart[np.arange(len(some)), alike.argmax(1)]
    assert (nearest <= 2).mean() > 0.9


def test_held_out_captions_are_drawn_as_they_say(demo: Any, judge: Judge) -> None:
    """Chance would get all four attributes right for one caption in 5760."""
    scenes = held_out_scenes()
    some = [scenes[i] for i in np.random.default_rng(1).choice(len(scenes), 8, replace=False)]
    images = demo(
        [scene.caption for scene in some],
        num_inference_steps=8,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(i) for i in range(8)],
        output_type="pt",
    ).images
    assert images.shape == (8, 3, IMAGE_SIZE, IMAGE_SIZE)
    right = judge.read(images * 2 - 1) == torch.tensor([scene.labels for scene in some])
    assert right.all(dim=1).sum() >= 4
    assert right.float().mean() >= 0.8


def test_the_judge_reads_features_that_do_not_depend_on_the_batch(judge: Judge) -> None:
    images = torch.rand(5, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        features = judge.features(images)
        assert features.shape == (5, Judge.feature_dim) == (5, 128)
        assert torch.isfinite(features).all()
        alone = torch.cat([judge.features(image[None]) for image in images])
    torch.testing.assert_close(alone, features, rtol=1e-4, atol=1e-4)
    assert judge.read(images).shape == (5, 4)
