"""What a run is made of, by content: digests of the files behind its names.

The same path may hold other weights tomorrow, and a run that goes on with those would mix the images of two models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sagediff.errors import InputError, first_line
from sagediff.files.digest import file_digest, texts_digest
from sagediff.files.json_input import read_object
from sagediff.pipelines.loading import model_folder
from sagediff.pipelines.run_settings import RunSettings
from sagediff.progress import stderr_track

_EMBEDDING = ("text_encoder", "tokenizer")  # parts of a pipeline that its prompt embeddings come from
_NEVER_LOADED = {".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".pb", ".md", ".png", ".jpg"}
_BAR_BYTES = 2 << 30  # what takes longer than a second or two is shown


def run_content(settings: RunSettings) -> dict[str, str]:
    """Digests of all that a run reads but its prompts: `model`, and `lora` and `encoder` where it has one.

    Raises:
        InputError: a file that cannot be read.
    """
    content = {"model": model_digest(settings.model.name)}
    if loras := settings.model.loras():  # their weights are among the settings
        content["lora"] = files_digest([each.file for each in loras])
    return content | named_content(encoder=settings.sampling.encoder)


def named_content(**names: str | None) -> dict[str, str]:
    """Digests of those of the names that are local folders; a hub's names stand for themselves."""
    folders = {what: Path(name).expanduser() for what, name in names.items() if name}
    return {
        what: files_digest(_loadable(folder), folder) for what, folder in folders.items() if folder.is_dir()
    }


def embedding_source(settings: RunSettings) -> str:
    """What prompt embeddings depend on besides the encoder's name."""
    if settings.sampling.encoder:
        return named_content(encoder=settings.sampling.encoder).get("encoder", "")
    loras = settings.model.loras()
    weights = "".join(f" {each.weight!r}" for each in loras if each.weight != 1 or len(loras) > 1)
    found = files_digest([each.file for each in loras]) if loras else None
    return f"{model_digest(settings.model.name, _EMBEDDING)}, {found}{weights}"


def model_digest(name: str, parts: tuple[str, ...] = ("",)) -> str:
    """Digest of a pipeline's files: its index, and what is loaded from the folders that it names.

    Args:
        name: as `load_pipeline` takes it; a hub id is downloaded.
        parts: how the names of the parts that count begin.
    """
    folder = model_folder(name) or _downloaded(name)
    index = folder / "model_index.json"
    names = [key for key, value in read_object(index).items() if isinstance(value, list)]
    homes = [folder / part for part in sorted(names) if part.startswith(parts)]
    return files_digest([index, *(file for home in homes for file in _loadable(home))], folder)


def files_digest(files: Sequence[Path], home: Path | None = None) -> str:
    """Digest of files' names below `home` and contents, in their order; without `home`, of their contents.

    Raises:
        InputError: one cannot be read.
    """
    texts = []
    try:
        shown = sum(file.stat().st_size for file in files) > _BAR_BYTES
        for file in stderr_track(files, "comparing files") if shown else files:
            name = "" if home is None else file.relative_to(home).as_posix()
            texts.append(f"{name} {file_digest(file)}")
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    return texts_digest(texts)


def _loadable(folder: Path) -> list[Path]:
    """The files of a folder that may be loaded, sorted: no pickles, and no weights of another variant ("fp16")."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix not in _NEVER_LOADED)
    return sorted(file for file in files if not _is_variant(file.name))


def _is_variant(name: str) -> bool:
    stem, weights, _ = name.partition(".safetensors")
    return bool(weights) and "." in stem


def _downloaded(name: str) -> Path:
    """Where the hub's cache has a model; what is missing there is downloaded, as loading would do."""
    import diffusers

    try:
        found: Any = diffusers.DiffusionPipeline.download(name, use_safetensors=True, trust_remote_code=False)
    except Exception as error:  # whatever the hub's client raises
        raise InputError(f"cannot load the model {name!r}: {first_line(error)}") from error
    return Path(found)
