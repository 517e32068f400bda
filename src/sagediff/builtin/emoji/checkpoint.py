"""A training state as one safetensors file: weights, their average, the optimizer, the step.

It does not know what is trained. Chance needs no entry: every step draws from (seed, step).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Save under a temporary name, then rename: a kill leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, metadata)
    os.replace(partial, path)


def save_checkpoint(
    path: Path, step: int, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write everything that `load_checkpoint` needs to go on after `step` steps."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
    write_tensors(path, tensors, {"step": str(step)})


def load_checkpoint(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Restore in place; returns the number of steps done."""
    tensors = load_file(path)
    model.load_state_dict(part(tensors, "model."))
    average.load_state_dict(part(tensors, "average."))
    for number, parameter in enumerate(_parameters(optimizer)):
        state = part(tensors, f"optimizer.{number}.")
        if state:
            optimizer.state[parameter] = {
                k: v.clone(memory_format=torch.preserve_format) if v.ndim == 0 else _laid_out(v, parameter)
                for k, v in state.items()
            }
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names start with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _laid_out(values: Tensor, like: Tensor) -> Tensor:
    """A copy in the memory layout of `like`: fused optimizers walk the memory of both alike."""
    return torch.empty_like(like).copy_(values)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
