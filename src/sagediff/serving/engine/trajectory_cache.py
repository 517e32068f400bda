"""The trajectory cache: recorded shared phases by what they mean, for later requests to replay.

It knows no HTTP and no model: what makes two runs alike is in the `CacheKey`, how near two prompts are in their
embeddings.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sagediff.errors import InputError, OutputError
from sagediff.files.atomic import sweep, writing
from sagediff.files.digest import cache_name, number_of
from sagediff.sampling.trajectory import Trajectory, read_file

Vector = npt.NDArray[np.float32]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheKey:
    """Everything that changes a trajectory's numbers, or who may see it; entries of unlike keys never meet.

    Attributes:
        tenant: whose requests may replay; a name, never a secret, since it is written into files.
        model, lora: hashes of the weights; "" for no LoRA.
        scheduler, scheduler_config: class name, and its configuration as `config_text` makes it.
        num_steps, branch_step: sampling steps, and how many of them are replayed.
        guidance_scale, shared_guidance, unguided_steps: as the plan and the pipeline were given them.
        height, width: of the image, pixels.
        dtype: of the denoiser's answers.
        other: whatever else there is: negative prompt, group condition, the encoder that made the embeddings.
    """

    tenant: str
    model: str
    lora: str
    scheduler: str
    scheduler_config: str
    num_steps: int
    branch_step: int
    guidance_scale: float
    shared_guidance: float | None
    unguided_steps: int
    height: int
    width: int
    dtype: str
    other: str = ""


@dataclass(frozen=True, eq=False)
class Entry:
    """A cached trajectory.

    Attributes:
        name: of the entry, from key, noise seed and centroid.
        centroid: (D,) unit vector: the middle of the group's prompt embeddings.
        noise_seed: seed of the noise that the group started from, and whoever replays must start from.
        value: evaluations that one replay saves.
    """

    name: str
    key: CacheKey
    centroid: Vector
    noise_seed: int
    trajectory: Trajectory
    value: float

    @property
    def nbytes(self) -> int:
        return self.trajectory.nbytes + self.centroid.nbytes


class TrajectoryCache:
    """Trajectories within a bound of bytes; those that save least for their size go first. Safe for threads.

    What an entry is worth is its value times one more than its uses, by its bytes, on top of an age that grows with
    every eviction (Greedy-Dual-Size-Frequency): what was useful long ago goes in the end.

    Args:
        max_bytes: most bytes of all tensors together, in memory; a folder's files add their headers.
        folder: where entries are also kept on disk, for the next start; None (default): nowhere. Made for the
            owner's eyes only, and used by one cache at a time. Uses are not kept.
        variety: how many trajectories there should be near a prompt before all requests replay. Higher: more
            compositions, fewer replays at first.

    Raises:
        InputError: a bound or variety below 1.
    """

    def __init__(self, max_bytes: int, folder: str | Path | None = None, variety: int = 1) -> None:
        if max_bytes < 1:
            raise InputError(f"max_bytes must be at least 1, got {max_bytes}")
        if variety < 1:
            raise InputError(f"variety must be at least 1, got {variety}")
        self.max_bytes, self.variety = max_bytes, variety
        self._folder = None if folder is None else Path(folder)
        self._lock = threading.RLock()
        self._entries: dict[CacheKey, dict[str, Entry]] = {}
        self._ranks: dict[str, float] = {}  # worth of each entry, age included
        self._uses: dict[str, int] = {}
        self._age = 0.0
        self._nbytes = 0
        if self._folder is not None:
            self._load(self._folder)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._ranks)

    def put(
        self,
        key: CacheKey,
        centroid: npt.ArrayLike,
        noise_seed: int,
        trajectory: Trajectory,
        evaluations_saved_value: float,
    ) -> Entry | None:
        """Keep a trajectory; one of the same key, seed and centroid is replaced.

        Args:
            centroid: (D,) of any length but 0; D is the same for all of one key.
            evaluations_saved_value: evaluations that one replay saves.

        Returns:
            The entry, its tensors on the CPU; None if it does not fit, or all that it would displace is worth more.

        Raises:
            InputError: a vector, value or trajectory that cannot be right.
        """
        if not (math.isfinite(evaluations_saved_value) and evaluations_saved_value >= 0):
            raise InputError(f"evaluations_saved_value must be at least 0, got {evaluations_saved_value}")
        if trajectory.num_steps < key.branch_step:
            raise InputError(
                f"the key says that {key.branch_step} steps are replayed, but the trajectory holds "
                f"{trajectory.num_steps}"
            )
        unit = _unit(centroid)
        entry = Entry(
            _name(key, unit, noise_seed), key, unit, int(noise_seed), trajectory.to("cpu"),
            float(evaluations_saved_value),
        )  # fmt: skip
        with self._lock:
            self._check_length(key, unit)
            if not self._keep(entry):
                return None
            if self._folder is not None:
                _write(self._folder, entry)
        return entry

    def find(self, key: CacheKey, embedding: npt.ArrayLike, threshold: float) -> list[Entry]:
        """Entries of that key whose centroid is at least `threshold` alike by cosine, nearest first.

        Looking is no use: `pick` counts.

        Raises:
            InputError: an embedding of another length than the centroids, or of length 0.
        """
        unit = _unit(embedding)
        with self._lock:
            self._check_length(key, unit)
            entries = list(self._entries.get(key, {}).values())
        if not entries:
            return []
        alike = np.stack([entry.centroid for entry in entries]) @ unit  # (entries,)
        order = sorted(range(len(entries)), key=lambda i: (-alike[i], entries[i].name))
        return [entries[i] for i in order if alike[i] >= threshold]

    def pick(self, candidates: Sequence[Entry], seed: int) -> Entry | None:
        """The one that a request with that seed replays, so that people do not all get one composition.

        The same seed and candidates, in any order, give the same. None, also where there are candidates but fewer
        than `variety`: then some of the seeds are to make a trajectory of their own.
        """
        if not candidates:
            return None
        place = number_of(str(seed)) % max(len(candidates), self.variety)
        if place >= len(candidates):
            return None
        chosen = sorted(candidates, key=lambda entry: entry.name)[place]
        with self._lock:
            if (
                chosen.name in self._ranks
            ):  # it may have gone meanwhile; who holds it can replay it all the same
                self._uses[chosen.name] += 1
                self._ranks[chosen.name] = self._rank(chosen)
        return chosen

    def discard(self, entry: Entry) -> None:
        """Remove one, also from disk; nothing happens if it has gone."""
        with self._lock:
            if entry.name in self._ranks:
                self._remove(entry)

    def clear(self, tenant: str | None = None) -> None:
        """Remove everything, or everything of one tenant, also from disk."""
        with self._lock:
            for key in [key for key in self._entries if tenant in (None, key.tenant)]:
                for entry in list(self._entries[key].values()):
                    self._remove(entry)

    # -- within the bound, under the lock

    def _check_length(self, key: CacheKey, unit: Vector) -> None:
        for entry in self._entries.get(key, {}).values():
            if entry.centroid.shape != unit.shape:
                raise InputError(
                    f"a vector has {len(unit)} entries, but those cached under its key have "
                    f"{len(entry.centroid)}; name the encoder in the key"
                )
            return

    def _rank(self, entry: Entry) -> float:
        return self._age + entry.value * (1 + self._uses.get(entry.name, 0)) / entry.nbytes

    def _keep(self, entry: Entry) -> bool:
        """Make room and take the entry in, or leave all as it is; says which."""
        before = self._entries.get(entry.key, {}).get(entry.name)
        freed = 0 if before is None else before.nbytes
        held = {e.name: e for of_key in self._entries.values() for e in of_key.values() if e is not before}
        rank, going = self._rank(entry), []
        for name in sorted(held, key=lambda name: (self._ranks[name], name)):
            if self._nbytes - freed + entry.nbytes <= self.max_bytes:
                break
            if self._ranks[name] > rank:
                self._age = max(self._age, rank)  # so that the next of its kind will find room
                return False
            going.append(held[name])
            freed += held[name].nbytes
        if self._nbytes - freed + entry.nbytes > self.max_bytes:
            return False
        for other in going:
            self._age = max(self._age, self._ranks[other.name])
            self._remove(other)
        if before is not None:
            self._remove(before)
        self._entries.setdefault(entry.key, {})[entry.name] = entry
        self._uses[entry.name] = 0
        self._ranks[entry.name] = self._rank(entry)
        self._nbytes += entry.nbytes
        return True

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.key][entry.name], self._ranks[entry.name], self._uses[entry.name]
        if not self._entries[entry.key]:
            del self._entries[entry.key]
        self._nbytes -= entry.nbytes
        if self._folder is not None:
            _path(self._folder, entry.name).unlink(missing_ok=True)

    def _load(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(folder)
        for path in sorted(folder.glob("*.safetensors")):
            try:
                entry = _read(path)
                self._check_length(entry.key, entry.centroid)
            except InputError as error:
                _LOG.warning("a broken file of the trajectory cache is skipped: %s", error)
                continue
            if not self._keep(entry):  # the bound is lower than it was
                path.unlink(missing_ok=True)
            self._age = 0.0  # the order of reading is not one of coming


def config_text(config: Mapping[str, Any]) -> str:
    """A scheduler's configuration as one text, equal for equal configurations."""
    return json.dumps(dict(config), sort_keys=True, default=str)


def _unit(vector: npt.ArrayLike) -> Vector:
    """(D,) as float32 of length 1."""
    flat = np.asarray(vector, dtype=np.float64)
    norm = float(np.linalg.norm(flat)) if flat.ndim == 1 else 0.0
    if not (math.isfinite(norm) and norm > 0):
        raise InputError(
            f"expected one finite vector of a length above 0, got shape {flat.shape}, norm {norm}"
        )
    return np.asarray(flat / norm, dtype=np.float32)


def _name(key: CacheKey, centroid: Vector, noise_seed: int) -> str:
    text = json.dumps(asdict(key), sort_keys=True) + f"\0{int(noise_seed)}\0"
    return cache_name(text.encode() + centroid.tobytes())


# -- on disk


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _write(folder: Path, entry: Entry) -> None:
    """A full disk costs the file only."""
    header = json.dumps({"key": asdict(entry.key), "noise_seed": entry.noise_seed, "value": entry.value})
    tensors = entry.trajectory.tensors() | {"centroid": torch.from_numpy(entry.centroid)}
    target = _path(folder, entry.name)
    try:
        with writing(target) as partial:
            save_file(tensors, str(partial), entry.trajectory.metadata() | {"entry": header})
    except (OutputError, SafetensorError) as error:
        _LOG.warning("the trajectory cache keeps an entry in memory only: %s", error)


def _read(path: Path) -> Entry:
    """Raises InputError for a file that holds no entry, or another one than its name says."""
    tensors, metadata = read_file(path)
    trajectory = Trajectory.from_tensors(tensors, metadata)
    try:
        header = json.loads(metadata["entry"])
        key, seed, value = CacheKey(**header["key"]), int(header["noise_seed"]), float(header["value"])
        centroid = np.asarray(tensors["centroid"].numpy(), dtype=np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no entry of a trajectory cache: {error!r}") from error
    name = _name(key, centroid, seed)
    if path.stem != name or not (math.isfinite(value) and value >= 0):
        raise InputError(f"{path} does not hold what its name says; remove it")
    return Entry(name, key, centroid, seed, trajectory, value)
