"""The private names of diffusers and torch that sharing relies on: nothing else in the package uses one.

diffusers keeps a registry of hooks on a module, and what a cache remembers in a `StateManager`; torch wraps a compiled
module, or compiles it in place.  `tests/denoiser/test_private_names.py` fails when one of them is renamed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:  # what a folder's index tells is read before torch is imported
    import torch
    from diffusers.hooks.hooks import HookRegistry, ModelHook

REGISTRY = "_diffusers_hook"  # attribute of a module: its registry of hooks


def unwrapped(module: Any) -> Any:
    """The module inside a `torch.compile` wrapper; any other as it is."""
    return getattr(module, "_orig_mod", module)


def is_compiled_in_place(module: torch.nn.Module) -> bool:
    """Whether `module.compile()` was called, which leaves no wrapper."""
    return getattr(module, "_compiled_call_impl", None) is not None


# -- hooks on a module -----------------------------------------------------------------------------


def registry_of(module: torch.nn.Module) -> HookRegistry:
    """The module's own registry of hooks; it gets one where it has none.

    Not diffusers' `check_if_exists_or_initialize`: a compiled wrapper answers that with the registry of the module
    inside, whose hooks would be compiled with it.
    """
    from diffusers.hooks.hooks import HookRegistry

    if REGISTRY not in vars(module):
        vars(module)[REGISTRY] = HookRegistry(module)
    return cast("HookRegistry", vars(module)[REGISTRY])


def stateful_hooks(module: torch.nn.Module) -> Iterator[ModelHook]:
    """The hooks that remember something, of a module and all its parts."""
    for part in module.modules():
        registry = vars(part).get(REGISTRY)
        if registry is not None:
            yield from (hook for hook in registry.hooks.values() if hook._is_stateful)


# -- what a hook remembers -------------------------------------------------------------------------


def class_of_states(value: Any) -> str:
    """Name of the class of the states that a hook's attribute manages, or of the attribute itself."""
    from diffusers.hooks.hooks import StateManager

    kind: Any = value._state_cls if isinstance(value, StateManager) else type(value)
    return str(kind.__name__)


def current_state(value: Any) -> Any:
    """The state that the call under way will use, of those that a hook's attribute manages; None before its first
    call, when nothing is remembered.  Any other attribute as it is."""
    from diffusers.hooks.hooks import StateManager

    if not isinstance(value, StateManager):
        return value
    return None if value._context is None else cast("Any", value).get_state()


def forget_managed_states(value: Any) -> None:
    """Clear all states that a hook's attribute manages, if it does; which of them the call under way will use stays."""
    from diffusers.hooks.hooks import StateManager

    if isinstance(value, StateManager):
        value._state_cache.clear()


# -- modular pipelines -----------------------------------------------------------------------------


def blocks_of(pipe: Any) -> Any:
    """The blocks of a modular pipeline themselves; its public `blocks` is a copy of them, made anew each time."""
    return pipe._blocks


def condition_of(guider: Any, batch: Any) -> str:
    """Which prediction a guider will make of one of the batches that it prepared, such as "pred_cond"."""
    return str(getattr(batch, guider._identifier_key))


# -- what a pipeline does with prompts -------------------------------------------------------------


def preprocessed(pipe: Any, texts: list[str]) -> list[str]:
    """Texts as the pipeline hands them to its tokenizers: PixArt's and others write them in lower case first."""
    preprocess = getattr(pipe, "_text_preprocessing", None)
    return texts if preprocess is None else cast("list[str]", preprocess(texts, clean_caption=False))


def lacks_ftfy(pipe: Any) -> bool:
    """Whether the pipeline cleans prompts with the package ftfy, unasked, and that is not installed: it would end in a
    NameError."""
    return any(_cleans_by_ftfy(sys.modules.get(name)) for name in _modules_of(pipe))


def _modules_of(pipe: Any) -> set[str]:
    """Names of the modules that a pipeline's code is in; that of a modular one is in its blocks."""
    found, blocks = {type(pipe).__module__}, [getattr(pipe, "_blocks", None)]
    while blocks:
        block = blocks.pop()
        found.add(type(block).__module__)
        blocks += getattr(block, "sub_blocks", {}).values()
    return found


def _cleans_by_ftfy(module: Any) -> bool:
    names = getattr(getattr(getattr(module, "basic_clean", None), "__code__", None), "co_names", ())
    return "ftfy" in names and "is_ftfy_available" not in names and not hasattr(module, "ftfy")


def repeated_blocks(module: torch.nn.Module) -> bool:
    """Whether a denoiser's class names the blocks that `compile_repeated_blocks` compiles, and it has some."""
    names = getattr(module, "_repeated_blocks", None) or ()
    return any(type(part).__name__ in names for part in module.modules())
