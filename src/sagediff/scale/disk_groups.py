"""Prompts -> groups by way of a folder; finished parts found there are reused, so that a killed run can be resumed.

The folder holds the embeddings (`disk_vectors`) and `groups.npz`. In memory are the prompts' text, the groups as lists,
and one cell per process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sagediff.files.atomic import sweep, writing
from sagediff.files.claim import claimed_output
from sagediff.files.digest import texts_digest
from sagediff.files.text_input import is_file
from sagediff.plan.grouping import group_prompts
from sagediff.prompts.embeddings import TextEncoder
from sagediff.scale.cover import CoverOptions, OnProgress, group_on_disk
from sagediff.scale.disk_vectors import DiskVectors, Ints, embed_to_disk

GROUPS = "groups.npz"


def groups_at_scale(
    prompts: Sequence[str],
    encoder: TextEncoder,
    folder: Path,
    options: CoverOptions,
    *,
    source: str = "",
    copies: Sequence[int] | None = None,
    pools: Sequence[int | None] | None = None,
    on_progress: OnProgress | None = None,
) -> list[list[int]]:
    """Embed and group, on disk.

    Args:
        pools: for each prompt the number of those that it may share with, None for one that may share with none
            (`plan.compatibility.sharing_pools`). None: all with all.
        copies: for each prompt how many that equal it come before, where copies must be in different groups: the first
            ones are grouped, and the second ones of a group's prompts make a group, and so on. None: they may share.
        source: what the vectors depend on besides the encoder's name (see `embed_to_disk`).

    Returns:
        Groups of prompt numbers, every prompt once; each ascending, groups by their first prompt.

    Raises:
        InputError: the folder belongs to other prompts or another encoder, or another run is writing there.
        OutputError: it cannot be written to.
    """
    with claimed_output(folder, "--work"):
        return _groups(prompts, encoder, folder, options, source, copies, pools, on_progress)


def _groups(
    prompts: Sequence[str],
    encoder: TextEncoder,
    folder: Path,
    options: CoverOptions,
    source: str,
    copies: Sequence[int] | None,
    pools: Sequence[int | None] | None,
    on_progress: OnProgress | None,
) -> list[list[int]]:
    report = on_progress or (lambda stage, done, total: None)
    texts, inverse = distinct(prompts)
    vectors = embed_to_disk(
        texts, encoder, folder, source=source, on_batch=lambda done: report("embedding", done, len(texts))
    )
    choice = asdict(options) | {"jobs": 0}  # processes change no group
    key = texts_digest([texts_digest(prompts), encoder.name, source, json.dumps(choice, sort_keys=True)])
    if copies is not None:
        key = texts_digest([key, *map(str, copies)])
    divided = pools is not None and (None in pools or len(set(pools)) > 1)
    if divided:
        key = texts_digest([key, "pools", *map(str, pools or ())])
    groups = load_groups(folder / GROUPS, key)
    if groups is None:
        groups = []
        for members in _members(pools if divided and pools is not None else [0] * len(prompts)):
            own = None if copies is None else [copies[i] for i in members]
            found = _pool_groups(vectors, inverse[members], own, options, divided, on_progress)
            groups += [members[group].tolist() for group in found]
        groups.sort()
        save_groups(folder / GROUPS, key, groups)
    return groups


def _members(pools: Sequence[int | None]) -> list[Ints]:
    """Prompt numbers of each pool; who may share with nobody is one of his own."""
    found: dict[int, list[int]] = {}
    alone = []
    for number, pool in enumerate(pools):
        if pool is None:
            alone.append([number])
        else:
            found.setdefault(pool, []).append(number)
    return [np.array(members, np.int64) for members in (*found.values(), *alone)]


def _pool_groups(
    vectors: DiskVectors,
    inverse: Ints,
    copies: Sequence[int] | None,
    options: CoverOptions,
    divided: bool,
    on_progress: OnProgress | None,
) -> list[list[int]]:
    """Groups of those who may all share with one another, numbered as in `inverse`.

    Args:
        divided: whether there are other pools: a small one is then grouped at once, as there may be very many.
    """
    first = np.arange(len(inverse)) if copies is None else np.flatnonzero(np.asarray(copies) == 0)
    if divided and len(first) <= options.cell_size:
        threshold = min(1.0, options.threshold + 2 * vectors.rounding)
        found = group_prompts(vectors.take(inverse[first]), threshold, options.max_group_size)
    else:
        found = group_on_disk(vectors, inverse[first], options, on_progress)
    groups = [first[group].tolist() for group in found]
    return groups if copies is None else with_copies(groups, inverse, copies)


def with_copies(groups: Sequence[Sequence[int]], inverse: Ints, copies: Sequence[int]) -> list[list[int]]:
    """Groups of first copies -> groups of all prompts, in which each group holds copies of one number only.

    Args:
        inverse: (N,) row of each prompt's vector. A copy whose text has another vector than the first one is alone.
        copies: (N,) how many that equal it come before.
    """
    later = {(int(inverse[i]), number): i for i, number in enumerate(copies) if number}
    last: dict[int, int] = {}
    for row, number in later:
        last[row] = max(number, last.get(row, 0))
    out = [list(group) for group in groups]
    for group in groups:
        rows = [int(inverse[i]) for i in group]
        for number in range(1, max(last.get(row, 0) for row in rows) + 1):
            members = [i for row in rows if (i := later.pop((row, number), -1)) >= 0]
            if members:
                out.append(sorted(members))
    out += [[i] for i in later.values()]
    return sorted(out)


def distinct(texts: Sequence[str]) -> tuple[list[str], Ints]:
    """The distinct texts, sorted, and the index of each given text among them, (N,)."""
    unique = sorted(set(texts))
    place = {text: i for i, text in enumerate(unique)}
    return unique, np.fromiter((place[text] for text in texts), np.int64, len(texts))


def save_groups(path: Path, key: str, groups: Sequence[Sequence[int]]) -> None:
    """Save the concatenated members and the end of each group; `key` is the digest of what they were made from."""
    members = np.fromiter((i for group in groups for i in group), np.int64)
    ends = np.cumsum([len(group) for group in groups], dtype=np.int64)
    sweep(path.parent, path.name)
    with writing(path) as partial, partial.open("wb") as file:
        np.savez(file, key=np.array(key), members=members, ends=ends)


def load_groups(path: Path, key: str) -> list[list[int]] | None:
    """The groups of an earlier run with the same key; None if there are none, or the file is not whole."""
    if not is_file(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            held: dict[str, Any] = {name: found[name] for name in ("key", "members", "ends")}
    except Exception:  # whatever a file that is not whole makes numpy, zipfile and zlib raise
        return None
    members, ends = held["members"], held["ends"]
    if str(held["key"]) != key or members.dtype != np.int64 or ends.dtype != np.int64 or not len(ends):
        return None
    whole = np.array_equal(np.sort(members.reshape(-1)), np.arange(members.size))
    if not whole or ends[-1] != len(members) or (np.diff(ends, prepend=0) < 1).any():
        return None
    return [part.tolist() for part in np.split(members, ends[:-1])]
