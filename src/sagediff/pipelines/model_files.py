"""What a model's folder may hold, looked at before diffusers and transformers load it.

Weights are safetensors inside the folder; no code and no pickle of others is ever read. The folder of a hub cache may
link to the cache's own blobs, as it always does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sagediff.errors import InputError
from sagediff.files.json_input import SMALL, read_object
from sagediff.files.text_input import is_file, shortened
from sagediff.printable import printable

INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"  # of a pipeline made of blocks
_MAX_JSON = 256 << 20  # bytes; vocabularies take some megabytes


def index_file(folder: Path) -> Path:
    """The file that lists a model's parts: that of a modular pipeline where there is no other."""
    modular = folder / MODULAR_INDEX
    return modular if is_file(modular) and not is_file(folder / INDEX) else folder / INDEX


def check_model_files(folder: Path) -> None:
    """Refuse a folder whose files lead out of it, or to weights that are no safetensors. Opens no weights.

    Raises:
        InputError: names the file.
    """
    roots = _roots(folder)
    index = index_file(folder)
    for name, _ in part_entries(read_object(index, max_bytes=SMALL), str(index)):
        part = folder / name
        if part.is_dir():
            _check_inside(part, roots)
            for file in _files(part):
                _check_inside(file, roots)
                _check_file(file)


def part_entries(index: Mapping[str, Any], where: str) -> list[tuple[str, tuple[str, str]]]:
    """The parts that a pipeline's index lists, each with its library and class; parts that are left out are not listed.

    Raises:
        InputError: an entry that is no pair of texts, a library that is neither diffusers nor transformers, or a name
            that no folder inside can have.
    """
    parts = []
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list | tuple):
            continue  # options of the pipeline itself
        if len(value) == 3 and isinstance(value[2], dict):
            value = _of_modular(name, value, where)
        if len(value) == 2 and value[0] is None and value[1] is None:
            continue
        if len(value) != 2 or not all(isinstance(each, str) and each for each in value):
            raise InputError(
                f"{where}: `{shortened(name, 40)}` should be [library, class], got {shortened(repr(value), 80)}"
            )
        if not name.isidentifier():
            raise InputError(f"{where}: {shortened(name, 40)!r} can be no part of a pipeline")
        library = value[0]
        if library not in ("diffusers", "transformers") and not _is_of_diffusers(library):
            raise InputError(
                f"{where}: `{name}` is of {shortened(library, 60)!r}; parts are of diffusers or transformers, code of "
                "others is not run"
            )
        parts.append((name, (value[0], value[1])))
    return parts


def _of_modular(name: str, value: Sequence[Any], where: str) -> Sequence[Any]:
    """Library and class of a part as a modular pipeline's index lists it, with how it is loaded.

    Raises:
        InputError: it is in another folder than that of its name.
    """
    library, class_name, loading = value
    if loading.get("subfolder") not in (None, name):
        raise InputError(
            f"{where}: `{name}` is in the folder {shortened(repr(loading.get('subfolder')), 60)}; a part is looked for "
            f"in the folder of its name"
        )
    if library is None and class_name is None:  # was not loaded when the index was written
        hint = loading.get("type_hint")
        is_listed = loading.get("pretrained_model_name_or_path") is not None
        return hint if is_listed and isinstance(hint, list | tuple) else (None, None)
    return library, class_name


def _is_of_diffusers(library: str) -> bool:
    """Whether a pipeline's folder in diffusers has that name, such as "stable_diffusion"."""
    import diffusers

    return hasattr(diffusers.pipelines, library)


def _check_file(file: Path) -> None:
    if "safetensors.index" in file.name and file.suffix == ".json":
        _check_shards(file)
    elif file.suffix == ".json" and file.stat().st_size > _MAX_JSON:
        raise InputError(f"{file}: longer than {_MAX_JSON:,} bytes")
    elif (
        file.name == "adapter_config.json"
    ):  # transformers would load another model for it, and weights of any kind
        raise InputError(f"{file}: adapters inside a model's folder are not loaded; give a LoRA with --lora")


def _check_shards(index: Path) -> None:
    """Every shard is a safetensors file beside its index."""
    shards = read_object(index, max_bytes=16 * SMALL).get("weight_map")
    if not isinstance(shards, dict):
        raise InputError(f"{index}: `weight_map` should be an object")
    for shard in {str(name) for name in shards.values()}:
        if os.path.basename(shard) != shard or not shard.endswith(".safetensors"):
            raise InputError(
                f"{index}: the shard {shortened(shard, 80)!r} is no .safetensors file in the same folder; nothing "
                "else is loaded"
            )
        if not is_file(index.parent / shard):
            raise InputError(f"{index}: the shard {printable(shortened(shard, 80))} is missing")


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):  # does not enter links to folders
        yield from (Path(where) / name for name in (*folders, *names))


def _roots(folder: Path) -> list[Path]:
    """The folders that a model's files may lie in."""
    own = above = folder.resolve()
    roots = [own]
    while above != above.parent:
        above = above.parent
        if above.name == "snapshots" and above.parent.name.startswith("models--"):
            roots.append(above.parent / "blobs")
    return roots


def _check_inside(file: Path, roots: list[Path]) -> None:
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{file} is a link to nowhere") from error
    if not any(real.is_relative_to(root) for root in roots):
        raise InputError(f"{file} is a link to {real}, out of the model's folder; put the file itself there")
