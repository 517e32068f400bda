"""The trajectory cache: within its bytes, never across keys, nothing lost that was not evicted, disk as memory."""

from __future__ import annotations

import logging
import shutil
import stat
import tempfile
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sagediff.errors import InputError
from sagediff.sampling.trajectory import Trajectory
from sagediff.serving.engine.cache_files import CacheKey, Entry
from sagediff.serving.engine.trajectory_cache import TrajectoryCache, config_text

KEY = CacheKey("anna", "model", "", "DDIMScheduler", "{}", 8, 2, 4.0, "{}", 64, 64, "float32")
KEYS = [KEY, replace(KEY, tenant="ben"), replace(KEY, guidance_scale=5.0), replace(KEY, num_steps=10)]
DIMENSIONS = 3


def trajectory(fill: float, size: int = 8) -> Trajectory:
    """Two steps of one row of `size` numbers."""
    outputs = torch.full((1, size), fill), torch.full((1, size), -fill)
    return Trajectory(outputs, (1, 1), (9.0, 5.0), (size,), 2, (fill,))


def direction(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle), 0.0])


BYTES = trajectory(0.0).nbytes + 4 * DIMENSIONS  # of one entry

vectors = st.tuples(*[st.integers(-3, 3)] * DIMENSIONS).filter(any).map(lambda v: np.array(v, float))


class CacheMachine(RuleBasedStateMachine):
    """The cache beside a plain dict of all that it has taken and not evicted."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(bound=st.integers(1, 6), on_disk=st.booleans())
    def begin(self, bound: int, on_disk: bool) -> None:
        self.bound, self.on_disk = bound * BYTES, on_disk
        self.cache = TrajectoryCache(self.bound, self.folder if on_disk else None)
        self.taken: dict[str, Entry] = {}

    def held(self) -> dict[str, Entry]:
        """What can be found, by looking for all."""
        found: dict[str, Entry] = {}
        for key in KEYS:
            for entry in self.cache.find(key, np.ones(DIMENSIONS), -1.1):
                assert entry.key == key
                found[entry.name] = entry
        return found

    @rule(
        key=st.sampled_from(KEYS),
        centroid=vectors,
        seed=st.integers(0, 2),
        fill=st.integers(0, 100),
        size=st.sampled_from([4, 8, 40]),
        value=st.integers(0, 20),
    )
    def put(self, key: CacheKey, centroid: np.ndarray, seed: int, fill: int, size: int, value: int) -> None:
        before = self.held()
        given = trajectory(float(fill), size)
        entry = self.cache.put(key, centroid, seed, given, value)
        after = self.held()
        if entry is None:
            assert after.keys() == before.keys()
            assert self.cache.nbytes + given.nbytes + 4 * DIMENSIONS > self.bound  # there was no room
            return
        assert after[entry.name].trajectory.equals(given)
        gone = before.keys() - after.keys()
        fits = sum(e.nbytes for e in (before | {entry.name: entry}).values()) <= self.bound
        assert not (fits and gone)
        assert after.keys() - before.keys() <= {entry.name}
        self.taken[entry.name] = entry
        for name in gone:
            del self.taken[name]

    @rule(key=st.sampled_from(KEYS), embedding=vectors, threshold=st.floats(-1, 1), seed=st.integers(0, 99))
    def find(self, key: CacheKey, embedding: np.ndarray, threshold: float, seed: int) -> None:
        unit = embedding / np.linalg.norm(embedding)
        found = self.cache.find(key, embedding, threshold)
        alike = [float(entry.centroid @ unit) for entry in found]
        assert all(entry.key == key for entry in found)
        assert all(value >= threshold - 1e-6 for value in alike)
        assert all(a >= b - 1e-6 for a, b in pairwise(alike))
        names = {entry.name for entry in found}
        for entry in self.taken.values():
            if entry.key == key and float(entry.centroid @ unit) >= threshold + 1e-6:
                assert entry.name in names
        picked = self.cache.pick(found, seed)
        assert (picked is None) == (not found)
        assert picked is self.cache.pick(found[::-1], seed)

    @rule(key=st.sampled_from(KEYS))
    def forget_a_tenant(self, key: CacheKey) -> None:
        for entry in self.taken.values():
            if entry.key.tenant == key.tenant:
                self.cache.discard(entry)
        self.taken = {name: e for name, e in self.taken.items() if e.key.tenant != key.tenant}

    @rule()
    def restart(self) -> None:
        if self.on_disk:
            ours = self.folder / f"{'0' * 40}.safetensors.{'1' * 12}.partial"  # of a killed process
            foreign = self.folder / "download.partial"
            ours.write_bytes(b"half a fi")
            foreign.write_bytes(b"of somebody else")
            self.cache = TrajectoryCache(self.bound, self.folder)
            assert list(self.folder.glob("*.partial")) == [foreign]

    @invariant()
    def holds_what_it_took(self) -> None:
        held = self.held()
        assert held.keys() == self.taken.keys()
        for name, entry in held.items():
            mine = self.taken[name]
            assert entry.trajectory.equals(mine.trajectory)
            assert np.array_equal(entry.centroid, mine.centroid)
            assert (entry.noise_seed, entry.value, entry.key) == (mine.noise_seed, mine.value, mine.key)

    @invariant()
    def is_within_its_bound(self) -> None:
        assert self.cache.nbytes == sum(entry.nbytes for entry in self.taken.values()) <= self.bound
        assert len(self.cache) == len(self.taken)
        on_disk = {path.stem for path in self.folder.glob("*.safetensors")}
        assert on_disk == (self.taken.keys() if self.on_disk else set())


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_saves_least_for_its_bytes_goes_first() -> None:
    cache = TrajectoryCache(3 * BYTES)
    for angle, value in ((0.0, 5.0), (0.1, 3.0), (0.2, 9.0), (0.3, 7.0)):
        assert cache.put(KEY, direction(angle), 0, trajectory(angle), value) is not None
    assert {entry.value for entry in cache.find(KEY, direction(0.0), 0.0)} == {5.0, 7.0, 9.0}
    assert cache.put(KEY, direction(0.4), 0, trajectory(1.0), 1.0) is None  # all others are worth more


def test_use_keeps_an_entry_and_age_takes_it_in_the_end() -> None:
    cache = TrajectoryCache(2 * BYTES)
    used = cache.put(KEY, direction(0.0), 0, trajectory(1.0), 2.0)
    assert used is not None
    cache.put(KEY, direction(1.0), 0, trajectory(2.0), 3.0)
    for _ in range(3):
        assert cache.pick([used], 0) is used
    kept = []
    for step in range(20):
        cache.put(KEY, direction(1.1 + step / 100), 0, trajectory(3.0), 3.0)
        kept.append(any(entry is used for entry in cache.find(KEY, direction(0.0), 0.99)))
    assert kept[0] and not kept[-1]


def test_what_is_too_large_is_not_taken_and_displaces_nothing() -> None:
    cache = TrajectoryCache(2 * BYTES)
    cache.put(KEY, direction(0.0), 0, trajectory(1.0), 1.0)
    assert cache.put(KEY, direction(0.0), 1, trajectory(1.0, 1000), 1e9) is None
    assert len(cache) == 1


@pytest.mark.parametrize("name", [field.name for field in fields(CacheKey)])
def test_every_part_of_the_key_keeps_entries_apart(name: str) -> None:
    value = getattr(KEY, name)
    other = replace(KEY, **{name: f"{value}x" if isinstance(value, str) else (value or 0) + 1})
    cache = TrajectoryCache(10 * BYTES)
    given = Trajectory((torch.zeros(1, 4),) * 3, (1, 1, 1), (3.0, 2.0, 1.0), (4,), 2, ())
    cache.put(KEY, direction(0.0), 0, given, 1.0)
    assert cache.find(other, direction(0.0), -1.0) == []
    assert cache.put(other, direction(0.0), 0, given, 1.0) is not None
    assert len(cache.find(KEY, direction(0.0), -1.0)) == 1


def test_people_do_not_all_get_one_composition() -> None:
    cache = TrajectoryCache(10 * BYTES, variety=3)
    picks = []
    for noise_seed in range(4):
        candidates = cache.find(KEY, direction(0.0), 0.9)
        chosen = [cache.pick(candidates, seed) for seed in range(200)]
        picks.append({entry.noise_seed if entry else None for entry in chosen})
        cache.put(KEY, direction(noise_seed / 100), noise_seed, trajectory(noise_seed), 1.0)
    assert picks == [{None}, {None, 0}, {None, 0, 1}, {0, 1, 2}]


def test_broken_files_are_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = TrajectoryCache(10 * BYTES, tmp_path)
    for seed in range(4):
        cache.put(KEY, direction(0.0), seed, trajectory(float(seed)), 1.0)
    one, two, three, four = sorted(tmp_path.glob("*.safetensors"))
    one.write_bytes(one.read_bytes()[:-7])
    two.rename(tmp_path / "other.safetensors")
    trajectory(1.0).save(three)  # a trajectory, but no entry
    with caplog.at_level(logging.WARNING):
        again = TrajectoryCache(10 * BYTES, tmp_path)
    assert [entry.name for entry in again.find(KEY, direction(0.0), 0.0)] == [four.stem]
    assert len(caplog.records) == 3
    assert one.exists()  # for who wants to look


def test_a_lower_bound_after_a_restart_is_kept(tmp_path: Path) -> None:
    cache = TrajectoryCache(10 * BYTES, tmp_path)
    for seed in range(6):
        cache.put(KEY, direction(0.0), seed, trajectory(1.0), float(seed))
    again = TrajectoryCache(2 * BYTES, tmp_path)
    assert {entry.value for entry in again.find(KEY, direction(0.0), 0.0)} == {4.0, 5.0}
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_the_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    TrajectoryCache(BYTES, tmp_path / "cache")
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_written_costs_the_files_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TrajectoryCache(10 * BYTES, tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    entry = cache.put(KEY, direction(0.0), 0, trajectory(1.0), 1.0)
    assert cache.find(KEY, direction(0.0), 0.9) == [entry]
    assert "in memory only" in caplog.text


def test_many_threads_keep_the_bound() -> None:
    cache = TrajectoryCache(5 * BYTES)

    def work(number: int) -> None:
        for step in range(40):
            cache.put(KEYS[step % 4], direction(step / 10), number, trajectory(1.0), float(step % 7))
            cache.pick(cache.find(KEYS[step % 4], direction(step / 10), 0.5), step)
            assert cache.nbytes <= cache.max_bytes

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = sum(len(cache.find(key, direction(0.0), -1.1)) for key in KEYS)
    assert held == len(cache) and cache.nbytes == held * BYTES


def test_wrong_input_is_refused() -> None:
    cache = TrajectoryCache(10 * BYTES)
    cache.put(KEY, direction(0.0), 0, trajectory(1.0), 1.0)
    for vector in ([0.0, 0.0, 0.0], [[1.0, 2.0]], [float("nan"), 0.0, 1.0], [1.0, 2.0]):
        with pytest.raises(InputError):
            cache.find(KEY, vector, 0.5)
        with pytest.raises(InputError):
            cache.put(KEY, vector, 0, trajectory(1.0), 1.0)
    for value in (-1.0, float("inf")):
        with pytest.raises(InputError, match="evaluations_saved_value"):
            cache.put(KEY, direction(0.0), 0, trajectory(1.0), value)
    with pytest.raises(InputError, match="trajectory holds 2"):
        cache.put(replace(KEY, branch_step=3), direction(0.0), 0, trajectory(1.0), 1.0)
    for options in ({"max_bytes": 0}, {"max_bytes": 1, "variety": 0}):
        with pytest.raises(InputError):
            TrajectoryCache(**options)


def test_equal_configurations_are_one_text() -> None:
    assert config_text({"b": 1, "a": [1, 2]}) == config_text({"a": [1, 2], "b": 1})
    assert config_text({"a": 1}) != config_text({"a": 2})
