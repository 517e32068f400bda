"""What the benchmarks on the built-in world share: the model, images for the judge, accuracy, diversity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagediff.builtin.scenes.networks import Judge
from sagediff.builtin.scenes.world import ATTRIBUTES, parse_caption
from sagediff.pipelines.run_settings import ModelOptions


def built_in(lora: Path | None = None, **options: Any) -> ModelOptions:
    """The built-in model with this LoRA, or with none."""
    return ModelOptions(lora=() if lora is None else (str(lora),), no_lora=lora is None, **options)


def to_judge(images: list[Any]) -> Tensor:
    """PIL images -> (N, 3, 64, 64) in [-1, 1]."""
    stack = np.stack([np.asarray(image, np.float32) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2) / 127.5 - 1


def judge_images(
    pipe: Any, captions: list[str], steps: int, guidance: float, seed: int, **kwargs: Any
) -> Tensor:
    """Independent sampling by the untouched pipeline, 64 prompts at a time, one generator per prompt."""
    images: list[Any] = []
    for start in range(0, len(captions), 64):
        part = captions[start : start + 64]
        generators = [torch.Generator().manual_seed(seed * 100_003 + start + i) for i in range(len(part))]
        images += pipe(
            part, num_inference_steps=steps, guidance_scale=guidance, generator=generators, **kwargs
        ).images
    return to_judge(images)


def accuracy(judge: Judge, images: Tensor, captions: list[str]) -> dict[str, float]:
    """Part of the images on which the judge reads each attribute, and all four, as captioned."""
    labels = torch.tensor([parse_caption(c).labels for c in captions])
    right = torch.cat([judge.read(part) for part in images.split(256)]) == labels
    out = {name: float(right[:, i].float().mean()) for i, name in enumerate(ATTRIBUTES)}
    return {"all": float(right.all(1).float().mean())} | out


def diversity(judge: Judge, images: Tensor, groups: list[list[int]]) -> float:
    """Mean over groups of the mean pairwise cosine distance of the members' judge features."""
    with torch.no_grad():
        features = torch.cat([judge.features(part) for part in images.split(256)])
    features = torch.nn.functional.normalize(features, dim=1)
    values = []
    for group in groups:
        if len(group) > 1:
            similar = features[group] @ features[group].T
            n = len(group)
            values.append(1 - float((similar.sum() - similar.trace()) / (n * (n - 1))))
    return float(np.mean(values)) if values else float("nan")


def mean_spread(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation."""
    return {
        "mean": float(np.mean(values)),
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
    }
