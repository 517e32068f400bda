"""Ends a call of a pipeline between two parts of its models, where nobody wants the result any more.

A step of a large image may take minutes, and so may decoding it; the pipeline's own callback comes only after a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from sagediff.denoiser.private_names import is_compiled_in_place, unwrapped
from sagediff.errors import StoppedError

_AT_ONCE = 1 << 27  # pairs of query and key, over all heads and rows: some seconds of one core
_BLOCK = (
    256  # queries that torch takes together on a CPU, from three blocks on: cut there, it computes the same
)


@contextmanager
def interruptible(pipe: Any, wanted: Callable[[], bool], *, large: bool = False) -> Iterator[None]:
    """In this context, a model of the pipeline raises StoppedError before its next part if `wanted` says no.

    Its parts are the modules that have parts themselves. A compiled model is one part, as hooks would be compiled in.

    Args:
        wanted: asked before every part, some hundred times a step; must be quick.
        large: whether a single attention may take long, on a CPU: it is then computed in parts too. Slows small ones.
    """

    def check() -> None:
        if not wanted():
            raise StoppedError("nobody waits for the images of this run any more")

    def look(module: nn.Module, args: Any) -> None:
        check()

    with ExitStack() as stack:
        for module in _parts(pipe):
            stack.callback(module.register_forward_pre_hook(look).remove)
        if large:
            stack.enter_context(AttentionInParts(check))
        yield


class AttentionInParts(TorchFunctionMode):
    """Long attention on a CPU is computed for some queries after others, with the same result.

    Args:
        between: called before each part.
    """

    def __init__(self, between: Callable[[], None]) -> None:
        super().__init__()
        self._between = between

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is not scaled_dot_product_attention:
            return func(*args, **given)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given |= dict(zip(names, args, strict=False))
        query, key = given["query"], given["key"]
        pairs_of_one = key.shape[-2] * math.prod(query.shape[:-2])  # for each query
        at_once = max(3 * _BLOCK, _AT_ONCE // pairs_of_one // _BLOCK * _BLOCK)
        depends_on_place = (
            given.get("attn_mask") is not None or given.get("is_causal") or given.get("dropout_p")
        )
        if query.device.type != "cpu" or depends_on_place or query.shape[-2] < 2 * at_once:
            return func(**given)
        return self._in_parts(func, given, at_once)

    def _in_parts(self, func: Any, given: dict[str, Any], at_once: int) -> Tensor:
        query: Tensor = given.pop("query")  # (..., queries, width)
        length, out = query.shape[-2], []
        # the last part takes what would be too little for blocks of the same size
        starts = list(range(0, length - at_once + 1, at_once))
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            self._between()
            out.append(func(query=query[..., start:end, :], **given))
        return torch.cat(out, dim=-2)


def _parts(pipe: Any) -> list[nn.Module]:
    components: dict[str, Any] = getattr(pipe, "components", {})
    found: dict[int, nn.Module] = {}
    for model in components.values():
        if isinstance(model, nn.Module) and not any(map(_is_compiled, model.modules())):
            found |= {id(module): module for module in model.modules() if next(module.children(), None)}
    return list(found.values())


def _is_compiled(module: nn.Module) -> bool:
    return unwrapped(module) is not module or is_compiled_in_place(module)
