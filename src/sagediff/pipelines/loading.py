"""Pipelines by name: a built-in model, a local diffusers folder, or a hub id. Safetensors only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sagediff.denoiser.scheduler import SCHEDULERS, scheduler_like
from sagediff.errors import InputError, UnsupportedPipelineError
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
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"{folder} holds no model_index.json; --model takes a folder that save_pretrained made"
            )
        return folder
    if folder.exists() or folder.is_absolute() or not _HUB_ID.fullmatch(str(name)):
        raise InputError(
            f"no model {str(name)!r}: expected {' or '.join(map(repr, BUILT_IN))}, a local diffusers folder, or a "
            "hub id like 'org/name'"
        )
    return None


def load_for_planning(
    name_or_path: str | Path, *, scheduler: str | None = None, text_encoders: bool = True
) -> tuple[Any, str]:
    """A pipeline with its text encoders and scheduler alone, and the class name of the denoiser it leaves out.

    Raises:
        InputError: as `load_pipeline`. UnsupportedPipelineError: a denoiser class that sharing does not know.
    """
    quiet_libraries()
    parts, denoiser = supported_parts(name_or_path)
    kept = ("scheduler", "tokenizer", "text_encoder") if text_encoders else ("scheduler",)
    left_out: dict[str, Any] = {key: None for key in parts if not key.startswith(kept)}
    return load_pipeline(name_or_path, scheduler=scheduler, **left_out), denoiser


def supported_parts(name_or_path: str | Path) -> tuple[dict[str, str], str]:
    """The class name of each part that a model's index lists, and that of its denoiser; loads no weights.

    Raises:
        InputError: as `load_pipeline`. UnsupportedPipelineError: a denoiser class that sharing does not know.
    """
    folder = model_folder(name_or_path)
    import diffusers

    name = str(name_or_path if folder is None else folder)
    try:
        index = diffusers.DiffusionPipeline.load_config(name, local_files_only=folder is not None)
    except (OSError, ValueError) as error:
        raise _cannot_load(name_or_path, error) from error
    if not isinstance(index, dict) or not hasattr(diffusers, str(index.get("_class_name"))):
        raise InputError(
            f"cannot load the model {str(name_or_path)!r}: its model_index.json names no pipeline of diffusers "
            f"{diffusers.__version__}"
        )
    parts = {key: value[1] for key, value in index.items() if isinstance(value, list | tuple) and value[0]}
    denoiser = next((parts[key] for key in ("unet", "transformer") if key in parts), "")
    from sagediff.denoiser.lookup import FAMILIES

    if denoiser not in FAMILIES:
        raise UnsupportedPipelineError(
            f"{index.get('_class_name')} has {f'the denoiser {denoiser}' if denoiser else 'no denoiser'}, which shared "
            f"sampling does not know; known are {', '.join(sorted(FAMILIES))}"
        )
    return parts, denoiser


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
    options = {"dtype": dtype, "use_safetensors": True, **kwargs}
    if folder is not None:
        options["local_files_only"] = True
    if built_in is not None and built_in.sentence_encoder:
        if "tokenizer" not in options:
            options["tokenizer"] = load_tokenizer()
        if "text_encoder" not in options:
            options["text_encoder"] = load_encoder(dtype if isinstance(dtype, torch.dtype) else None)
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder or name_or_path), **options)
    except (OSError, ValueError) as error:
        raise _cannot_load(name_or_path, error) from error
    if built_in is not None and built_in.channels_last and getattr(pipe, "unet", None) is not None:
        pipe.unet.to(memory_format=torch.channels_last)
    if scheduler is not None:
        pipe.scheduler = scheduler_like(pipe.scheduler, scheduler, name_or_path)
    return pipe


def _cannot_load(name_or_path: str | Path, error: Exception) -> InputError:
    return InputError(f"cannot load the model {str(name_or_path)!r}: {str(error).splitlines()[0]}")


def quiet_libraries() -> None:
    """No bars for loading from disk: stderr is for what takes long. Downloads keep theirs."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
