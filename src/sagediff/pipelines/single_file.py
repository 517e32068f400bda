"""A pipeline out of a single file of weights, as other tools write them: Stable Diffusion, SDXL, FLUX and others.

diffusers converts the tensors (`from_single_file`); a folder of a whole pipeline says what they are for, and has what
the file does not hold. Before weights are read, the names and sizes in the file are converted without them, and
compared with what the folder's denoiser and autoencoder expect: what does not fit is refused. The table of conversions
is diffusers' `SINGLE_FILE_LOADABLE_CLASSES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sagediff.errors import InputError, first_line
from sagediff.files.json_input import SMALL, read_object
from sagediff.files.text_input import is_file, shortened
from sagediff.pipelines.model_files import INDEX, part_entries
from sagediff.pipelines.model_source import GGUF, ModelSource, model_folder
from sagediff.pipelines.quantized import gguf_tensors, quantize_loaded
from sagediff.pipelines.variants import only_variant

DENOISERS = ("unet", "transformer", "transformer_2")
_VAE = ("first_stage_model.", "vae.")
_LORA = re.compile(r"\.(lora_(A|B|up|down)|lora\.(up|down)|lokr_w1|hada_w1_a)\b")
_SCALES = re.compile(r"(weight_scale(_2)?|scale_weight|scale_input|input_scale|scaled_fp8)$")


def tensors_of(file: Path) -> dict[str, Any]:
    """Every tensor of a file by name, of its size and type, without its values (torch's `meta` device).

    Raises:
        InputError: the file is broken or empty, holds a LoRA, or numbers that only another loader can scale back; or
            it is GGUF and the package for that is missing.
    """
    import torch

    if file.suffix == GGUF:
        return gguf_tensors(file)
    from safetensors import SafetensorError, safe_open

    found = {}
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dict
                found[name] = torch.empty(opened.get_slice(name).get_shape(), device="meta")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a safetensors file: {first_line(error)}") from error
    if not found:
        raise InputError(f"{file} holds no weights")
    if any(map(_LORA.search, found)):
        raise InputError(
            f"{file} holds a LoRA, not a model; give the model it was made for, and --lora {file}"
        )
    scaled = next(filter(_SCALES.search, found), None)
    if scaled is not None:
        raise InputError(
            f"{file} holds numbers with scales of their own ({scaled}), which are not read; take a file in float16 or "
            "bfloat16, or GGUF"
        )
    return found


def config_folder(source: ModelSource, file: Path) -> Path:
    """The folder of a whole pipeline that says what a file's weights are: the one that `--config` names, else the one
    of the file's own name beside it, else the file's own, else that of the model that the weights belong to, by the
    names in the file, as the hub's cache has it.

    Raises:
        InputError: there is none.
    """
    if source.config is not None:
        try:
            return model_folder(source.config) or hub_folder(source.config)
        except InputError as error:
            raise InputError(f"--config: {error}") from error
    beside = [file.with_suffix(""), file.parent]
    found = next((folder for folder in beside if is_file(folder / INDEX)), None)
    if found is not None:
        return found
    name = _hub_id(file)
    try:
        return hub_folder(name)
    except InputError as error:
        raise InputError(
            f"{file} looks like {name}, whose configuration is not here ({error}): give --config FOLDER, a folder of "
            "that pipeline as save_pretrained makes it"
        ) from error


def _hub_id(file: Path) -> str:
    """The model whose weights a file's are, by diffusers' own table.

    Raises:
        InputError: nothing in the file tells, or not all.
    """
    from diffusers.loaders import single_file_utils as table

    found = tensors_of(file)
    kind = table.infer_diffusers_model_type(found)
    if (
        kind == "v1" and table.CHECKPOINT_KEY_NAMES["v1"] not in found
    ):  # diffusers' answer where it knows none
        raise InputError(
            f"{file}: no model is known by the names of its tensors; give --config FOLDER, a folder of the pipeline "
            "that it is for"
        )
    if kind == "v2":
        raise InputError(
            f"{file} is of Stable Diffusion 2, and nothing in it says what it predicts, noise or velocity; give "
            "--config FOLDER, a folder of the pipeline that it is for"
        )
    return str(table.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])


def hub_folder(name: str, revision: str | None = None) -> Path:
    """A hub's configuration files, downloaded if they are not in the cache.

    Raises:
        InputError: they cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.json", "**/*.json", "*.txt", "**/*.txt", "**/*.model"],
        )
    except Exception as error:  # whatever the hub's client raises
        raise InputError(f"cannot load the configuration of {name!r}: {first_line(error)}") from error
    return Path(found)


def held_parts(file: Path, folder: Path) -> set[str]:
    """The parts of a pipeline whose weights the file holds.

    Raises:
        InputError: as `tensors_of`; or the folder's index is none.
    """
    from diffusers.loaders import single_file_utils as table

    found = tensors_of(file)
    held = set()
    for part, (_, class_name) in _parts(folder):
        if part == DENOISERS[2]:
            continue  # two experts never come in one file
        clip = class_name.startswith("CLIPTextModel") and table.is_clip_model_in_single_file(
            type(class_name, (), {}), found
        )
        t5 = class_name.startswith("T5") and table.is_t5_in_single_file(found)
        if (
            part in DENOISERS
            or clip
            or t5
            or (part == "vae" and any(name.startswith(_VAE) for name in found))
        ):
            held.add(part)
    return held


def load_single_file(
    file: Path, folder: Path, dtype: Any, given: Mapping[str, Any], quantized: Mapping[str, Any] = {}
) -> Any:
    """A pipeline of the class that the folder names: the file's weights, and the folder's where the file has none.

    Args:
        dtype: torch's, or one for each part as `from_pretrained` takes it.
        given: parts that are not loaded, by name; None for those to do without.
        quantized: for parts that are quantised as they are loaded, the library's configuration.

    Raises:
        InputError: weights that fit neither, or that neither has.
    """
    import diffusers
    import torch
    import transformers

    index = read_object(folder / INDEX, max_bytes=SMALL)
    pipeline = getattr(diffusers, str(index.get("_class_name")))
    if not hasattr(pipeline, "from_single_file"):
        raise InputError(
            f"{pipeline.__name__} cannot be loaded from a single file; take a folder of the model"
        )
    if unknown := sorted(given.keys() - index.keys()):
        raise InputError(
            f"for a single file only parts of {pipeline.__name__} can be given, got {', '.join(unknown)}"
        )
    held = held_parts(file, folder)
    parts = {name: None for name, value in index.items() if value == [None, None]} | dict(given)
    for part, (library, class_name) in _parts(folder):
        cls = getattr(diffusers if library == "diffusers" else transformers, class_name, None)
        if part in parts or not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
            continue
        own = dtype.get(part, dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype
        if part not in held:
            if part not in ("safety_checker", "image_encoder") or _has_weights(folder / part):
                parts[part] = _from_folder(cls, file, folder, part, own, quantized.get(part))
        elif issubclass(cls, diffusers.ModelMixin):
            parts[part] = _from_file(cls, file, folder, part, own, quantized.get(part))
        elif part in quantized:
            raise InputError(
                f"the {part} in {file} cannot be quantised as it is loaded; take a folder of the model"
            )
    rest = dtype.get("default", torch.float32) if isinstance(dtype, dict) else dtype
    try:
        pipe = pipeline.from_single_file(
            str(file), config=str(folder), dtype=rest, local_files_only=True, **parts
        )
    except NotImplementedError as error:  # what torch says of weights that were never filled in
        raise InputError(f"{file} does not fit {folder}: it lacks tensors of a text encoder") from error
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module) and any(each.is_meta for each in module.parameters()):
            lacking = next(name for name, each in module.named_parameters() if each.is_meta)
            raise InputError(f"{file} does not fit {folder}: it lacks `{lacking}` of the {part}")
    return pipe


def _from_folder(cls: Any, file: Path, folder: Path, part: str, dtype: Any, quantized: Any) -> Any:
    if not _has_weights(folder / part):
        raise InputError(
            f"{file} holds no {part}, and {folder / part} has no safetensors file of it either; give --config FOLDER, "
            "a folder of the whole pipeline"
        )
    more = {} if quantized is None else {"quantization_config": quantized}
    if (variant := only_variant(folder / part)) is not None:
        more["variant"] = variant
    return cls.from_pretrained(
        str(folder), subfolder=part, use_safetensors=True, local_files_only=True, dtype=dtype, **more
    )


def _from_file(cls: Any, file: Path, folder: Path, part: str, dtype: Any, quantized: Any) -> Any:
    check_fit(cls, file, folder / part, part)
    more = {}
    if file.suffix == GGUF:
        import diffusers

        if quantized is not None:
            raise InputError(f"{file} is quantised already; leave out --quantize")
        more = {"quantization_config": diffusers.GGUFQuantizationConfig(compute_dtype=dtype)}
    made = cls.from_single_file(
        str(file), config=str(folder), subfolder=part, dtype=dtype, local_files_only=True, **more
    )
    return made if quantized is None else quantize_loaded(made, quantized, str(file))


def check_fit(cls: Any, file: Path, config: Path, part: str) -> None:
    """Every tensor that a part needs is in the file, of its size, and none that it has no use for.

    Raises:
        InputError: names the first that is not so.
    """
    from accelerate import init_empty_weights

    settings = read_object(config / "config.json", max_bytes=SMALL)
    try:
        with init_empty_weights():
            expected = {
                name: tuple(each.shape) for name, each in cls.from_config(settings).state_dict().items()
            }
        found = _converted(cls, tensors_of(file), settings, expected)
    except InputError:
        raise
    except Exception as error:  # whatever a conversion says of tensors that are of another model
        raise _no_fit(file, config, part, f"diffusers cannot convert it ({first_line(error)})") from error
    ignored = getattr(cls, "_keys_to_ignore_on_load_unexpected", None) or []
    missing = sorted(expected.keys() - found.keys())
    more = sorted(
        n for n in found.keys() - expected.keys() if not any(re.search(each, n) for each in ignored)
    )
    if missing:
        raise _no_fit(file, config, part, f"it lacks {_first(missing)} of {len(expected)} tensors")
    if more:
        raise _no_fit(
            file, config, part, f"it holds tensors that the configuration has no use for: {_first(more)}"
        )
    other = [n for n in sorted(expected) if found[n] != expected[n]]
    if other:
        sizes = f"{'x'.join(map(str, found[other[0]]))}, not {'x'.join(map(str, expected[other[0]]))}"
        raise _no_fit(file, config, part, f"`{other[0]}` is of size {sizes}")


def _converted(
    cls: Any, tensors: dict[str, Any], settings: dict[str, Any], expected: Iterable[str]
) -> dict[str, tuple[int, ...]]:
    """Names and sizes as diffusers names them."""
    import diffusers
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    if tensors.keys() != set(expected):
        names = [name for name in SINGLE_FILE_LOADABLE_CLASSES if issubclass(cls, getattr(diffusers, name))]
        if not names:
            raise InputError(
                f"{cls.__name__} cannot be loaded from a single file; take a folder of the model"
            )
        tensors = SINGLE_FILE_LOADABLE_CLASSES[names[0]]["checkpoint_mapping_fn"](
            checkpoint=tensors, config=settings
        )
    return {name: tuple(each.shape) for name, each in tensors.items()}


def _no_fit(file: Path, config: Path, part: str, why: str) -> InputError:
    return InputError(f"the {part} in {shortened(file)} does not fit {shortened(config)}: {why}")


def _first(names: list[str]) -> str:
    return f"`{names[0]}`" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _has_weights(folder: Path) -> bool:
    return folder.is_dir() and any(each.suffix == ".safetensors" for each in folder.iterdir())


def _parts(folder: Path) -> list[tuple[str, tuple[str, str]]]:
    return part_entries(read_object(folder / INDEX, max_bytes=SMALL), str(folder / INDEX))
