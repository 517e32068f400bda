"""Embeddings on disk: half precision, written window by window, so that a kill at any moment loses one window at most.

Knows neither groups nor plans. A folder holds `vectors.f16`, one row per distinct prompt, and `vectors.json`: how many
rows are complete, and what they were made from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sagediff.errors import InputError
from sagediff.files.atomic import output_errors, sweep, write_text
from sagediff.files.digest import texts_digest
from sagediff.files.json_input import SMALL, read_object
from sagediff.files.text_input import is_file, stat_of
from sagediff.prompts.embeddings import TextEncoder, unit_rows

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

DATA, STATE = "vectors.f16", "vectors.json"
WINDOW = 16_384  # texts between two updates of vectors.json


@dataclass(frozen=True)
class DiskVectors:
    """Unit vectors in a file.

    Attributes:
        file: rows of float16.
        count, dim: its shape.
        rounding: largest distance of a row read back from the vector that was written; a cosine similarity of two rows
            is off by at most twice that.
    """

    file: Path
    count: int
    dim: int
    rounding: float

    def take(self, rows: Ints) -> Floats:
        """(len(rows), D) float32 of unit length. The file is mapped for the call only, so that its pages are freed."""
        data = np.memmap(self.file, np.float16, "r", shape=(self.count, self.dim))
        return _unit(np.asarray(data[rows], dtype=np.float32))


def embed_to_disk(
    texts: Sequence[str],
    encoder: TextEncoder,
    folder: Path,
    *,
    source: str = "",
    batch_size: int = 256,
    on_batch: Callable[[int], None] | None = None,
) -> DiskVectors:
    """Encode distinct texts into a folder, or continue where an earlier call was stopped.

    Args:
        texts: distinct. Sorted ones are faster with an encoder that truncates long texts, as equal beginnings are
            then encoded once per window.
        source: what the vectors depend on besides the encoder's name (the model's name, say).
        batch_size: texts encoded at once.
        on_batch: called with the number of texts that are done.

    Raises:
        InputError: the folder holds other vectors, or the encoder does not return one vector per text.
        OutputError: the disk is full, or the folder not writable.
    """
    on_batch = on_batch or (lambda done: None)
    wanted = {"texts": texts_digest(texts), "count": len(texts), "encoder": encoder.name, "source": source}
    with output_errors(folder / DATA):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, STATE)
        done, dim, rounding = _state(folder, wanted)
        on_batch(done)
        with (folder / DATA).open("r+b" if done else "wb") as file:
            file.truncate(done * dim * 2)  # what a killed run wrote after its last update of vectors.json
            file.seek(0, os.SEEK_END)
            for start in range(done, len(texts), WINDOW):
                exact = _window(texts[start : start + WINDOW], encoder, batch_size, start, on_batch)
                if dim not in (0, exact.shape[1]):
                    raise InputError(
                        f"the encoder {encoder.name} gave vectors of {dim} and of {exact.shape[1]} numbers"
                    )
                dim, half = exact.shape[1], exact.astype(np.float16)
                rounding = max(
                    rounding, float(np.linalg.norm(_unit(half.astype(np.float32)) - exact, axis=1).max())
                )
                file.write(half.tobytes())
                file.flush()
                os.fsync(file.fileno())
                done += len(exact)
                state = wanted | {"done": done, "dim": dim, "rounding": rounding}
                write_text(folder / STATE, json.dumps(state) + "\n")
    return DiskVectors(folder / DATA, len(texts), dim, rounding)


def _window(
    texts: Sequence[str], encoder: TextEncoder, batch_size: int, start: int, on_batch: Callable[[int], None]
) -> Floats:
    """The vectors of some texts; those that the encoder truncates to the same tokens are encoded once."""
    first = inverse = np.arange(len(texts))
    if encoder.reads is not None:
        _, first, inverse = np.unique(
            encoder.reads(list(texts)), axis=0, return_index=True, return_inverse=True
        )
    parts = []
    for i in range(0, len(first), batch_size):
        batch = [texts[j] for j in first[i : i + batch_size]]
        parts.append(unit_rows(encoder.encode(batch), len(batch), encoder.name))
        on_batch(start + len(texts) * (i + len(batch)) // len(first))
    if len({part.shape[1] for part in parts}) > 1:
        raise InputError(f"the encoder {encoder.name} gave vectors of different length")
    return np.concatenate(parts)[inverse.reshape(-1)]


def _state(folder: Path, wanted: dict[str, Any]) -> tuple[int, int, float]:
    """What an earlier call has done: rows, their length and rounding; refuses vectors of other texts."""
    path = folder / STATE
    if stat_of(path) is None:
        return 0, 0, 0.0
    remedy = "it was not written by sagediff; use another folder or remove it"
    try:
        state = read_object(path, max_bytes=SMALL)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from error
    found: Any = [state.get(name) for name in ("done", "dim", "rounding")]
    done, dim, rounding = found
    if (
        not (type(done) is int and done >= 0 and type(dim) is int and dim >= 0)
        or not (type(rounding) in (int, float) and 0 <= rounding <= 1)
        or wanted.keys() - state.keys()
    ):
        raise InputError(f"{path} holds other entries than vectors do; {remedy}")
    other = sorted(key for key, value in wanted.items() if state[key] != value)
    if other:
        raise InputError(
            f"{folder} holds embeddings of other prompts or another encoder ({', '.join(other)} differ); "
            "use another folder or remove it"
        )
    if not is_file(folder / DATA) or (folder / DATA).stat().st_size < done * dim * 2:
        raise InputError(f"{folder / DATA} is shorter than {path} says; remove both to embed again")
    return done, dim, float(rounding)


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)
