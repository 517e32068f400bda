"""Where a model is: one that comes along, a folder, a single file, or a name on a hub. Reads no weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from sagediff.errors import InputError
from sagediff.files.text_input import is_file, is_folder, shortened, stat_of
from sagediff.pipelines.model_files import INDEX, index_file
from sagediff.pipelines.sentence_encoder import encoder_archive

DEFAULTS_FILE = "sagediff.json"  # beside a model or a LoRA: how it is best sampled
SAFETENSORS, GGUF = ".safetensors", ".gguf"
_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


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


@dataclass(frozen=True)
class ModelSource:
    """A model by name.

    Attributes:
        name: as `load_pipeline` takes it.
        variant: of its weights, "fp16" say; parts that do not have it come as they are.
        revision: of a hub id.
        config: for a single file, the folder or the hub id of a whole pipeline like it.
    """

    name: str
    variant: str | None = None
    revision: str | None = None
    config: str | None = None

    @classmethod
    def of(cls, name: str | Path | ModelSource) -> ModelSource:
        """A source as it is; a name by itself."""
        return name if isinstance(name, ModelSource) else cls(str(name))

    @property
    def single_file(self) -> Path | None:
        """The file of weights behind the name, if it is one.

        Raises:
            InputError: a file that is no safetensors or GGUF file, or options that do not go with what the name is.
        """
        file = _single_file(self.name)
        if file is None and self.config is not None:
            raise InputError(
                f"--config {shortened(self.config)} is for a single file of weights; {shortened(self.name)} is none"
            )
        if file is not None and self.variant is not None:
            raise InputError(f"--variant {self.variant} is for folders and hub ids; {file} is a single file")
        local = file is not None or self.name in BUILT_IN or is_folder(_path(self.name))
        if local and self.revision is not None:
            raise InputError(
                f"--revision {self.revision} is for hub ids; {shortened(self.name)} is on this machine"
            )
        return file

    def absolute(self) -> ModelSource:
        """The same from any working folder."""
        name, config = self.name, self.config
        if name not in BUILT_IN and stat_of(_path(name)) is not None:
            name = str(_path(name).resolve())
        if config is not None and stat_of(_path(config)) is not None:
            config = str(_path(config).resolve())
        return replace(self, name=name, config=config)

    def defaults_file(self) -> Path | None:
        """The file that says how the model is best sampled: in its folder, beside a single file by its name
        (`NAME.sagediff.json`), or beside it if no other weights are there. None for none.

        Raises:
            InputError: no such model.
        """
        file = self.single_file
        if file is None:
            folder = model_folder(self.name)
            found = [] if folder is None else [folder / DEFAULTS_FILE]
        else:
            alone = sum(each.suffix in (SAFETENSORS, GGUF) for each in file.parent.iterdir()) == 1
            found = [file.with_name(f"{file.stem}.{DEFAULTS_FILE}"), *([file.parent / DEFAULTS_FILE] * alone)]
        return next((each for each in found if is_file(each)), None)


def built_in_folder(name: str) -> Path:
    """Where a model that comes along has its files: `weights/`, and `lora/` where one goes with it."""
    return Path(str(files("sagediff"))) / BUILT_IN[name].folder


def model_folder(name: str | Path) -> Path | None:
    """The local folder behind a model's name; None for a hub id.

    Raises:
        InputError: neither built in, nor a folder with a model's index, nor of a hub id's form; or a built-in
            model whose weights or whose text encoder's package is not installed.
    """
    built_in = BUILT_IN.get(str(name))
    if built_in is not None:
        folder = built_in_folder(str(name)) / "weights" / "pipeline"
        if not (folder / INDEX).is_file():
            raise InputError(
                f"this installation holds no weights of the built-in model {str(name)!r} ({folder}); install sagediff "
                f"from a checkout that has them, or train them: {built_in.training}"
            )
        if built_in.sentence_encoder:
            encoder_archive()
        return folder
    folder = _path(name)
    if is_folder(folder):
        if not is_file(index_file(folder)):
            raise InputError(
                f"{folder} holds no {INDEX}; --model takes a folder that save_pretrained made, or a single "
                f"{SAFETENSORS} file"
            )
        return folder
    if stat_of(folder) is not None or folder.is_absolute() or not _HUB_ID.fullmatch(str(name)):
        raise InputError(
            f"no model {shortened(str(name))!r}: expected {' or '.join(map(repr, BUILT_IN))}, a local diffusers "
            f"folder, a single {SAFETENSORS} file or a hub id like 'org/name'"
        )
    return None


def _single_file(name: str) -> Path | None:
    if name in BUILT_IN:
        return None
    file = _path(name)
    if file.suffix.lower() in _PICKLES and (is_file(file) or not _HUB_ID.fullmatch(name)):
        raise InputError(
            f"{shortened(file)}: {file.suffix} files are pickles, which can run any code as they are read; only "
            f"{SAFETENSORS} files are loaded: convert it, or take the model's {SAFETENSORS} file"
        )
    if not is_file(file):
        if file.suffix in (SAFETENSORS, GGUF) and not is_folder(file):
            raise InputError(f"no model {shortened(name)!r}: there is no such file on this machine")
        return None
    if file.suffix not in (SAFETENSORS, GGUF):
        raise InputError(
            f"no model {shortened(name)!r}: a single file of weights ends in {SAFETENSORS} or {GGUF}"
        )
    return file


def _path(name: str | Path) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # "~nobody"
        raise InputError(f"no model {shortened(str(name))!r}: {error}") from error
