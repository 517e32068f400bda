"""Checkpoints of a training run as safetensors: trained weights, their running mean, the optimizer's moments.

A checkpoint is believed if its file is whole, down to a digest of every number, and of the run that goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sagediff.errors import InputError
from sagediff.files.atomic import output_errors, sweep, sync_folder, writing
from sagediff.files.json_input import parse_object
from sagediff.files.tensor_digest import tensors_digest
from sagediff.training.run_folder import CHECKPOINT as _PREFIX

_FILE = "state.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole: its folder, the steps that were done, and what a run that goes on must repeat."""

    path: Path
    step: int
    record: dict[str, Any]

    def check(self, record: Mapping[str, Any]) -> None:
        """Raises InputError: of a run with other settings, another model or other data; what differs is named."""
        now, before = json.loads(json.dumps(record)), self.record
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if changed:
            raise InputError(
                f"--resume: {self.path} was made with other settings ({', '.join(changed)}); use the same ones, or "
                "another --out"
            )

    def restore(self, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Put the state into place.

        Raises:
            InputError: it holds other tensors than these.
        """
        tensors = load_file(self.path / _FILE)
        shapes = {name: tensor.shape for name, tensor in tensors.items() if not name.startswith("optimizer.")}
        if shapes != {name: tensor.shape for name, tensor in weights.items()}:
            raise InputError(
                f"--resume: {self.path} holds other weights than this run trains; use another --out"
            )
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(tensors[name])
        restore_optimizer(optimizer, tensors)


def save(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    record: Mapping[str, Any],
    limit: int,
) -> None:
    """Write `folder/step-N` under a temporary name, rename it, then remove the oldest beyond `limit`.

    Raises:
        OutputError: the disk refused; the checkpoints that are there stay.
    """
    found = {**weights, **optimizer_tensors(optimizer)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    target = folder / f"{_PREFIX}{step:07d}"
    metadata = {
        "step": str(step), "record": json.dumps(record, sort_keys=True),
        "digest": tensors_digest(sorted(tensors.items())),
    }  # fmt: skip
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with writing(target) as partial:
            partial.mkdir()
            save_file(tensors, partial / _FILE, metadata)
        sync_folder(folder)
        kept = [path for path in _all(folder) if path.name <= target.name]
        for old in _all(folder):
            if old not in kept[-limit:]:  # later ones are broken, or this run would not have made this step
                shutil.rmtree(old)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in the folder, whole or not; nothing is read."""
    return next(reversed(_all(folder)), None)


def newest_whole(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, None where there are none at all; and what is wrong with later ones.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """
    broken: list[str] = []
    for path in reversed(_all(folder)):
        try:
            return _read(path), broken
        except InputError as error:
            broken.append(str(error))
    if broken:
        raise InputError(f"--resume: no checkpoint is whole: {'; '.join(broken)}; use another --out")
    return None, []


def _all(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir() and path.suffix == "")


def _read(path: Path) -> Checkpoint:
    """Raises InputError: not whole."""
    try:
        with safe_open(path / _FILE, "pt") as file:
            metadata = file.metadata() or {}
            names = sorted(file.keys())
            digest = tensors_digest((name, file.get_tensor(name)) for name in names)
        step, text = metadata["step"], metadata["record"]
        whole = digest == metadata["digest"] and f"{_PREFIX}{int(step):07d}" == path.name
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is broken ({str(error) or type(error).__name__})") from error
    if not whole:
        raise InputError(f"{path} is broken (it does not hold what was written)")
    return Checkpoint(path, int(step), parse_object(text, f"{path}, its record"))


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
