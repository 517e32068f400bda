"""Networks that only evaluation needs: the score tower, and the judge's features of real scene images.

The score tower is an image tower with its own seed and size against the frozen text tower, so that the figure
for alignment does not come from a network that any part of the model was trained with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sagediff.builtin.image_towers import ImageEncoder
from sagediff.builtin.scenes.networks import SCORE_TOWER_WIDTHS, load_judge
from sagediff.builtin.scenes.render import Renderer
from sagediff.builtin.scenes.training.scene_images import SceneImages
from sagediff.builtin.scenes.training.stages import TEXT_DIM, SceneStageConfig, encode_texts
from sagediff.builtin.scenes.world import held_out_scenes
from sagediff.builtin.training.contrast import contrastive_terms
from sagediff.builtin.training.stage_command import require
from sagediff.builtin.training.stage_loop import train, write_tensors

SEED = 4211  # unlike that of any other stage
REFERENCE_SEED = 20  # jitter and shade of the real images


class _Score(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = ImageEncoder(TEXT_DIM, SCORE_TOWER_WIDTHS)
        self.log_scale = nn.Parameter(torch.tensor(2.0))


def train_score(config: SceneStageConfig) -> Path:
    """An image tower against the frozen text tower's pooled state, with neighbours as hard negatives."""
    batch_size = config.batch_size or 128
    torch.manual_seed(SEED if config.seed is None else config.seed)
    model, scene_images = _Score(), SceneImages(config.device)
    folder = config.text_encoder or config.out
    remedy = "train the stage `encoder` into the same --out, or name a pipeline's folder with --text-encoder"
    require(folder, ("tokenizer", "text_encoder"), remedy)
    captions = [scene.caption for scene in scene_images.scenes]
    texts = encode_texts(folder, captions, config.device, "pooler_output")  # (captions, D)
    place = {scene.caption: i for i, scene in enumerate(scene_images.scenes)}

    def losses(step: int, rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        scenes, images = scene_images.sample_with_neighbours(batch_size, rng)
        # slight noise of random strength, as the judge's: made images are never as clean as renders
        strength = torch.rand(len(scenes), 1, 1, 1, generator=noise, device=images.device) * 0.15
        images = images + strength * torch.randn(images.shape, generator=noise, device=images.device)
        captions = [scene.caption for scene in scenes]
        text = texts[[place[caption] for caption in captions]]
        return contrastive_terms(text, model.image(images), model.log_scale, captions)

    trained = train(config.loop("score", steps=1000, learning_rate=2e-3, seed=SEED, ema=0.99), model, losses)
    path = config.out / "score_tower.safetensors"
    write_tensors(path, {k: v.half() for k, v in trained.image.state_dict().items()})
    return path


def make_reference(config: SceneStageConfig) -> Path:
    """The judge's features of one render of every held-out caption, so that distances need no font."""
    require(config.out, ("judge.safetensors",), "train the stage `judge` into the same --out")
    judge = load_judge(config.out).to(config.device)
    renders = Renderer().batch(held_out_scenes(), np.random.default_rng(REFERENCE_SEED))
    images = torch.from_numpy(renders).mul(2).sub(1)
    with torch.no_grad():
        features = torch.cat([judge.features(part.to(config.device)) for part in torch.split(images, 256)])
    path = config.out / "reference.safetensors"
    write_tensors(path, {"features": features.half()}, {"images": "one render of every held-out caption"})
    return path
