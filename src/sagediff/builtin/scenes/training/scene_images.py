"""Training samples of the stages: scenes and their renders, drawn freely or with neighbours that differ in one word."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sagediff.builtin.scenes.render import Renderer
from sagediff.builtin.scenes.world import ATTRIBUTES, VALUES, Scene, training_scenes


class SceneImages:
    """Random training scenes and their renders on the stage's device, values in [-1, 1]."""

    def __init__(self, device: str) -> None:
        self.scenes = training_scenes()
        self.renderer = Renderer()
        self.device = device
        self._allowed = {scene.caption for scene in self.scenes}

    def draw(self, scenes: list[Scene], rng: np.random.Generator) -> Tensor:
        images = torch.from_numpy(self.renderer.batch(scenes, rng)).to(self.device)
        return images.mul(2).sub(1).contiguous(memory_format=torch.channels_last)

    def sample(self, count: int, rng: np.random.Generator) -> tuple[list[Scene], Tensor]:
        scenes = [self.scenes[i] for i in rng.integers(len(self.scenes), size=count)]
        return scenes, self.draw(scenes, rng)

    def sample_with_neighbours(
        self, count: int, rng: np.random.Generator, same: int = 3
    ) -> tuple[list[Scene], Tensor]:
        """`count` scenes, of which `count // (same + 1)` are drawn freely and each has `same` neighbours.

        A neighbour differs in one word, so that a contrast cannot be won by the object alone; one that is held
        out is replaced by the scene itself.
        """
        scenes = [self.scenes[i] for i in rng.integers(len(self.scenes), size=count // (same + 1))]
        for scene in scenes[:]:
            for _ in range(same):
                neighbour = _neighbour(scene, rng)
                scenes.append(neighbour if neighbour.caption in self._allowed else scene)
        return scenes, self.draw(scenes, rng)


def _neighbour(scene: Scene, rng: np.random.Generator) -> Scene:
    name = ATTRIBUTES[rng.integers(4)]
    value = VALUES[name][rng.integers(len(VALUES[name]))]
    return replace(scene, **{name: value})
