"""What a run is made of, by content: digests of the files behind its names.

The same path may hold other weights tomorrow, and a run that goes on with those would mix the images of two models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sagediff.errors import InputError, first_line
from sagediff.files.digest import file_digest, texts_digest
from sagediff.files.json_input import read_object
from sagediff.files.text_input import is_file
from sagediff.pipelines.loading import index_folder
from sagediff.pipelines.model_files import index_file
from sagediff.pipelines.model_source import ModelSource
from sagediff.pipelines.modular_folder import download
from sagediff.pipelines.run_settings import RunSettings
from sagediff.pipelines.single_file import held_parts
from sagediff.pipelines.variants import loadable, only_variant, vae_files
from sagediff.progress import stderr_track

_EMBEDDING = ("text_encoder", "tokenizer")  # parts of a pipeline that its prompt embeddings come from
_BAR_BYTES = 2 << 30  # what takes longer than a second or two is shown


def run_content(settings: RunSettings) -> dict[str, str]:
    """Digests of all that a run reads but its prompts: `model`, and `lora` and `encoder` where it has one.

    Raises:
        InputError: a file that cannot be read.
    """
    content = {"model": model_digest(settings.model.source)}
    if loras := settings.model.loras():  # their weights are among the settings
        content["lora"] = files_digest([each.file for each in loras])
    if settings.model.vae is not None:
        content["vae"] = files_digest(vae_files(settings.model.vae))
    if settings.model.quantize is not None and is_file(Path(settings.model.quantize)):
        content["quantize"] = files_digest([Path(settings.model.quantize)])
    return content | named_content(encoder=settings.sampling.encoder)


def named_content(**names: str | None) -> dict[str, str]:
    """Digests of those of the names that are local folders; a hub's names stand for themselves."""
    folders = {what: Path(name).expanduser() for what, name in names.items() if name}
    return {
        what: files_digest(loadable(folder), folder) for what, folder in folders.items() if folder.is_dir()
    }


def embedding_source(settings: RunSettings) -> str:
    """What prompt embeddings depend on besides the encoder's name."""
    if settings.sampling.encoder:
        return named_content(encoder=settings.sampling.encoder).get("encoder", "")
    loras = settings.model.loras()
    weights = "".join(f" {each.weight!r}" for each in loras if each.weight != 1 or len(loras) > 1)
    found = files_digest([each.file for each in loras]) if loras else None
    return f"{model_digest(settings.model.source, _EMBEDDING)}, {found}{weights}"


def model_digest(name: str | ModelSource, parts: tuple[str, ...] = ("",)) -> str:
    """Digest of a pipeline's files: its index, what is loaded from the folders that it names, and a single file.

    Args:
        name: as `load_pipeline` takes it; a hub id is downloaded.
        parts: how the names of the parts that count begin; a single file counts whole.
    """
    source = ModelSource.of(name)
    file = source.single_file
    folder = index_folder(source) or _downloaded(source)
    index = index_file(folder)
    names = [key for key, value in read_object(index).items() if isinstance(value, list)]
    taken = [part for part in sorted(names) if part.startswith(parts)]
    held = set() if file is None else held_parts(file, folder)
    found = []
    for part in taken:
        variant = source.variant if file is None else only_variant(folder / part)
        files = loadable(folder / part, variant)
        found += [each for each in files if part not in held or ".safetensors" not in each.name]
    own = "" if file is None else f"{files_digest([file])} "
    return own + files_digest([index, *found], folder)


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


def _downloaded(source: ModelSource) -> Path:
    """Where the hub's cache has a model; what is missing there is downloaded, as loading would do."""
    options = {"variant": source.variant, "use_safetensors": True, "trust_remote_code": False}
    try:
        return download(source.name, source.revision, options)
    except Exception as error:  # whatever the hub's client raises
        raise InputError(f"cannot load the model {source.name!r}: {first_line(error)}") from error
