"""Another autoencoder in place of a model's own, if it is one of the same latents."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from sagediff.errors import InputError, first_line
from sagediff.files.json_input import SMALL, read_object
from sagediff.files.text_input import is_file, shortened
from sagediff.pipelines.loading import index_folder, supported_parts
from sagediff.pipelines.model_source import ModelSource
from sagediff.pipelines.single_file import check_fit, hub_folder, tensors_of
from sagediff.pipelines.variants import CONFIG, vae_files, vae_folder

_LATENTS = (  # settings that say what a latent means
    "latent_channels", "z_dim", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "block_out_channels",
    "down_block_types", "patch_size",
)  # fmt: skip
_COUNTED = (
    "block_out_channels",
    "down_block_types",
)  # by how many there are, which is how much smaller latents are


def load_vae(path: Path, source: ModelSource, dtype: Any) -> Any:
    """The autoencoder behind `--vae`, of the class of the model's own.

    Raises:
        InputError: it is of another class or of other latents, or it cannot be loaded.
    """
    vae_files(path)
    name = supported_parts(source)[0].get("vae")
    if name is None:
        raise InputError(f"{source.name} has no autoencoder; leave out --vae")
    import diffusers

    cls = getattr(diffusers, name)
    model = index_folder(source) or hub_folder(source.name, source.revision)
    own = read_object(model / "vae" / CONFIG, max_bytes=SMALL)
    try:
        if is_file(path):
            tensors_of(path)
            check_fit(cls, path, model / "vae", "vae")
            return cls.from_single_file(
                str(path), config=str(model), subfolder="vae", dtype=dtype, local_files_only=True
            )
        folder = vae_folder(path)
        settings = read_object(folder / CONFIG, max_bytes=SMALL)
        _check(cls, path, settings, own)
        return cls.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, local_files_only=True)
    except InputError:
        raise
    except Exception as error:  # whatever wrong weights make diffusers raise
        raise InputError(f"cannot load --vae {path}: {first_line(error)}") from error


def _check(cls: Any, path: Path, settings: dict[str, Any], own: dict[str, Any]) -> None:
    found, expected = settings.get("_class_name"), cls.__name__
    if found != expected:
        raise InputError(
            f"--vae {path} is of the class {shortened(str(found), 60)}, the model's is {expected}"
        )
    for name in _LATENTS:
        default = inspect.signature(cls.__init__).parameters.get(name)
        values = [each.get(name, getattr(default, "default", None)) for each in (settings, own)]
        if name in _COUNTED:
            values = [len(value) if isinstance(value, list | tuple) else value for value in values]
        if values[0] != values[1]:
            what = f"number of {name}" if name in _COUNTED else name
            raise InputError(
                f"--vae {path} is for other latents: its {what} is {shortened(str(values[0]), 60)}, the model's "
                f"{shortened(str(values[1]), 60)}"
            )
