"""A pipeline's own run, with another answer in its denoiser's place: recorded and left, or told by an oracle."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import Tensor

from sagediff.denoiser.family import Family

_HOOK = "sagediff_answer"

Answer: TypeAlias = Callable[[dict[str, Any], Callable[[], Any]], Any]
"""(arguments of the denoiser by name, what runs the denoiser itself) -> the output that the pipeline is given."""


class Left(Exception):
    """Leaves a pipeline on the way: what was wanted of it is known."""


class _AnswerHook(ModelHook):
    def __init__(self, family: Family, parameters: Sequence[str], answer: Answer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._family, self._parameters, self._answer = family, parameters, answer

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        named = self._family.named(self._parameters, args, kwargs)
        forward: Any = self.fn_ref.original_forward
        return self._answer(named, lambda: forward(**named))


@contextmanager
def answering(module: torch.nn.Module, family: Family, answer: Answer) -> Iterator[None]:
    """Inside, the denoiser's calls are answered by `answer`; afterwards it is as it was found."""
    parameters = list(inspect.signature(type(module).forward).parameters)[1:]
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(_AnswerHook(family, parameters, answer), _HOOK)
    try:
        yield
    finally:
        registry.remove_hook(_HOOK, recurse=False)


@contextmanager
def stepping(scheduler: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the states that the scheduler's steps lead to go through `change`, (N, ...) to (N, ...)."""
    step = scheduler.step
    set_by_others = "step" in vars(scheduler)

    @functools.wraps(step)  # pipelines look at its signature
    def changed(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        if isinstance(result, tuple):
            return (change(result[0]), *result[1:])
        result["prev_sample"] = change(result["prev_sample"])
        return result

    scheduler.step = changed
    try:
        yield
    finally:
        if set_by_others:
            scheduler.step = step
        else:
            del scheduler.step
