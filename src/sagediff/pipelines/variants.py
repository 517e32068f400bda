"""Which files of a model's part are loaded: those of a variant ("fp16") where it has them, else the plain ones.

A part of its own, an autoencoder beside a model, is a folder or a single file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sagediff.errors import InputError
from sagediff.files.text_input import is_file, is_folder, shortened

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
CONFIG = "config.json"
_SAFETENSORS = ".safetensors"
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


def only_variant(folder: Path) -> str | None:
    """The variant of a part that has weights of one variant alone: nothing else can be meant. None for others."""
    found = variants_in(folder)
    return found.pop() if len(found) == 1 and "" not in found else None


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


def vae_files(path: Path) -> list[Path]:
    """The files behind `--vae`: a single safetensors file, or those of a folder.

    Raises:
        InputError: there is nothing of the kind.
    """
    if is_file(path):
        if path.suffix != _SAFETENSORS:
            raise InputError(f"--vae {shortened(path)}: only {_SAFETENSORS} files are loaded")
        return [path]
    folder = vae_folder(path)
    if not any(file.suffix == _SAFETENSORS for file in folder.iterdir()):
        raise InputError(f"--vae {shortened(path)}: no {_SAFETENSORS} file is there")
    return loadable(folder)


def vae_folder(path: Path) -> Path:
    """The folder of an autoencoder, or that inside a pipeline's. Raises InputError: there is none."""
    for folder in (path, path / "vae"):
        if is_folder(folder) and is_file(folder / CONFIG):
            return folder
    raise InputError(
        f"--vae {shortened(path)}: expected a {_SAFETENSORS} file, or a folder with {CONFIG} as save_pretrained "
        "makes it"
    )
