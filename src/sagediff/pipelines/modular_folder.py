"""Modular pipelines, which list their parts in an index of their own, with where each is loaded from.

Only parts inside the model's folder are loaded, and only blocks of diffusers: what an index says of other places, and
code that comes with a model, is not followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagediff.errors import InputError
from sagediff.files.json_input import SMALL, read_object
from sagediff.files.text_input import shortened
from sagediff.pipelines.model_files import MODULAR_INDEX, index_file, part_entries
from sagediff.pipelines.variants import variants_in

_DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def is_modular_folder(folder: Path) -> bool:
    """Whether a folder holds a modular pipeline, and no other."""
    return index_file(folder).name == MODULAR_INDEX


def hub_index(name: str, revision: str | None) -> dict[str, Any]:
    """The index of a model on the hub.

    Raises:
        Exception: whatever the hub's client raises.
    """
    import diffusers

    try:
        return dict(diffusers.DiffusionPipeline.load_config(name, revision=revision))
    except OSError as error:
        try:
            return dict(diffusers.ModularPipeline.load_config(name, revision=revision))
        except OSError:
            raise error from None


def download(name: str, revision: str | None, options: Mapping[str, Any]) -> Path:
    """A model of the hub in its cache: of modular ones all that may be loaded.

    Args:
        options: of `DiffusionPipeline.download`.

    Raises:
        Exception: whatever the hub's client raises.
    """
    import diffusers
    from huggingface_hub import snapshot_download

    try:
        return Path(diffusers.DiffusionPipeline.download(name, revision=revision, **options))
    except OSError as error:
        try:
            diffusers.ModularPipeline.load_config(name, revision=revision)
        except OSError:
            raise error from None
    return Path(snapshot_download(name, revision=revision, allow_patterns=_DOWNLOADED))


def load_modular(
    folder: Path,
    dtype: Any,
    variant: str | None,
    given: Mapping[str, Any],
    quantized: Mapping[str, Any],
) -> Any:
    """A modular pipeline with the parts that its index lists.

    Args:
        dtype: a torch dtype, or one per part, with "default" for the others.
        given: parts that are there already, or are to be left out (None).
        quantized: for parts that are quantised as they are loaded, the library's configuration.

    Raises:
        InputError: a class or blocks that diffusers does not have, or a part that is not in the folder.
    """
    import diffusers
    import torch

    index = read_object(folder / MODULAR_INDEX, max_bytes=SMALL)
    where = str(folder / MODULAR_INDEX)
    kind, blocks = getattr(diffusers, str(index.get("_class_name")), None), index.get("_blocks_class_name")
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModularPipeline)):
        raise InputError(f"{where} names no modular pipeline of diffusers {diffusers.__version__}")
    if blocks is not None and not hasattr(diffusers, str(blocks)):
        raise InputError(
            f"{where}: the blocks {shortened(str(blocks), 60)!r} are none of diffusers; code that comes with a model "
            f"is not run"
        )
    if unknown := sorted(given.keys() - set(index)):
        raise InputError(f"{kind.__name__} has no part {', '.join(unknown)}; leave it out")
    parts = [name for name, _ in part_entries(index, where) if name not in given]
    if missing := [name for name in parts if not (folder / name).is_dir()]:
        raise InputError(
            f"{where} lists {', '.join(missing)}, which the folder does not hold: parts elsewhere are not loaded; save "
            f"the whole pipeline there (`save_pretrained`)"
        )
    pipe = kind(pretrained_model_name_or_path=str(folder), modular_config_dict=index)
    loaded: dict[str, Any] = {name: part for name, part in given.items() if part is not None}
    for name in parts:
        spec = pipe.get_component_spec(name)
        options: dict[str, Any] = {"pretrained_model_name_or_path": str(folder), "subfolder": name}
        options |= {"revision": None, "variant": None, "local_files_only": True}
        if isinstance(spec.type_hint, type) and issubclass(spec.type_hint, torch.nn.Module):
            options |= {
                "dtype": dtype.get(name, dtype["default"]) if isinstance(dtype, dict) else dtype,
                "use_safetensors": True,
                "variant": variant if variant in variants_in(folder / name) else None,
            }
            if name in quantized:
                options["quantization_config"] = quantized[name]
        loaded[name] = spec.load(**options)
    pipe.update_components(**loaded)
    return pipe
