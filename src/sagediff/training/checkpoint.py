"""Checkpoints of a training run as safetensors: trained weights, their running mean, the optimizer's moments."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sagediff.errors import InputError
from sagediff.files.atomic import sweep, writing

_PREFIX = "step-"
_FILE = "state.safetensors"


def save(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    record: Mapping[str, Any],
    limit: int,
) -> None:
    """Write `folder/step-N` under a temporary name, rename it, then remove the oldest beyond `limit`."""
    tensors = {**weights, **optimizer_tensors(optimizer)}
    target = folder / f"{_PREFIX}{step:07d}"
    metadata = {"step": str(step), "record": json.dumps(record, sort_keys=True)}
    sweep(folder)
    with writing(target) as partial:
        partial.mkdir(parents=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial / _FILE, metadata)
    for old in _all(folder)[:-limit]:
        shutil.rmtree(old)


def _all(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.glob(f"{_PREFIX}*") if (path / _FILE).is_file() and path.suffix == ""
    )


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in the folder."""
    found = _all(folder)
    return found[-1] if found else None


def restore(
    path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, record: Mapping[str, Any]
) -> int:
    """Put a checkpoint's state into place; returns the number of steps done.

    Raises:
        InputError: a broken file, or a run with other settings; the settings are named.
    """
    try:
        tensors = load_file(path / _FILE)
        with safe_open(path / _FILE, "pt") as file:
            metadata = file.metadata() or {}
        step, before = int(metadata["step"]), json.loads(metadata["record"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"--resume: {path} is not a checkpoint of this kind of run: {error}") from error
    now = json.loads(json.dumps(record))
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    if changed:
        raise InputError(
            f"--resume: {path} was made with other settings ({', '.join(changed)}); use the same ones, or "
            "another --out"
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(tensors[name])
    restore_optimizer(optimizer, tensors)
    return step


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments and counts by name, `optimizer.INDEX.NAME`."""
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` named; other names are left alone."""
    state = optimizer.state_dict()
    state["state"] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(state)
    # a fused optimizer reads memory as it lies: the moments must lie like their parameter (channels last)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)
