"""Pipelines by name: a built-in model, a local diffusers folder, a single file, or a hub id. Safetensors only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sagediff.collector import collection_paused
from sagediff.denoiser.audio_families import NO_AUDIO
from sagediff.denoiser.family import Family
from sagediff.denoiser.modular_call import with_plain_call
from sagediff.denoiser.places import places_of
from sagediff.denoiser.refused import check_pipeline_class
from sagediff.denoiser.scheduler import SCHEDULERS, scheduler_like
from sagediff.denoiser.table import FAMILIES
from sagediff.errors import InputError, UnsupportedPipelineError, first_line
from sagediff.files.json_input import SMALL, read_object
from sagediff.files.text_input import shortened
from sagediff.pipelines.model_files import INDEX, check_model_files, index_file, part_entries
from sagediff.pipelines.model_source import BUILT_IN, ModelSource, model_folder
from sagediff.pipelines.modular_folder import download, hub_index, is_modular_folder, load_modular
from sagediff.pipelines.quantized import is_quantized
from sagediff.pipelines.sentence_encoder import load_encoder, load_tokenizer
from sagediff.pipelines.single_file import config_folder, load_single_file
from sagediff.pipelines.variants import check_variant


def load_for_planning(
    name_or_path: str | Path | ModelSource, *, scheduler: str | None = None, text_encoders: bool = True
) -> tuple[Any, str]:
    """A pipeline with its tokenizers, text encoders and scheduler alone, and the class name of the denoiser left out.

    Raises:
        InputError: as `load_pipeline`. UnsupportedPipelineError: a denoiser class that sharing does not know.
    """
    quiet_libraries()
    parts, denoiser = supported_parts(name_or_path)
    kept = ("scheduler", "tokenizer", *(("text_encoder",) if text_encoders else ()))
    left_out: dict[str, Any] = {key: None for key in parts if not key.startswith(kept)}
    pipe = load_source(ModelSource.of(name_or_path), scheduler=scheduler, **left_out)
    return with_plain_call(pipe), denoiser


def supported_parts(name_or_path: str | Path | ModelSource) -> tuple[dict[str, str], str]:
    """The class name of each part that a model's index lists, and that of its denoiser; loads no weights.

    Raises:
        InputError: as `load_pipeline`. UnsupportedPipelineError: a denoiser class that sharing does not know.
    """
    source = ModelSource.of(name_or_path)
    folder = index_folder(source)
    index, where = _supported_index(source, folder)
    parts = {part: class_name for part, (_, class_name) in part_entries(index, where)}
    if folder is not None and source.variant is not None:
        check_variant(folder, parts, source.variant)
    return parts, _checked_denoiser(index, where)


def supported_family(name_or_path: str | Path | ModelSource) -> Family:
    """The table's entry of a model's denoiser, as its pipeline calls it; loads no weights.

    Raises:
        InputError, UnsupportedPipelineError: as `supported_parts`.
    """
    source = ModelSource.of(name_or_path)
    return _family(*_supported_index(source, index_folder(source)))


@collection_paused()
def _supported_index(source: ModelSource, folder: Path | None) -> tuple[dict[str, Any], str]:
    """A model's index, of a pipeline of diffusers that sharing knows; and where it is, for messages."""
    if folder is not None:
        index, where = _index_of(source.name, folder), str(index_file(folder))
        _checked_denoiser(index, where)  # before a library is imported
    import diffusers

    if folder is None:
        where = f"{INDEX} of {source.name}"
        try:
            index = hub_index(source.name, source.revision)
        except Exception as error:  # whatever the hub's client raises
            raise _cannot_load(source.name, error) from error
    known = index.get("_class_name")
    pipeline = getattr(diffusers, known, None) if isinstance(known, str) else None
    kinds = (diffusers.DiffusionPipeline, diffusers.ModularPipeline)
    if not (isinstance(pipeline, type) and issubclass(pipeline, kinds)):
        raise InputError(
            f"cannot load the model {str(source.name)!r}: its {INDEX} names no pipeline of diffusers "
            f"{diffusers.__version__}"
        )
    return index, where


def _family(index: Mapping[str, Any], where: str) -> Family:
    return FAMILIES[_checked_denoiser(index, where)].in_pipeline([str(index["_class_name"])])


def check_local_model(source: ModelSource, images_for: str = "") -> None:
    """What the index of a local folder tells is refused at once: no library is imported, no weights are looked at.

    Args:
        images_for: a command that works with images only; empty for one that makes videos as well.

    Raises:
        InputError: no such model, or an index that cannot be read. UnsupportedPipelineError: as `supported_parts` and
            `check_makes_images`.
    """
    folder = None if source.single_file is not None else model_folder(source.name)
    if folder is not None:
        family = _family(_index_of(source.name, folder), str(index_file(folder)))
        if images_for:
            _check_images(family, source.name, images_for)


def _index_of(name: str, folder: Path) -> dict[str, Any]:
    try:
        return read_object(index_file(folder), max_bytes=SMALL)
    except InputError as error:
        raise InputError(f"cannot load the model {name!r}: its index names no pipeline: {error}") from error


def _checked_denoiser(index: Mapping[str, Any], where: str) -> str:
    """The class name of the denoiser that an index lists.

    Raises:
        InputError: an index that no pipeline can have. UnsupportedPipelineError: a pipeline that cannot share, or a
            denoiser that sharing does not know.
    """
    known = index.get("_class_name")
    if not isinstance(known, str):
        raise InputError(f"{where} names no pipeline, under `_class_name`")
    check_pipeline_class(known)
    parts = {part: class_name for part, (_, class_name) in part_entries(index, where)}
    denoiser = next((parts[key] for key in places_of([known]) if key in parts), "")
    if denoiser not in FAMILIES:
        raise UnsupportedPipelineError(
            f"this model is none of those that sagediff knows: {known} has "
            f"{f'the denoiser {denoiser}' if denoiser else 'no denoiser'}. It knows Stable Diffusion 1 to 3.5, SDXL, "
            "FLUX, Qwen-Image, PixArt, Sana, Wan, LTX and others (docs/families.md)"
        )
    return denoiser


def check_makes_images(name_or_path: str | Path | ModelSource, command: str) -> None:
    """Refuse, before weights are read, a model that makes videos where only images are of use.

    Args:
        command: begins the message.

    Raises:
        InputError: as `load_pipeline`. UnsupportedPipelineError: it makes videos, or is none that sharing knows.
    """
    name = name_or_path.name if isinstance(name_or_path, ModelSource) else str(name_or_path)
    _check_images(supported_family(name_or_path), name, command)


def _check_images(family: Family, name: str, command: str) -> None:
    if family.makes != "images":
        where = (
            "videos come from `sagediff generate` and SharedSampler" if family.makes == "videos" else NO_AUDIO
        )
        raise UnsupportedPipelineError(
            f"{command} works with images, and the model {shortened(name)!r} makes {family.makes}: take a model "
            f"that makes images; {where}"
        )


def index_folder(source: ModelSource) -> Path | None:
    """The local folder whose index lists a model's parts: its own, or for a single file that of a pipeline like it.
    None for a hub id.

    Raises:
        InputError: there is no such model, or no configuration of a single file.
    """
    file = source.single_file
    return model_folder(source.name) if file is None else config_folder(source, file)


def load_pipeline(
    name_or_path: str | Path = "demo",
    *,
    scheduler: str | None = None,
    dtype: Any = None,
    variant: str | None = None,
    revision: str | None = None,
    config: str | Path | None = None,
    **kwargs: Any,
) -> Any:
    """A diffusers pipeline, in float32 unless `dtype` (or its old name `torch_dtype`) says otherwise.

    Args:
        name_or_path: "demo" or "emoji" for a built-in model, a local diffusers folder (of a modular pipeline too), a
            single `.safetensors` file, or a hub id (the only case that uses the network).
        scheduler: one of `denoiser.scheduler.SCHEDULERS` in place of the model's own; its configuration is taken over.
        variant: of the weights, such as "fp16".
        revision: of a hub id: a branch, a tag or a commit.
        config: for a single file, a folder (or a hub id) of the whole pipeline that it is for; without, a folder of the
            file's name beside it, the folder that it lies in, or the hub's configuration of the model that it is of.
        kwargs: passed to `DiffusionPipeline.from_pretrained`; for a single file, parts that are there already.

    Raises:
        InputError: no such model or scheduler, weights that are not safetensors, or a built-in model's that are not
            installed; a single file that does not fit its configuration.
    """
    source = ModelSource(str(name_or_path), variant, revision, None if config is None else str(config))
    return load_source(source, scheduler=scheduler, dtype=dtype, **kwargs)


@collection_paused()
def load_source(
    source: ModelSource,
    *,
    scheduler: str | None = None,
    dtype: Any = None,
    quantized: Mapping[str, Any] = MappingProxyType({}),
    **kwargs: Any,
) -> Any:
    """As `load_pipeline`.

    Args:
        quantized: for parts that are quantised as they are loaded, the library's configuration.
    """
    name, file = source.name, source.single_file
    folder = index_folder(source)
    built_in = BUILT_IN.get(name)
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise InputError(f"unknown scheduler {scheduler!r}; known are {', '.join(SCHEDULERS)}")
    import diffusers
    import torch

    dtype = dtype or kwargs.pop("torch_dtype", None) or torch.float32
    options = {"dtype": dtype, **kwargs, "use_safetensors": True, "trust_remote_code": False}
    if source.variant is not None:
        options["variant"] = source.variant
    if quantized and file is None:
        options["quantization_config"] = diffusers.PipelineQuantizationConfig(quant_mapping=dict(quantized))
    if built_in is not None and built_in.sentence_encoder:
        if "tokenizer" not in options:
            options["tokenizer"] = load_tokenizer()
        if "text_encoder" not in options:
            options["text_encoder"] = load_encoder(dtype if isinstance(dtype, torch.dtype) else None)
    try:
        if folder is None:  # into the hub's cache first, so that what is loaded has been looked at
            folder = download(name, source.revision, options)
        check_model_files(folder)
        if file is None and is_modular_folder(folder):
            pipe = load_modular(folder, dtype, source.variant, kwargs, quantized)
        elif file is not None:
            pipe = load_single_file(file, folder, dtype, kwargs, quantized)
        else:
            if source.variant is not None:
                index = read_object(folder / INDEX, max_bytes=SMALL)
                parts = [part for part, _ in part_entries(index, str(folder / INDEX))]
                check_variant(
                    folder, [part for part in parts if kwargs.get(part, part) is not None], source.variant
                )
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                str(folder), **options | {"local_files_only": True}
            )
    except InputError:
        raise
    except Exception as error:  # whatever a wrong folder makes diffusers and transformers raise
        raise _cannot_load(name, error) from error
    for part in quantized:
        if not is_quantized(getattr(pipe, part, None)):
            raise InputError(f"the {part} of {name} was not quantised, though that was asked for")
    if built_in is not None and built_in.channels_last and getattr(pipe, "unet", None) is not None:
        pipe.unet.to(memory_format=torch.channels_last)
    if scheduler is not None:
        pipe.scheduler = scheduler_like(pipe.scheduler, scheduler, name)
    return pipe


def _cannot_load(name_or_path: str | Path, error: Exception) -> InputError:
    return InputError(f"cannot load the model {str(name_or_path)!r}: {first_line(error)}")


def quiet_libraries() -> None:
    """No bars for loading from disk: stderr is for what takes long. Downloads keep theirs."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
