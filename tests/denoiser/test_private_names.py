"""The private names of diffusers and torch that sharing relies on: this fails, and says which, when one is renamed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FasterCacheConfig
from diffusers.hooks import HookRegistry
from diffusers.hooks.faster_cache import FasterCacheBlockState, FasterCacheDenoiserState
from diffusers.hooks.first_block_cache import FBCSharedBlockState
from diffusers.hooks.hooks import StateManager
from diffusers.hooks.mag_cache import MagCacheState
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastState
from diffusers.hooks.taylorseer_cache import TaylorSeerState
from tiny import tiny

import sagediff
from sagediff.denoiser import private_names
from sagediff.denoiser.caches import MEMORIES

STATES = (
    FBCSharedBlockState,
    MagCacheState,
    PyramidAttentionBroadcastState,
    TaylorSeerState,
    FasterCacheBlockState,
)
STATES += (FasterCacheDenoiserState,)
THERE = f"diffusers {diffusers.__version__} (or torch {torch.__version__}) has renamed"
HERE = "put the new name into sagediff.denoiser.private_names"


def expect(thing: Any, names: set[str], what: str, here: str = HERE) -> None:
    missing = {name for name in names if not hasattr(thing, name)}
    assert not missing, f"{THERE} {sorted(missing)} of {what}: {here}"


def test_names_of_diffusers_that_we_rely_on() -> None:
    module = torch.nn.Linear(1, 1)
    registry = HookRegistry.check_if_exists_or_initialize(module)
    assert vars(module).get(private_names.REGISTRY) is registry, (
        f"{THERE} the attribute of a module that holds its HookRegistry, {private_names.REGISTRY!r}: {HERE}"
    )
    assert registry.hooks == {}, f"{THERE} `hooks` of HookRegistry: {HERE}"
    expect(registry, {"get_hook", "register_hook", "remove_hook"}, "HookRegistry")

    manager = StateManager(MagCacheState)
    expect(manager, {"_state_cls", "_context", "_state_cache", "get_state"}, "StateManager")
    assert (manager._state_cls, manager._context, manager._state_cache) == (MagCacheState, None, {})

    case = tiny("flux")
    case.denoiser.enable_cache(
        FasterCacheConfig(
            current_timestep_callback=lambda: 500,
            attention_weight_callback=lambda _: 0.5,
            tensor_format="BCHW",
            is_guidance_distilled=True,
        )
    )
    hooks = HookRegistry.check_if_exists_or_initialize(case.denoiser).hooks
    assert hooks, f"{THERE} the way that enable_cache puts hooks on a denoiser: {HERE}"
    for hook in hooks.values():
        expect(hook, {"_is_stateful", "is_guidance_distilled", "fn_ref"}, type(hook).__name__)
        assert hook._is_stateful and hook.is_guidance_distilled
        expect(hook.fn_ref, {"original_forward"}, "HookFunctionReference")


@pytest.mark.parametrize("kind", STATES, ids=lambda kind: kind.__name__)
def test_what_caches_remember(kind: type[Any]) -> None:
    here = "put the new name into sagediff.denoiser.caches.MEMORIES"
    assert {state.__name__ for state in STATES} == set(MEMORIES), here
    state = kind()
    expect(state, set(MEMORIES[kind.__name__].rows), kind.__name__, here)
    state.reset()
    if kind is MagCacheState:
        assert state.step_index == 0, here
    if kind is TaylorSeerState:
        assert state.inactive_shapes is None, here


def test_names_of_torch_that_we_rely_on() -> None:
    inner = torch.nn.Linear(1, 1)
    wrapped = torch.compile(inner, backend="eager")
    assert private_names.unwrapped(wrapped) is inner and private_names.unwrapped(inner) is inner, (
        f"{THERE} `_orig_mod` of a compiled module: {HERE}"
    )
    assert not private_names.is_compiled_in_place(inner)
    inner.compile(backend="eager")
    assert private_names.is_compiled_in_place(inner), f"{THERE} `_compiled_call_impl` of a module: {HERE}"


def test_names_of_modular_pipelines_that_we_rely_on() -> None:
    pipe = diffusers.LTXModularPipeline()
    assert private_names.blocks_of(pipe) is private_names.blocks_of(pipe), f"{THERE} `_blocks`: {HERE}"
    assert set(private_names.blocks_of(pipe).sub_blocks) == set(pipe.blocks.sub_blocks)


def test_no_other_module_uses_them() -> None:
    package = Path(sagediff.__file__).parent
    private = re.compile(
        r"_orig_mod|_compiled_call_impl|_diffusers_hook|_is_stateful|_state_(cls|cache)|\._(context|blocks)\b"
    )
    users = {path.name for path in package.rglob("*.py") if private.search(path.read_text(encoding="utf-8"))}
    assert users == {"private_names.py"}
