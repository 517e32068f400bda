"""Evaluation of images of the built-in world: the judge's features and labels, and the score tower's alignment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sagediff.builtin.held_out import draw_captions, features_of
from sagediff.builtin.scenes import judge_dir, weights_dir
from sagediff.builtin.scenes.networks import load_judge, load_score_tower
from sagediff.builtin.scenes.tokenizer import MAX_LENGTH
from sagediff.builtin.scenes.world import ATTRIBUTES, IMAGE_SIZE, held_out_scenes, parse_caption
from sagediff.errors import InputError

FEATURE_SCALE = 32.0  # root mean square of the judge's features on renders: the kernel distance needs about 1
_BATCH = 256  # bounds memory


class WorldPerception:
    """Satisfies `evaluation.perception.Perception` and `Judging`, with the shipped networks."""

    name = "built-in judge and score tower"

    def __init__(self) -> None:
        judge, pipeline = judge_dir(), weights_dir()
        self._judge = load_judge(judge)
        self._text = CLIPTextModel.from_pretrained(pipeline / "text_encoder", dtype=torch.float32).eval()
        self._tokenizer = CLIPTokenizer.from_pretrained(pipeline / "tokenizer", model_max_length=MAX_LENGTH)
        self._tower = load_score_tower(judge, self._text.config.hidden_size)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, 3, 64, 64) in [0, 1] -> (N, 128), the judge's before its heads, scaled to about 1."""
        return torch.cat([self._judge.features(part) for part in _parts(images)]) / FEATURE_SCALE

    @torch.no_grad()
    def alignment(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine of the score tower's vector and the text encoder's pooled state, (N,)."""
        ids = self._tokenizer(
            list(prompts), padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
        ).input_ids
        texts = torch.cat([self._text(part).pooler_output for part in ids.split(_BATCH)])
        seen = torch.cat([self._tower(part) for part in _parts(images)])
        return F.cosine_similarity(seen, texts)

    def accuracy(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Whether the judge reads each attribute, and all four, as captioned; empty for other worlds' prompts."""
        try:
            labels = torch.tensor([parse_caption(prompt).labels for prompt in prompts])
        except InputError:
            return {}
        right = torch.cat([self._judge.read(part) for part in _parts(images)]) == labels
        return {"all": right.all(1)} | {name: right[:, i] for i, name in enumerate(ATTRIBUTES)}


def reference_features(captions: Sequence[str] | None = None) -> Tensor:
    """`WorldPerception.features` of one real render of each held-out caption, (N, 128), from the shipped file.

    Args:
        captions: whose renders, in that order; None for all 713 in the order of `held_out_scenes`.

    Raises:
        InputError: a caption that is not held out, and so has no render there.
    """
    features = load_file(judge_dir() / "reference.safetensors")["features"].float() / FEATURE_SCALE
    return features_of([scene.caption for scene in held_out_scenes()], features, captions)


def held_out_captions(count: int, seed: int = 0) -> list[str]:
    """`count` captions that no stage was trained on, drawn without replacement.

    Raises:
        InputError: there are not so many.
    """
    return draw_captions([scene.caption for scene in held_out_scenes()], count, seed)


def _parts(images: Tensor) -> Sequence[Tensor]:
    if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise InputError(
            f"the built-in judge looks at (N, 3, {IMAGE_SIZE}, {IMAGE_SIZE}), got {tuple(images.shape)}"
        )
    return torch.split(images.mul(2).sub(1), _BATCH)
