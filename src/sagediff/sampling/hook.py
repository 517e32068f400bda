"""The hook on the denoiser: gather one row per node (`gathering.py`), run, spread the output over the members again.

`DenoiserHook` does with real tensors what a `Layout` says; `hook_installed` puts it on a module and takes it off,
leaving no trace.  What is particular to a model is in `denoiser/table.py`, what step it is in `run.py`, what is
recorded and replayed in `record_replay.py`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from diffusers.hooks.hooks import ModelHook
from torch import Tensor

from sagediff.denoiser.attention import check_attention
from sagediff.denoiser.caches import CacheRows
from sagediff.denoiser.call import DenoiserCall
from sagediff.denoiser.condition import GroupCondition
from sagediff.denoiser.guidance import CONDITIONAL, Guiding, ways_of
from sagediff.denoiser.lookup import Family, family_of
from sagediff.denoiser.loops import check_loop, last_timestep
from sagediff.denoiser.micro_batch import MicroBatches
from sagediff.denoiser.modular_call import call_parameters
from sagediff.denoiser.predictions import form_like, in_form, prediction_of
from sagediff.denoiser.private_names import REGISTRY, is_compiled_in_place, registry_of, unwrapped
from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.sampling.gathering import Gathering, has_rows
from sagediff.sampling.layout import Layout, batches_of, in_order
from sagediff.sampling.record_replay import RecordReplay
from sagediff.sampling.run import SharedRun
from sagediff.sampling.shared_guidance import guidance_factor, reguided

HOOK_NAME = "sagediff_shared_sampling"


@dataclass
class Answers:
    """What further denoiser calls of a solver call take where they are not run; a second network may make them.

    Attributes:
        first: the output of the solver call's first denoiser call.
        conditional: (N, ...) the conditional rows of that.
    """

    first: Any = None
    conditional: Tensor | None = None


class DenoiserHook(ModelHook):
    """Runs a denoiser call on one row per node.

    Args:
        pipe: asked for its guidance scale and for its scheduler.
        module: the denoiser as the pipeline holds it.
        answers: shared by all denoisers of the pipeline.
    """

    def __init__(
        self,
        pipe: Any,
        module: torch.nn.Module,
        run: SharedRun,
        records: RecordReplay,
        condition: GroupCondition,
        micro_batches: MicroBatches,
        answers: Answers,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        inner = unwrapped(module)
        self._pipe = pipe
        self._scheduler = pipe.scheduler
        self._inner = inner
        self._class_name = type(inner).__name__
        # image to image
        self._may_skip = "strength" in call_parameters(pipe)
        self._parameters = list(inspect.signature(type(inner).forward).parameters)[1:]  # without self
        self.family: Family = family_of(inner, pipe)
        self._outputs = tuple(self.family.outputs)
        self._run = run
        self._records = records
        self._gathering = Gathering(self.family, condition)
        self._micro_batches = micro_batches
        self.caches = CacheRows(inner, micro_batches)
        self._guiding = Guiding(
            ways_of(type(pipe), self.family), lambda flag: bool(getattr(pipe, flag, False))
        )
        self._answers = answers

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the denoiser's forward; same arguments, same output."""
        if self._pipe.scheduler is not self._scheduler:
            raise UnsupportedPipelineError(
                "the pipeline's scheduler was replaced inside shared_sampling; set it before entering the "
                "context"
            )
        forward = cast("Callable[..., Any]", self.fn_ref.original_forward)
        named = self.family.named(self._parameters, args, kwargs)
        tensors = self.family.tensors(named, self._class_name)
        rows = len(tensors[self.family.sample])
        call = self._run.enter_denoiser(
            rows,
            self._guiding,
            self._guided(),
            self._scheduler,
            self._may_skip,
            last_timestep(self._pipe),
        )
        if call.begins_run:
            check_attention(self._pipe, self._inner, call.way)
            check_loop(self._pipe)
        factor = guidance_factor(self._pipe, self.family, self._run.plan, call)
        layout = Layout.of(self._run.plan, call, self._run.abandoned())
        self._check(call, tensors)
        if call.way.whole:
            layout.check_whole_parts(call)
        self.caches.follow(call, layout.sources)
        sample = tensors[self.family.sample]
        self._records.check(call, sample)

        output: Any
        if layout.is_whole and rows <= self._micro_batches.size(rows) and self._micro_batches.is_known:
            output = forward(**named) if self.family.omitted else forward(*args, **kwargs)
        else:
            batches = partial(self._run_batches, forward, named, tensors, layout.sources, call)
            output, kept = self._run_rows(len(layout.sources), batches)
            spread = self._spread(call, kept, layout, sample)
            if factor is not None and len(self._outputs) > 1:
                raise UnsupportedPipelineError(
                    f"shared_guidance {self._run.plan.shared_guidance:g} is not known for {self._class_name}, which "
                    f"makes several predictions, each guided in its own way; only None (as the pipeline's) and 1.0 work"
                )
            if factor is not None:
                spread = reguided(spread, self._run.plan, call, factor)
            self._records.replay(call, spread)
            if output is None:  # nothing run: answer in the form of the first call, or as asked for
                output = self._answers.first if call.number else self._form(named, tensors)
            output = in_form(spread, output, self._outputs)
        self._records.record(call, prediction_of(output, self._class_name, self._outputs), sample)
        if call.number == 0:
            self._keep_conditional(call, output)
        self._run.leave_denoiser(len(layout.sources))
        return output

    def _guided(self) -> bool | None:
        """Whether the pipeline says that it carries negative rows; None when it cannot say (a loop of the
        user's own)."""
        try:
            return bool(self._pipe.do_classifier_free_guidance)
        except AttributeError:
            return None

    def _check(self, call: DenoiserCall, tensors: Mapping[str, Tensor]) -> None:
        """Sizes fit, and members that share this step hold the same rows.

        At every shared step: rows that were equal at first may be changed prompt by prompt later, by a callback or by a
        pipeline that blends in each prompt's own image.

        Raises:
            UnsupportedPipelineError: an argument's first size is not the number of rows.
            InputError: members of a group hold different noise, sizes or images.
        """
        members, firsts = self._members(call)
        sample = tensors[self.family.sample]
        if call.begins_run and not _parts_are_alike(call, sample):
            raise UnsupportedPipelineError(
                f"the pipeline calls its denoiser with {call.rows} rows for {call.prompts} prompts, which are not the "
                f"same latents for each of its parts ({', '.join(call.parts)}): give exactly the plan's prompts, with "
                f"num_images_per_prompt=1 (repeat a prompt in the plan instead)"
            )
        for name, tensor in tensors.items():
            if not has_rows(self.family, name, tensor, call.rows):
                continue
            role = self.family.role(name)
            if tensor.ndim == 0 or len(tensor) != call.rows:
                raise UnsupportedPipelineError(
                    f"the denoiser's argument `{name}` has shape {tuple(tensor.shape)}; as a {role} it "
                    f"should begin with {call.rows}"
                )
            if role == "row" and members:
                rows, first = (
                    tensor.index_select(0, torch.tensor(places, device=tensor.device))
                    for places in (members, firsts)
                )
                if not _equal(rows, first):
                    unequal = next(i for i in range(len(rows)) if not _equal(rows[i], first[i]))
                    raise self._differs(call, name, firsts[unequal], members[unequal])

    def _members(self, call: DenoiserCall) -> tuple[list[int], list[int]]:
        """Rows of the call that share its step with an earlier one, and for each the first that it shares with."""
        members: list[int] = []
        firsts: list[int] = []
        left_out = self._run.abandoned()
        for first_row, _ in call.first_rows():
            first: dict[int, int] = {}
            for prompt, node in enumerate(self._run.plan.partition(call.step).tolist()):
                if prompt in left_out:
                    continue
                if node in first:
                    members.append(first_row + prompt)
                    firsts.append(first[node])
                first.setdefault(node, first_row + prompt)
        return members, firsts

    def _differs(self, call: DenoiserCall, name: str, *rows: int) -> InputError:
        prompts = [row % call.prompts for row in rows]
        if name != self.family.sample:
            return InputError(
                f"prompts {prompts} share step {call.step}, but the denoiser's argument `{name}` differs between them: "
                f"it must be equal within a group; give its prompts the same sizes and settings, or put them in "
                f"different groups"
            )
        if call.begins_run:
            return InputError(
                f"prompts {prompts} share their first steps, but the latents (`{name}`) differ between them: members "
                f"of a group must start from the same noise and image (generator=plan.generators(seed), or equal "
                f"latents), or be in different groups"
            )
        return InputError(
            f"prompts {prompts} share step {call.step}, but their latents (`{name}`) were changed apart from each "
            f"other on the way (by a callback, or by images or masks of their own), and all but the first one's change "
            f"would be lost: change a group's latents alike while it shares, or put such prompts in different groups"
        )

    def _run_rows(
        self, count: int, batches: Callable[[int], tuple[Any, Tensor]]
    ) -> tuple[Any, Tensor | None]:
        """Run so many rows by `_run_batches`, in smaller micro-batches where the memory does not hold them."""
        if count == 0:
            return None, None
        while True:
            size = self._micro_batches.size(count)
            start = time.perf_counter()
            try:
                output, kept = batches(size)
                break
            except torch.OutOfMemoryError:
                if not self._micro_batches.did_not_fit(size):
                    raise
            torch.cuda.empty_cache()  # outside the handler, whose traceback holds the tensors
        if not self._micro_batches.is_known and kept.is_cuda:
            torch.cuda.synchronize(kept.device)
        self._micro_batches.measured(count, size, time.perf_counter() - start)
        return output, kept

    def _run_batches(
        self,
        forward: Callable[..., Any],
        named: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        sources: Sequence[tuple[int, ...]],
        call: DenoiserCall,
        size: int,
    ) -> tuple[Any, Tensor]:
        """(last output, (rows run, ...)) of the sources' rows, gathered and run `size` at a time."""
        kept: list[Tensor] = []
        output: Any = None
        places = batches_of(len(sources), size, len(call.parts) if call.way.whole else 1)
        for rows in places:
            batch = self._gathering.rows(tensors, [sources[row] for row in rows])
            output = forward(**self.family.put(named, batch))
            kept.append(prediction_of(output, self._class_name, self._outputs))
            if len(kept[-1]) != len(batch[self.family.sample]):
                raise UnsupportedPipelineError(
                    f"{self._class_name} made {len(kept[-1])} predictions for {len(batch[self.family.sample])} rows: "
                    f"some argument that the table does not name still has a row for each prompt"
                )
        made = kept[0] if len(kept) == 1 else torch.cat(kept)
        return output, made[in_order(places)] if call.way.whole else made

    def _keep_conditional(self, call: DenoiserCall, output: Any) -> None:
        """What further calls of the solver call take, where they are not run."""
        first = next(row for row, part in call.first_rows() if part == CONDITIONAL)
        prediction = prediction_of(output, self._class_name, self._outputs)
        self._answers.first, self._answers.conditional = output, prediction[first : first + call.prompts]

    def _form(self, named: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
        """An empty output in the form that the caller asked the denoiser for."""
        whole = self.family.lists
        entries: dict[str, Any] = {
            name: [] if like in whole else tensors[like] for name, like in self.family.outputs.items()
        }
        return form_like(entries, as_tuple=not named.get("return_dict", True))

    def _spread(self, call: DenoiserCall, kept: Tensor | None, layout: Layout, sample: Tensor) -> Tensor:
        """(rows run, ...) to (rows of the call, ...); zeros where nothing was run."""
        device = sample.device
        places = torch.tensor(layout.spread, device=device)
        if kept is not None and -1 not in layout.spread:
            return kept.index_select(0, places)
        conditional = self._answers.conditional
        if conditional is not None and call.number:
            if self.family.text_first:
                conditional = conditional[:, -sample.shape[1] :]
            spread = conditional.repeat(len(call.parts), *[1] * (conditional.ndim - 1))
        else:
            like = self._records.like() if kept is None else kept
            spread = torch.zeros((len(places), *like.shape[1:]), dtype=like.dtype, device=device)
        if kept is not None:
            run = places >= 0
            spread[run] = kept.index_select(0, places[run])
        return spread


@contextmanager
def hook_installed(module: torch.nn.Module, hook: DenoiserHook) -> Iterator[None]:
    """The hook is on the module inside, and the module is as it was found afterwards.

    Raises:
        InputError: the module carries such a hook already.
        UnsupportedPipelineError: the module was compiled in place.
    """
    if is_compiled_in_place(module):
        raise UnsupportedPipelineError(
            f"{type(module).__name__} was compiled in place (`module.compile()`), which would compile sharing with "
            f"it; wrap it instead (`pipe.transformer = torch.compile(pipe.transformer)`), or compile its blocks "
            f"(`compile_repeated_blocks()`)"
        )
    had_registry, had_forward = REGISTRY in vars(module), "forward" in vars(module)
    if registry_of(module).get_hook(HOOK_NAME) is not None:
        raise InputError(
            "shared_sampling is already active on this pipeline's denoiser; leave that context before entering another"
        )
    registry_of(module).register_hook(hook, HOOK_NAME)
    forward = vars(module)["forward"]
    try:
        yield
    finally:
        hook.caches.clear()  # what an aborted run remembered has the rows of nodes
        registry, found = registry_of(module), vars(module).get("forward")
        registry.remove_hook(HOOK_NAME, recurse=False)
        if not registry.hooks:
            # Someone may have replaced the forward meanwhile (offloading does, at the end of a pipeline's run)
            if found is not None and found is not forward:
                module.forward = found  # theirs stays
            elif found is None or not had_forward:
                vars(module).pop("forward", None)  # the class's own shows again
            if not had_registry:
                vars(module).pop(REGISTRY, None)


def _parts_are_alike(call: DenoiserCall, sample: Tensor) -> bool:
    """Whether guidance runs the same latents in all parts of the call."""
    parts = zip(call.parts, sample.chunk(len(call.parts)), strict=True)
    alike = [rows for part, rows in parts if part not in call.way.unlike]
    return all(torch.equal(rows, alike[0]) for rows in alike[1:])


def _equal(rows: Tensor, others: Tensor) -> bool:
    """Whether rows are equal but for the rounding of one operation, which may depend on a row's place in memory."""
    if torch.equal(rows, others):
        return True
    if not rows.is_floating_point():
        return False
    eps = torch.finfo(rows.dtype).eps
    return torch.allclose(rows, others, rtol=2 * eps, atol=1e-7, equal_nan=True)
