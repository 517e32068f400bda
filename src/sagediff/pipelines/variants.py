"""Which files of a model's part are loaded: those of a variant ("fp16") where it has them, else the plain ones."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sagediff.errors import InputError

_NEVER_LOADED = {
    ".bin",
    ".ckpt",
    ".pt",
    ".pth",
    ".msgpack",
    ".h5",
    ".onnx",
    ".pb",
    ".md",
    ".png",
    ".jpg",
    ".gguf",
}
_SHARD = re.compile(r"-\d+-of-\d+$")


def loadable(folder: Path, variant: str | None = None) -> list[Path]:
    """The files of a part that may be loaded, sorted: no pickles, and no weights of another variant."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix not in _NEVER_LOADED]
    taken = variant if variant is not None and variant in variants_in(folder) else ""
    return sorted(file for file in files if variant_of(file.name) in (None, taken))


def variants_in(folder: Path) -> set[str]:
    """The variants of a part's weights; an empty text for plain ones."""
    found = (variant_of(file.name) for file in folder.iterdir()) if folder.is_dir() else ()
    return {variant for variant in found if variant is not None}


def variant_of(name: str) -> str | None:
    """The variant of a file of weights, or of the index of its shards; empty for none. None for other files."""
    stem, weights, after = name.partition(".safetensors")
    if not weights or after not in ("", ".index.json"):
        indexed = re.fullmatch(r"(.+)\.safetensors\.index\.([^.]+)\.json", name)
        return None if indexed is None else indexed[2]
    return _SHARD.sub("", _SHARD.sub("", stem).partition(".")[2])


def check_variant(folder: Path, parts: Iterable[str], variant: str) -> None:
    """Refuse a variant that no part of a model's folder has, or that leaves a part without weights.

    Raises:
        InputError: names the variants that are there.
    """
    found = {part: variants_in(folder / part) for part in parts}
    there = sorted(set().union(*found.values()) - {""})
    if variant not in there:
        raise InputError(
            f"{folder} has no variant {variant!r}; "
            + (f"it has {', '.join(there)}" if there else "its weights have no variants")
        )
    without = next(
        (part for part, variants in found.items() if variants and not {"", variant} & variants), None
    )
    if without is not None:
        raise InputError(
            f"{folder / without} has weights of {', '.join(sorted(found[without]))} only, neither plain ones nor of "
            f"{variant!r}"
        )
