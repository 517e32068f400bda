"""The trajectory cache: recorded shared phases, found by prompt embedding, for later requests to replay.

It knows no HTTP and no model: the `CacheKey` says which runs are compatible, embeddings say which prompts are similar.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sagediff.errors import InputError, OutputError
from sagediff.files.digest import number_of
from sagediff.sampling.trajectory import Trajectory
from sagediff.serving.engine.cache_files import (
    CacheKey,
    Entry,
    Vector,
    entry_name,
    entry_path,
    entry_paths,
    read_entry,
    remove_leftovers,
    write_entry,
)

_LOG = logging.getLogger(__name__)


class TrajectoryCache:
    """Trajectories within a limit of bytes; those that save least for their size are evicted first. Safe for threads.

    An entry ranks by age + value * (1 + uses) / bytes, where the cache's age grows with every eviction
    (Greedy-Dual-Size-Frequency), so that what was useful long ago is evicted in the end.

    Args:
        max_bytes: most bytes of all tensors together, in memory; a folder's files add their headers.
        folder: where entries are also kept on disk, for the next start; None (default): memory only. Created readable
            by its owner only, and used by one cache at a time. Counts of uses are not kept.
        variety: trajectories near a prompt before all requests replay. Higher: more compositions, fewer replays at
            first.

    Raises:
        InputError: max_bytes or variety below 1.
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
        self._ranks: dict[str, float] = {}  # of each entry, age included
        self._uses: dict[str, int] = {}
        self._age = 0.0
        self._nbytes = 0
        self._from_files: set[CacheKey] = set()  # keys of entries that no vector was compared to yet
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
        """Add a trajectory; one of the same key, seed and centroid is replaced.

        Args:
            centroid: (D,) of any length but 0; D is the same for all of one key.
            evaluations_saved_value: evaluations that one replay saves.

        Returns:
            The entry, its tensors on the CPU; None if it does not fit, or would evict entries that rank higher.

        Raises:
            InputError: an invalid vector, value or trajectory.
        """
        unit = _unit(centroid)
        entry = Entry(
            entry_name(key, unit, noise_seed), key, unit, int(noise_seed), trajectory.to("cpu"),
            float(evaluations_saved_value),
        )  # fmt: skip
        with self._lock:
            self._check_length(key, unit)
            if not self._keep(entry):
                return None
            if self._folder is not None:
                try:
                    write_entry(self._folder, entry)
                except OutputError as error:
                    _LOG.warning("the trajectory cache keeps an entry in memory only: %s", error)
        return entry

    def find(self, key: CacheKey, embedding: npt.ArrayLike, threshold: float) -> list[Entry]:
        """Entries of that key whose centroid has a cosine similarity of at least `threshold`, nearest first.

        Finding an entry does not count as a use; `pick` does.

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
        """The entry that a request with that seed replays; it varies with the seed, so that compositions vary.

        The same seed and candidates, in any order, give the same entry. None if there are no candidates, and for some
        seeds while there are fewer than `variety`: those requests record a trajectory of their own.
        """
        place = number_of(str(seed)) % max(len(candidates), self.variety)
        if place >= len(candidates):
            return None
        chosen = sorted(candidates, key=lambda entry: entry.name)[place]
        with self._lock:
            if chosen.name in self._ranks:  # else it was evicted meanwhile; it can be replayed all the same
                self._uses[chosen.name] += 1
                self._ranks[chosen.name] = self._rank(chosen)
        return chosen

    def discard(self, entry: Entry) -> None:
        """Remove an entry, also from disk; nothing happens if it is gone already."""
        with self._lock:
            if entry.name in self._ranks:
                self._remove(entry)

    # -- called with the lock held

    def _check_length(self, key: CacheKey, unit: Vector) -> None:
        """Entries that were put have their key's length; of those from files, the first vector to compare says it."""
        held = list(self._entries.get(key, {}).values())
        if key in self._from_files:
            self._from_files.discard(key)
            for entry in held:
                if entry.centroid.shape != unit.shape:
                    _LOG.warning(
                        "a file of the trajectory cache is skipped: %s has a centroid of %d numbers, prompts have %d",
                        entry.name, len(entry.centroid), len(unit),
                    )  # fmt: skip
                    self._forget(entry)
        elif held and held[0].centroid.shape != unit.shape:
            raise InputError(
                f"a vector has {len(unit)} entries, but those cached under its key have "
                f"{len(held[0].centroid)}; name the encoder in the key"
            )

    def _rank(self, entry: Entry) -> float:
        return self._age + entry.value * (1 + self._uses.get(entry.name, 0)) / entry.nbytes

    def _keep(self, entry: Entry) -> bool:
        """Make room and add the entry, or leave everything as it is; returns whether it was added."""
        before = self._entries.get(entry.key, {}).get(entry.name)
        freed = 0 if before is None else before.nbytes
        held = {e.name: e for of_key in self._entries.values() for e in of_key.values() if e is not before}
        rank, going = self._rank(entry), []
        for name in sorted(held, key=lambda name: (self._ranks[name], name)):
            if self._nbytes - freed + entry.nbytes <= self.max_bytes:
                break
            if self._ranks[name] > rank:
                self._age = max(self._age, rank)  # so that a later entry like it will find room
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
        self._forget(entry)
        if self._folder is not None:
            _unlink(entry_path(self._folder, entry.name))

    def _forget(self, entry: Entry) -> None:
        """Its file stays."""
        del self._entries[entry.key][entry.name], self._ranks[entry.name], self._uses[entry.name]
        if not self._entries[entry.key]:
            del self._entries[entry.key]
        self._nbytes -= entry.nbytes

    def _load(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(folder)
        for path in entry_paths(folder):
            try:
                entry = read_entry(path, self.max_bytes)
            except Exception as error:  # of any kind: a file must not keep the server from starting
                told = error if isinstance(error, InputError) else f"{path}: {error!r}"
                _LOG.warning("a broken file of the trajectory cache is skipped: %s", told)
                continue
            if self._keep(entry):
                self._from_files.add(entry.key)
            else:  # the limit is lower than it was
                _unlink(path)
            self._age = 0.0  # files are not read in the order of their age


def config_text(config: Mapping[str, Any]) -> str:
    """A scheduler's configuration as one text, equal for equal configurations."""
    return json.dumps(dict(config), sort_keys=True, default=str)


def _unit(vector: npt.ArrayLike) -> Vector:
    """(D,) as float32 of length 1."""
    flat = np.asarray(vector, dtype=np.float64)
    norm = float(np.linalg.norm(flat)) if flat.ndim == 1 else 0.0
    if not (math.isfinite(norm) and norm > 0):
        raise InputError(
            f"expected one finite vector with a norm above 0, got shape {flat.shape}, norm {norm}"
        )
    return np.asarray(flat / norm, dtype=np.float32)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # a folder under a file's name, or no right to
        _LOG.warning("a file of the trajectory cache stays: %s: %s", path, error.strerror)
