"""Pipelines by name: a built-in model, a local diffusers folder, or a hub id. Safetensors only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sagediff.denoiser.scheduler import SCHEDULERS, scheduler_like
from sagediff.errors import InputError, UnsupportedPipelineError, first_line
from sagediff.files.json_input import SMALL, read_object
from sagediff.files.text_input import is_file, is_folder, shortened, stat_of
from sagediff.pipelines.model_files import INDEX, check_model_files, part_entries
from sagediff.pipelines.sentence_encoder import encoder_archive, load_encoder, load_tokenizer


@dataclass(frozen=True)
class BuiltInModel:
    """A model that comes along. Its folder is read as data; its code is not imported here.

    Attributes:
        folder: below the package.
        training: the command that makes its weights.
        sentence_encoder: whether tokenizer and text encoder come from a package of their own (`sentence_encoder`).
        channels_last: whether its U-Net is faster with channels last on CPUs; equal but for rounding.
    """

    folder: str
    training: str
    sentence_encoder: bool = False
    channels_last: bool = False


BUILT_IN = {
    "demo": BuiltInModel(
        "builtin/scenes", "python -m sagediff.builtin.scenes.training all", channels_last=True
    ),
    "emoji": BuiltInModel(
        "builtin/emoji", "python -m sagediff.builtin.emoji.training all", sentence_encoder=True
    ),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def built_in_folder(name: str) -> Path:
    """Where a model that comes along has its files: `weights/`, and `lora/` where one goes with it."""
    return Path(str(files("sagediff"))) / BUILT_IN[name].folder


def model_folder(name: str | Path) -> Path | None:
    """The local folder behind a model's name; None for a hub id.

    Raises:
        InputError: neither built in, nor a folder with a model_index.json, nor of a hub id's form; or a built-in
            model whose weights or whose text encoder's package is not installed.
    """
    built_in = BUILT_IN.get(str(name))
    if built_in is not None:
        folder = built_in_folder(str(name)) / "weights" / "pipeline"
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"this installation holds no weights of the built-in model {str(name)!r} ({folder}); install sagediff "
                f"from a checkout that has them, or train them: {built_in.training}"
            )
        if built_in.sentence_encoder:
            encoder_archive()
        return folder
    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:  # "~nobody"
        raise InputError(f"no model {shortened(str(name))!r}: {error}") from error
    if is_folder(folder):
        if not is_file(folder / INDEX):
            raise InputError(
                f"{folder} holds no model_index.json; --model takes a folder that save_pretrained made"
            )
        return folder
    if stat_of(folder) is not None or folder.is_absolute() or not _HUB_ID.fullmatch(str(name)):
        raise InputError(
            f"no model {shortened(str(name))!r}: expected {' or '.join(map(repr, BUILT_IN))}, a local diffusers folder "
            "or a hub id like 'org/name'"
        )
    return None


def load_for_planning(
    name_or_path: str | Path, *, scheduler: str | None = None, text_encoders: bool = True
) -> tuple[Any, str]:
    """A pipeline with its tokenizers, text encoders and scheduler alone, and the class name of the denoiser left out.

    Raises:
        InputError: as `load_pipeline`. UnsupportedPipelineError: a denoiser class that sharing does not know.
    """
    quiet_libraries()
    parts, denoiser = supported_parts(name_or_path)
    kept = ("scheduler", "tokenizer", *(("text_encoder",) if text_encoders else ()))
    left_out: dict[str, Any] = {key: None for key in parts if not key.startswith(kept)}
    return load_pipeline(name_or_path, scheduler=scheduler, **left_out), denoiser


def supported_parts(name_or_path: str | Path) -> tuple[dict[str, str], str]:
    """The class name of each part that a model's index lists, and that of its denoiser; loads no weights.

    Raises:
        InputError: as `load_pipeline`. UnsupportedPipelineError: a denoiser class that sharing does not know.
    """
    folder = model_folder(name_or_path)
    import diffusers

    if folder is not None:
        where = str(folder / INDEX)
        try:
            index = read_object(folder / INDEX, max_bytes=SMALL)
        except InputError as error:
            raise InputError(
                f"cannot load the model {str(name_or_path)!r}: its index names no pipeline: {error}"
            ) from error
    else:
        where = f"{INDEX} of {name_or_path}"
        try:
            index = dict(diffusers.DiffusionPipeline.load_config(str(name_or_path)))
        except Exception as error:  # whatever the hub's client raises
            raise _cannot_load(name_or_path, error) from error
    known = index.get("_class_name")
    pipeline = getattr(diffusers, known, None) if isinstance(known, str) else None
    if not (isinstance(pipeline, type) and issubclass(pipeline, diffusers.DiffusionPipeline)):
        raise InputError(
            f"cannot load the model {str(name_or_path)!r}: its {INDEX} names no pipeline of diffusers "
            f"{diffusers.__version__}"
        )
    parts = {part: class_name for part, (_, class_name) in part_entries(index, where)}
    denoiser = next((parts[key] for key in ("unet", "transformer") if key in parts), "")
    from sagediff.denoiser.lookup import FAMILIES

    if denoiser not in FAMILIES:
        raise UnsupportedPipelineError(
            f"{known} has {f'the denoiser {denoiser}' if denoiser else 'no denoiser'}, which shared "
            f"sampling does not know; known are {', '.join(sorted(FAMILIES))}"
        )
    return parts, denoiser


def check_makes_images(name_or_path: str | Path, command: str) -> None:
    """Refuse, before weights are read, a model that makes videos where only images are of use.

    Args:
        command: begins the message.

    Raises:
        InputError: as `load_pipeline`. UnsupportedPipelineError: it makes videos, or is none that sharing knows.
    """
    from sagediff.denoiser.lookup import FAMILIES

    _, denoiser = supported_parts(name_or_path)
    if FAMILIES[denoiser].makes != "images":
        raise UnsupportedPipelineError(
            f"{command} works with images, and the model {shortened(str(name_or_path))!r} makes videos: take a model "
            f"that makes images; videos come from `sagediff generate` and SharedSampler"
        )


def load_pipeline(
    name_or_path: str | Path = "demo", *, scheduler: str | None = None, dtype: Any = None, **kwargs: Any
) -> Any:
    """A diffusers pipeline, in float32 unless `dtype` (or its old name `torch_dtype`) says otherwise.

    Args:
        name_or_path: "demo" or "emoji" for a built-in model, a local diffusers folder, or a hub id (the only case that
            uses the network).
        scheduler: one of `denoiser.scheduler.SCHEDULERS` in place of the model's own; its configuration is taken over.
        kwargs: passed to `DiffusionPipeline.from_pretrained`.

    Raises:
        InputError: no such model or scheduler, weights that are not safetensors, or a built-in model's that are not
            installed.
    """
    folder = model_folder(name_or_path)
    built_in = BUILT_IN.get(str(name_or_path))
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise InputError(f"unknown scheduler {scheduler!r}; known are {', '.join(SCHEDULERS)}")
    import diffusers
    import torch

    dtype = dtype or kwargs.pop("torch_dtype", None) or torch.float32
    options = {"dtype": dtype, **kwargs, "use_safetensors": True, "trust_remote_code": False}
    if built_in is not None and built_in.sentence_encoder:
        if "tokenizer" not in options:
            options["tokenizer"] = load_tokenizer()
        if "text_encoder" not in options:
            options["text_encoder"] = load_encoder(dtype if isinstance(dtype, torch.dtype) else None)
    try:
        if folder is None:  # into the hub's cache first, so that what is loaded has been looked at
            folder = Path(diffusers.DiffusionPipeline.download(str(name_or_path), **options))
        check_model_files(folder)
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            str(folder), **options | {"local_files_only": True}
        )
    except InputError:
        raise
    except Exception as error:  # whatever a wrong folder makes diffusers and transformers raise
        raise _cannot_load(name_or_path, error) from error
    if built_in is not None and built_in.channels_last and getattr(pipe, "unet", None) is not None:
        pipe.unet.to(memory_format=torch.channels_last)
    if scheduler is not None:
        pipe.scheduler = scheduler_like(pipe.scheduler, scheduler, name_or_path)
    return pipe


def _cannot_load(name_or_path: str | Path, error: Exception) -> InputError:
    return InputError(f"cannot load the model {str(name_or_path)!r}: {first_line(error)}")


def quiet_libraries() -> None:
    """No bars for loading from disk: stderr is for what takes long. Downloads keep theirs."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
