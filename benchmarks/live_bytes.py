"""Peak memory of a pipeline whose denoiser is on the meta device: counted, on any machine, at any size.

The pipeline runs on the CPU around a denoiser that computes nothing, and the bytes of all live tensors are counted as
they come and go, as if attention kept no scores. That depends on no machine, but does not include a kernel's workspace
or an allocator's rounding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors alive, at most: those given, and those that were made inside."""

    def __init__(self, given: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._note(given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._note(leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
        return out

    def _note(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self._known:  # else a view
                self._known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.most = max(self.most, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size


@contextmanager
def computing_nothing(pipe: Any, parts: Iterable[Any]) -> Iterator[None]:
    """The pipeline runs on the CPU around parts on the meta device, and gets zeros from them.

    Args:
        parts: the denoiser and, or not, the autoencoder.
    """

    def on_meta(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            out = forward(*tree_map(_moved, args), **tree_map(_moved, kwargs))
            return tree_map(lambda made: torch.zeros(made.shape, dtype=made.dtype), out)

        return run

    cpu = property(lambda self: torch.device("cpu"))
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(type(pipe), "_execution_device", cpu))
        for part in parts:
            inner = [part] if not hasattr(part, "decoder") else [part.decoder, part.post_quant_conv]
            for module in filter(None, inner):
                stack.enter_context(mock.patch.object(module, "forward", on_meta(module.forward)))
        # on the meta device it would make the scores, which fused attention never holds
        stack.enter_context(
            mock.patch.object(
                torch.nn.functional,
                "scaled_dot_product_attention",
                lambda query, *a, **k: torch.empty_like(query),
            )
        )
        yield


def _moved(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    with _disable_current_modes():  # it is there already, and counted
        return torch.empty_like(value, device="meta")
