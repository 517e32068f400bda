"""The built-in model's CLIP tokenizer: every word of the world is one token, any other text is spelt in bytes."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from sagediff.builtin.scenes.world import VALUES

MAX_LENGTH = 24  # tokens, start and end included; the world's longest caption takes 13

_WORDS = sorted({word for values in VALUES.values() for name in values for word in name.split()})
_TEMPLATE = ["a", "at", "the", "on", "background"]


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer, from vocab.json and merges.txt that are written into `folder` first.

    They hold bytes, then the merges that spell each word, then the two marks.
    """
    characters = sorted(ByteLevel.alphabet())  # the 256 printable stand-ins for bytes, as GPT-2 has them
    vocabulary = {token: i for i, token in enumerate([*characters, *(c + "</w>" for c in characters)])}
    merges: list[str] = []
    for word in _TEMPLATE + _WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        # right to left: a merge always ends in </w>, so no word's merge can fire inside another word's start
        while len(pieces) > 1:
            left, right = pieces[-2:]
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                vocabulary.setdefault(left + right, len(vocabulary))
            pieces[-2:] = [left + right]
    for mark in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[mark] = len(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=MAX_LENGTH)
