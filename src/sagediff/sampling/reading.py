"""What a pipeline's text encoders read of prompts: which prompts are equal to them, and which are cut.

Case, double spaces and words past the token limit are lost on the way, so prompts that differ as texts may be one
prompt to the model, whose images would be one image.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sagediff.denoiser.private_names import preprocessed
from sagediff.files.digest import bytes_digest

_PARTS = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
_SHORT = 77  # tokens: tokenizers up to here (CLIP's) are asked for all that they hold, whatever the call says
_AT_ONCE = 1024  # texts tokenized at once


@dataclass(frozen=True)
class Reading:
    """What the encoders read.

    Attributes:
        keys: for each text; equal where the encoders read the same.
        cut: numbers of the texts of which every encoder leaves out the end.
        limit: the most tokens that any of the encoders reads; None where that is not known.
    """

    keys: list[str]
    cut: list[int]
    limit: int | None = None

    def warning(self) -> str | None:
        """That prompts were cut, in one line; None where none was."""
        if not self.cut:
            return None
        first = ", ".join(map(str, self.cut[:5])) + (", ..." if len(self.cut) > 5 else "")
        many = "1 prompt is" if len(self.cut) == 1 else f"{len(self.cut)} prompts are"
        return (
            f"{many} longer than the model's text encoders read ({self.limit} tokens), and what comes after that "
            f"changes no image; counted from 0: {first}"
        )


def read_prompts(pipe: Any, texts: Sequence[str], max_sequence_length: int | None = None) -> Reading:
    """Tokenize texts as the pipeline would; where a tokenizer is of another kind, or none is there, every text
    reads as it is.

    Args:
        max_sequence_length: of the call; None for the pipeline's default.
    """
    tokenizers = [each for name in _PARTS if (each := getattr(pipe, name, None)) is not None]
    if not tokenizers or not all(map(_is_tokenizer, tokenizers)):
        return Reading(list(texts), [])
    most = max_sequence_length or _default_length(pipe)
    limits = [_limit(tokenizer, most) for tokenizer in tokenizers]
    keys: list[str] = []
    cut: list[int] = []
    for start in range(0, len(texts), _AT_ONCE):
        part = preprocessed(pipe, list(texts[start : start + _AT_ONCE]))
        tokens = [_ids(tokenizer, part) for tokenizer in tokenizers]
        for number in range(len(part)):
            rows = [_shortened(ids[number], limit) for ids, limit in zip(tokens, limits, strict=True)]
            keys.append(bytes_digest(repr(rows).encode(), size=8))
            if all(len(ids[number]) > limit for ids, limit in zip(tokens, limits, strict=True)):
                cut.append(start + number)
    return Reading(keys, cut, max(limits))


def _is_tokenizer(part: Any) -> bool:
    from transformers import PreTrainedTokenizerBase

    return isinstance(part, PreTrainedTokenizerBase)


def _default_length(pipe: Any) -> int | None:
    if not callable(pipe):
        return None
    parameter = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    default = getattr(parameter, "default", None)
    return default if isinstance(default, int) else None


def _limit(tokenizer: Any, most: int | None) -> int:
    own = min(int(getattr(tokenizer, "model_max_length", 512)), 1 << 20)
    return own if own <= _SHORT or most is None else min(own, most)


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, truncation=False, padding=False, verbose=False).input_ids
    return found


def _shortened(ids: Iterable[int], limit: int) -> list[int]:
    """The first tokens, with the last of all at the end, which closes a text that is cut too."""
    ids = list(ids)
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]
