"""Pipelines by name: the built-in model, a local diffusers folder, or a hub id. Safetensors only."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from sagediff.denoiser.scheduler import SCHEDULERS, scheduler_like
from sagediff.errors import InputError, UnsupportedPipelineError

BUILT_IN = {"demo": "builtin/scenes"}  # below the package; read as data, their code is not imported here
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def built_in_folder(name: str) -> Path:
    """Where a model that comes along has its files: `weights/`, and `lora/` where one goes with it."""
    return Path(str(files("sagediff"))) / BUILT_IN[name]


def model_folder(name: str | Path) -> Path | None:
    """The local folder behind a model's name; None for a hub id.

    Raises:
        InputError: neither "demo", nor a folder with a model_index.json, nor of a hub id's form.
    """
    if str(name) in BUILT_IN:
        folder = built_in_folder(str(name)) / "weights" / "pipeline"
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"the built-in model's weights are missing from {folder}; install sagediff from a whole checkout, "
                "or train them: python -m sagediff.builtin.scenes.training all"
            )
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
            f"no model {str(name)!r}: expected 'demo', a local diffusers folder, or a hub id like 'org/name'"
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
        name_or_path: "demo" for the built-in model, a local diffusers folder, or a hub id (the only case that
            uses the network).
        scheduler: one of `denoiser.scheduler.SCHEDULERS` in place of the model's own; its configuration is taken over.
        kwargs: passed to `DiffusionPipeline.from_pretrained`.

    Raises:
        InputError: no such model or scheduler, or weights that are not safetensors.
    """
    folder = model_folder(name_or_path)
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise InputError(f"unknown scheduler {scheduler!r}; known are {', '.join(SCHEDULERS)}")
    import diffusers
    import torch

    dtype = dtype or kwargs.pop("torch_dtype", None) or torch.float32
    options = {"dtype": dtype, "use_safetensors": True, **kwargs}
    if folder is not None:
        options["local_files_only"] = True
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder or name_or_path), **options)
    except (OSError, ValueError) as error:
        raise _cannot_load(name_or_path, error) from error
    if str(name_or_path) == "demo" and getattr(pipe, "unet", None) is not None:
        pipe.unet.to(memory_format=torch.channels_last)  # a fifth faster on CPUs, equal but for rounding
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
