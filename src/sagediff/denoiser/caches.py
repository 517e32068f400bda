"""diffusers' cache hooks under sharing: what they remember follows its rows when nodes part into members.

A cache (`enable_cache`) keeps outputs of the denoiser's inner layers, one row a denoiser row, and uses them again at
later steps.  At a branch point a few rows of nodes become many rows of members; each member then goes on with what was
remembered for its node, which is what it would have remembered itself.  Rows that did not run before (negative rows
while guidance was off) have nothing to go on with: the next step computes in full.

A table says which attributes of a cache's state hold rows; a cache that it does not name is refused.  Nothing here
knows a denoiser or a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks.hooks import ModelHook
from torch import Tensor

from sagediff.denoiser.call import DenoiserCall
from sagediff.denoiser.guidance import Part
from sagediff.denoiser.micro_batch import MicroBatches
from sagediff.denoiser.private_names import (
    class_of_states,
    current_state,
    forget_managed_states,
    stateful_hooks,
)
from sagediff.errors import UnsupportedPipelineError

Sources = tuple[tuple[int, ...], ...]
"""For every row run, the rows of the call that it stands for (`hook.Layout.sources`)."""
Owners = list[frozenset[tuple[Part, int]]]
"""The same as parts and prompts: the place of a part in the batch changes where guidance does."""


@dataclass(frozen=True)
class Memory:
    """What a cache's state holds.

    Attributes:
        rows: attributes with one row a denoiser row: a tensor, or tuples, lists and dictionaries of tensors.
        forget: (state, number of the step, from 0): makes the state compute its next step in full; None: it cannot.
    """

    rows: tuple[str, ...]
    forget: Callable[[Any, int], None] | None = None


def _forget_first_block(state: Any, step: int) -> None:
    state.head_block_residual = None


def _forget_magnitudes(state: Any, step: int) -> None:
    state.previous_residual = None
    state.step_index = step  # magnitudes are told by the step, also where the steps before did not run


def _forget_attention(state: Any, step: int) -> None:
    state.cache = None


def _forget_series(state: Any, step: int) -> None:
    state.reset()  # warms up again, as without terms of the series there is nothing to predict from


MEMORIES: dict[str, Memory] = {
    "FBCSharedBlockState": Memory(
        ("head_block_output", "head_block_residual", "tail_block_residuals"), _forget_first_block
    ),
    "MagCacheState": Memory(("head_block_input", "previous_residual"), _forget_magnitudes),
    "PyramidAttentionBroadcastState": Memory(("cache",), _forget_attention),
    "TaylorSeerState": Memory(("taylor_factors",), _forget_series),
    "FasterCacheBlockState": Memory(("cache",)),
    "FasterCacheDenoiserState": Memory(()),
}


class CacheRows:
    """Keeps the memory of a denoiser's caches in step with the rows that run.

    Args:
        module: the denoiser, not a compiled wrapper of it.
        micro_batches: as the hook has them.

    Raises:
        UnsupportedPipelineError: a cache that the table does not name, or that cannot share; or micro-batches with a
            cache.
    """

    def __init__(self, module: torch.nn.Module, micro_batches: MicroBatches) -> None:
        self._module = module
        self._micro_batches = micro_batches
        self._run = -1
        self._owners: dict[int, Owners] = {}  # the latest, by the number of the call for its step
        self.begin()

    def begin(self, run: int = -1) -> None:
        """A run of the pipeline begins: caches start empty, whatever an aborted run left in them.

        Raises:
            UnsupportedPipelineError: as the class.
        """
        self._run = run
        self._owners = {}
        self._hooks = list(stateful_hooks(self._module))
        for hook in self._hooks:
            self._check(hook)
        self.clear()

    def clear(self) -> None:
        """Forget all. The context that a pipeline may have set for the call under way stays."""
        for hook in self._hooks:
            for value in vars(hook).values():
                forget_managed_states(value)
                if type(value).__name__ in MEMORIES:
                    value.reset()

    def follow(self, call: DenoiserCall, sources: Sources) -> None:
        """A denoiser call is about to run: bring what was remembered into the order of its rows.

        Args:
            sources: the rows to run.

        Raises:
            UnsupportedPipelineError: a memory that does not hold a row for each row of the call before, or one for
                both calls of a step.
        """
        if call.run != self._run:
            self.begin(call.run)
        if not self._hooks:
            return
        before = self._owners.get(call.number)
        owners = self._owners[call.number] = [frozenset(map(call.owner, rows)) for rows in sources]
        if call.number and sources and any(_has_one_state(hook) for hook in self._hooks):
            raise UnsupportedPipelineError(
                "the cache on the denoiser keeps one memory for both of a step's calls (PyramidAttentionBroadcast and "
                "FasterCache do), which cannot be told apart while prompts share: leave guidance by a second call "
                "out, or take FirstBlockCache, MagCache or TaylorSeer"
            )
        if before is None or before == owners:
            return
        place = {owner: number for number, each in enumerate(before) for owner in each}
        places = [place.get(call.owner(rows[0])) for rows in sources]
        for state in self._states():
            memory = MEMORIES[type(state).__name__]
            if None not in places:
                _take(state, memory.rows, torch.tensor(places), len(before))
            elif memory.forget is not None:
                memory.forget(state, call.solver_call)
            elif memory.rows:
                raise UnsupportedPipelineError(
                    f"the cache on the denoiser ({type(state).__name__}) has nothing to go on with for rows that were "
                    f"left out before; take shared_guidance=None and no unguided_steps"
                )

    def _states(self) -> list[Any]:
        """The states that the call under way will use, each once."""
        found: dict[int, Any] = {}
        for hook in self._hooks:
            for state in map(current_state, vars(hook).values()):
                if type(state).__name__ in MEMORIES:
                    found[id(state)] = state
        return list(found.values())

    def _check(self, hook: ModelHook) -> None:
        name = type(hook).__name__
        if not any(class_of_states(value) in MEMORIES for value in vars(hook).values()):
            raise UnsupportedPipelineError(
                f"the denoiser carries a cache ({name}) whose memory sharing does not know: disable it "
                f"(`disable_cache()`), or add its state to sagediff.denoiser.caches.MEMORIES"
            )
        if getattr(hook, "is_guidance_distilled", True) is False:
            raise UnsupportedPipelineError(
                f"the denoiser carries a FasterCache ({name}) that leaves out the first half of the rows as the "
                f"negative ones, which does not hold while prompts share; set is_guidance_distilled=True, or take "
                f"another cache"
            )
        if not self._micro_batches.takes_all:
            raise UnsupportedPipelineError(
                f"micro_batch_size is given, and the denoiser carries a cache ({name}): each "
                f"micro-batch would overwrite what the one before remembered; set micro_batch_size=None and make "
                f"waves smaller instead, or disable the cache (`disable_cache()`)"
            )


def _has_one_state(hook: ModelHook) -> bool:
    """Whether the hook has one memory for all calls, not one for each of a step's calls."""
    return any(type(value).__name__ in MEMORIES for value in vars(hook).values())


def _take(state: Any, names: Sequence[str], places: Tensor, rows: int) -> None:
    """Put the remembered rows at `places` in the place of all `rows` of them."""
    for name in names:
        setattr(state, name, _rows_at(getattr(state, name), places, rows, f"{type(state).__name__}.{name}"))
    shapes = getattr(state, "inactive_shapes", None)  # TaylorSeer's layers that give zeros
    if shapes is not None:
        state.inactive_shapes = tuple((len(places), *shape[1:]) for shape in shapes)


def _rows_at(value: Any, places: Tensor, rows: int, name: str) -> Any:
    if isinstance(value, Tensor):
        if len(value) != rows:
            raise UnsupportedPipelineError(
                f"the cache on the denoiser remembers {len(value)} rows in {name}, but {rows} were run: the layer "
                f"folds rows with something else, and sharing cannot part them; disable the cache "
                f"(`disable_cache()`)"
            )
        return value.index_select(0, places.to(value.device))
    if isinstance(value, Mapping):
        return {key: _rows_at(entry, places, rows, name) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_rows_at(entry, places, rows, name) for entry in value)
    return value
