"""A request holds texts and numbers that are some, whoever makes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sagediff.errors import InputError
from sagediff.prompts.requests import ImageRequest, QueuedRequest, as_requests


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"prompt": "a \ud83d"}, "prompt holds half of a surrogate pair"),
        ({"prompt": "a\x00"}, "prompt holds a NUL"),
        ({"prompt": "a\x1b[2J"}, r"prompt holds the control character U\+001B"),
        pytest.param({"prompt": "a" * 100_001}, "prompt has 100,001 characters", id="long"),
        ({"prompt": "a", "negative_prompt": "\udfff"}, "negative_prompt holds half"),
        ({"prompt": "a", "negative_prompt": 3}, "negative_prompt must be a text"),
        ({"prompt": "a", "seed": "1"}, "seed must be a whole number"),
        ({"prompt": "a", "seed": 1.5}, "seed must be a whole number"),
        ({"prompt": "a", "width": "8", "height": 8}, "width must be a whole number"),
        ({"prompt": "a", "width": True, "height": 8}, "width must be a whole number"),
        ({"prompt": "a", "guidance_scale": "4"}, "guidance_scale must be a number"),
        ({"prompt": "a", "lora": "nowhere.safetensors:0.5"}, "no such LoRA: nowhere.safetensors:0.5"),
        ({"prompt": "a", "lora": 0.5}, "a LoRA should be PATH or PATH:WEIGHT"),
        ({"prompt": "a", "lora": ["none", "a"]}, "stands alone"),
    ],
)
def test_what_is_no_request_is_refused_in_words(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ImageRequest(**fields)


def test_any_text_and_numbers_of_numpy_are_taken() -> None:
    text = "two\nlines\tand\u2028more \x85 東京 🐈"
    request = ImageRequest(text, "", np.int64(3), guidance_scale=np.float32(2.5))  # type: ignore[arg-type]
    assert (request.prompt, request.seed) == (text, 3)
    assert as_requests([text]) == [ImageRequest(text)]


def test_a_request_of_a_server_names_no_lora() -> None:
    with pytest.raises(InputError, match="leave out lora"):
        QueuedRequest(id="1", prompt="a", num_inference_steps=1, lora="none")
