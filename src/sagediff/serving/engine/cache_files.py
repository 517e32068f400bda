"""Entries of the trajectory cache as files: one safetensors file each, named by what it holds.

Anything may lie in a cache's folder: what another version wrote, what a crash or somebody left. A file is believed only
if it is whole, of the types that are written here, and holds what its name and its digest say.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from sagediff.errors import InputError
from sagediff.files.atomic import writing
from sagediff.files.digest import cache_name
from sagediff.files.json_input import parse_object
from sagediff.files.tensor_digest import tensors_digest
from sagediff.sampling.trajectory import Trajectory, read_file

Vector = npt.NDArray[np.float32]

_SUFFIX = ".safetensors"
_LEFTOVER = re.compile(r"[0-9a-f]{40}\.safetensors\.[0-9a-f]{12}\.partial")  # of `files.atomic.writing`
_LARGEST_RECORD = 1 << 20  # bytes
_UNIT = 1e-3  # how far a centroid's length may be from 1


@dataclass(frozen=True)
class CacheKey:
    """Everything that changes a trajectory's numbers, or who may see it; only requests of an equal key replay it.

    Attributes:
        tenant: whose requests may replay; never a secret, since it is written into files.
        model, lora: hashes of the weights; "" for no LoRA.
        scheduler, scheduler_config: class name, and its configuration as text (`config_text`).
        num_steps, branch_step: sampling steps, and how many of them are replayed.
        guidance_scale: as the pipeline was given it.
        sharing: every option of sharing, as JSON.
        height, width: of the image, pixels.
        dtype: of the denoiser's output.
        other: anything else: negative prompt, group condition, the encoder of the embeddings.
    """

    tenant: str
    model: str
    lora: str
    scheduler: str
    scheduler_config: str
    num_steps: int
    branch_step: int
    guidance_scale: float
    sharing: str
    height: int
    width: int
    dtype: str
    other: str = ""


@dataclass(frozen=True, eq=False)
class Entry:
    """A cached trajectory.

    Attributes:
        name: of the entry, from key, noise seed and centroid.
        centroid: (D,) unit vector: the mean direction of the group's prompt embeddings.
        noise_seed: seed of the group's initial noise; a request that replays must start from the same.
        value: evaluations that one replay saves.

    Raises:
        InputError: a trajectory shorter than the key says, numbers that are not finite, or a value out of range.
    """

    name: str
    key: CacheKey
    centroid: Vector
    noise_seed: int
    trajectory: Trajectory
    value: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value >= 0):
            raise InputError(f"evaluations_saved_value must be at least 0, got {self.value}")
        if self.trajectory.num_steps < self.key.branch_step:
            raise InputError(
                f"the key says that {self.key.branch_step} steps are replayed, but the trajectory holds "
                f"{self.trajectory.num_steps}"
            )
        if not self.trajectory.is_finite:
            raise InputError("the trajectory holds numbers that are not finite")

    @property
    def nbytes(self) -> int:
        return self.trajectory.nbytes + self.centroid.nbytes


def entry_name(key: CacheKey, centroid: Vector, noise_seed: int) -> str:
    """What tells an entry from others: its key, noise seed and centroid."""
    text = json.dumps(asdict(key), sort_keys=True) + f"\0{int(noise_seed)}\0"
    return cache_name(text.encode() + centroid.tobytes())


def entry_path(folder: Path, name: str) -> Path:
    return folder / f"{name}{_SUFFIX}"


def entry_paths(folder: Path) -> Iterator[Path]:
    """What could be entries, by name."""
    return iter(sorted(folder.glob(f"*{_SUFFIX}")))


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left of entries that it was writing, and nothing else."""
    for path in folder.glob("*.partial"):
        if _LEFTOVER.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def write_entry(folder: Path, entry: Entry) -> None:
    """Raises OutputError if the disk refuses."""
    tensors = entry.trajectory.tensors() | {"centroid": torch.from_numpy(entry.centroid)}
    told = {
        "key": asdict(entry.key), "noise_seed": entry.noise_seed, "value": entry.value,
        "digest": tensors_digest(sorted(tensors.items())),
    }  # fmt: skip
    with writing(entry_path(folder, entry.name)) as partial:
        save_file(tensors, str(partial), entry.trajectory.metadata() | {"entry": json.dumps(told)})


def read_entry(path: Path, max_bytes: int) -> Entry:
    """The entry that a file holds.

    Raises:
        InputError: none, or not the one that its name says, or it is larger than `max_bytes`.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if size > max_bytes + _LARGEST_RECORD:
        raise InputError(f"{path} is larger than the cache: {size} bytes")
    tensors, metadata = read_file(path)
    record = parse_object(metadata.get("entry", ""), f"{path}, its record", max_bytes=_LARGEST_RECORD)
    where = f"{path} holds no entry of a trajectory cache"
    if set(record) != {"key", "noise_seed", "value", "digest"}:
        raise InputError(f"{where}: its record has the names {sorted(record)[:8]}")
    key = _key(record["key"], where)
    seed, value = record["noise_seed"], record["value"]
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise InputError(f"{where}: its noise seed is {str(seed)[:40]!r}")
    if type(value) not in (int, float):
        raise InputError(f"{where}: its value is {str(value)[:40]!r}")
    centroid = _centroid(tensors, where)
    name = entry_name(key, centroid, seed)
    if path.stem != name or record["digest"] != tensors_digest(sorted(tensors.items())):
        raise InputError(f"{path} does not hold the entry that its name and digest say; remove it")
    try:
        return Entry(name, key, centroid, seed, Trajectory.from_tensors(tensors, metadata), float(value))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _key(found: Any, where: str) -> CacheKey:
    types = get_type_hints(CacheKey)
    if not isinstance(found, dict) or set(found) != set(types):
        raise InputError(f"{where}: its key is none")
    for name, kind in types.items():
        allowed = (int, float) if kind is float else (kind,)
        if type(found[name]) not in allowed:
            raise InputError(f"{where}: {name} in its key is {str(found[name])[:40]!r}")
    if not 0 < found["branch_step"] <= found["num_steps"] or min(found["height"], found["width"]) < 0:
        raise InputError(f"{where}: its key's numbers are out of range")
    return CacheKey(**found)


def _centroid(tensors: Mapping[str, Tensor], where: str) -> Vector:
    found = tensors.get("centroid")
    if found is None or found.dtype != torch.float32 or found.ndim != 1:
        raise InputError(f"{where}: its centroid is no vector in float32")
    centroid: Vector = found.numpy()
    if not abs(float(np.linalg.norm(centroid.astype(np.float64))) - 1) <= _UNIT:  # so that NaN fails too
        raise InputError(f"{where}: its centroid is not of length 1")
    return centroid
