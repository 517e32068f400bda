"""Digests of tensors: of their names, types, shapes and numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of named tensors in the order given, wherever they lie; one at a time is in the CPU's memory."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        numbers: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(numbers)
    return digest.hexdigest()
