"""Evaluation of images of the emoji world: features of a network of others, names by the naming tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from sagediff.builtin.emoji import naming_dir
from sagediff.builtin.emoji.naming_tower import load_naming
from sagediff.builtin.emoji.svg_render import IMAGE_SIZE
from sagediff.builtin.held_out import draw_captions, features_of
from sagediff.errors import InputError
from sagediff.evaluation.feature_networks import open_features
from sagediff.files.json_input import parse_object
from sagediff.pipelines.sentence_encoder import load_encoder, load_tokenizer
from sagediff.prompts.embeddings import embed_prompts

REFERENCE = "reference.safetensors"
FEATURES = "efficientnet-lite0"
_BATCH = 64  # bounds memory


class EmojiPerception:
    """Satisfies `evaluation.perception.Perception` and `Judging`.

    Raises:
        InputError: the judge's weights or a package are missing.
    """

    name = "EfficientNet-Lite0 and naming tower"

    def __init__(self, device: str = "cpu") -> None:
        self._tower, self._table = load_naming(naming_dir())
        self._features = open_features(FEATURES, device)
        self._text: tuple[Any, Any] | None = None

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 1280)."""
        return torch.cat([self._features(part) for part in torch.split(images, _BATCH)])

    def alignment(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine of the tower's vectors of image and prompt, (N,)."""
        if self._text is None:
            self._text = load_tokenizer(), load_encoder()
        with torch.no_grad():
            texts = self._tower.texts(sentences(*self._text, prompts))
        return F.cosine_similarity(self._seen(images), texts)

    def accuracy(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Whether each image is named as captioned, among all names of its vendor; empty for prompts of no vendor's."""
        places = self._table.places(prompts)
        return {} if places is None else {"all": self._table.right(self._seen(images), places)}

    @torch.no_grad()
    def _seen(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
            raise InputError(
                f"the naming tower looks at (N, 3, {IMAGE_SIZE}, {IMAGE_SIZE}), got {tuple(images.shape)}"
            )
        parts = torch.split(images.float().cpu().mul(2).sub(1), _BATCH)
        return torch.cat([self._tower.image(part) for part in parts])


class _TextParts:
    """The sentence encoder alone, as `embed_prompts` looks for it in a pipeline."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizer, self.text_encoder = tokenizer, encoder


def sentences(tokenizer: Any, encoder: Any, captions: Sequence[str]) -> Tensor:
    """(N, 384) unit vectors: means of the tokens' states, as prompts are grouped by."""
    return torch.from_numpy(embed_prompts(captions, _TextParts(tokenizer, encoder), batch_size=64).vectors)


def reference_features(captions: Sequence[str] | None = None) -> Tensor:
    """`EmojiPerception.features` of the real artwork of each held-out caption, (N, 1280), from the shipped file.

    Args:
        captions: whose artwork, in that order; None for all.

    Raises:
        InputError: no such file, or a caption that is not held out, and so has no artwork there.
    """
    with safe_open(_reference_file(), "pt") as file:
        features: Tensor = file.get_tensor("features").float()
    return features_of(_held_out(), features, captions)


def held_out_captions(count: int, seed: int = 0) -> list[str]:
    """`count` captions whose artwork the denoiser was not trained on, drawn without replacement.

    Raises:
        InputError: there are not so many, or the file that lists them is missing.
    """
    return draw_captions(_held_out(), count, seed)


def _held_out() -> list[str]:
    path = _reference_file()
    with safe_open(path, "pt") as file:
        captions: list[str] = parse_object(file.metadata()["table"], str(path))["captions"]
    return captions


def _reference_file() -> Path:
    path = naming_dir() / REFERENCE
    if not path.is_file():
        raise InputError(
            f"this installation holds no features of real artwork ({path}); make them: "
            "python -m sagediff.builtin.emoji.training reference"
        )
    return path
