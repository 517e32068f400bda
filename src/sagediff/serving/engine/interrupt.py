"""Ends a call of a pipeline between two parts of its models, where nobody wants the result any more.

A step of a large image may take minutes, and so may decoding it; the pipeline's own callback comes only after a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from sagediff.errors import StoppedError


@contextmanager
def interruptible(pipe: Any, wanted: Callable[[], bool]) -> Iterator[None]:
    """In this context, a model of the pipeline raises StoppedError before its next part if `wanted` says no.

    Its parts are the modules that have parts themselves. A compiled model is one part, as hooks would be compiled in.

    Args:
        wanted: asked before every part, some hundred times a step; must be quick.
    """

    def look(module: nn.Module, args: Any) -> None:
        if not wanted():
            raise StoppedError("nobody waits for the images of this run any more")

    with ExitStack() as stack:
        for module in _parts(pipe):
            stack.callback(module.register_forward_pre_hook(look).remove)
        yield


def _parts(pipe: Any) -> list[nn.Module]:
    components: dict[str, Any] = getattr(pipe, "components", {})
    found: dict[int, nn.Module] = {}
    for model in components.values():
        if isinstance(model, nn.Module) and not any(map(_is_compiled, model.modules())):
            found |= {id(module): module for module in model.modules() if next(module.children(), None)}
    return list(found.values())


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None
