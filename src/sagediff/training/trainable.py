"""A pipeline's denoiser, callable on any states and timesteps: how training speaks to a model family.

Conditions are not made anew for each family: the pipeline is run up to its first denoiser call and what it
passes there is kept, sorted by the family's table (`denoiser/table.py`). So training knows no encoder and no
argument name, and gives the denoiser what sampling will give it. How time and predictions are turned is the family's
declared convention; `oracle.py` proves it by the pipeline's own loop.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from sagediff.denoiser.condition import GroupCondition
from sagediff.denoiser.convention import Convention
from sagediff.denoiser.lookup import FAMILIES, Family, denoiser_of, denoisers_of, family_of
from sagediff.denoiser.predictions import form_like, prediction_of
from sagediff.errors import UnsupportedPipelineError, first_line
from sagediff.sampling.gathering import Gathering
from sagediff.training.answered import Answer, Left, answering
from sagediff.training.forward_process import GRID, ForwardProcess

_FEW = 2  # steps of a run that is left at its first: with one, some schedulers begin at timestep 0, which tells no time
_PROMPT = "an image"


class TrainableDenoiser:
    """Records conditions and calls the denoiser with them.

    Args:
        pipe: a pipeline with its text encoders; its denoiser's class must be in the table of families.
        height, width: pixels of the images trained on; None takes the pipeline's own size.
        inputs: what the pipeline is called with for some prompts, guided or not; None gives it the prompts
            themselves. For pipelines that hold no text encoder.
        schedule_steps: train on the timesteps of a run of so many steps alone; None takes all of them.

    Attributes:
        sample_shape: of the noisy latents of one image, as the denoiser takes them.
        process: the forward process, at the timesteps that this pipeline sets for images of this size.

    Raises:
        UnsupportedPipelineError: a denoiser that the table does not know, or that it does not say how to train.
    """

    def __init__(
        self,
        pipe: Any,
        height: int | None = None,
        width: int | None = None,
        inputs: Callable[[list[str], bool], dict[str, Any]] | None = None,
        schedule_steps: int | None = None,
    ) -> None:
        self._inputs = inputs
        self.pipe = pipe
        self.module: Any = denoiser_of(pipe)  # a diffusers model: a torch module with more on it
        self.family: Family = family_of(self.module, pipe)
        self._class_name = type(self.module).__name__
        if self.family.convention is None:
            raise _undeclared(f"{type(pipe).__name__} with its {self._class_name}")
        self.convention: Convention = self.family.convention
        if len(denoisers_of(pipe)) > 1:
            raise UnsupportedPipelineError(
                f"training trains one denoiser, and {type(pipe).__name__} changes to a second one, `transformer_2`, on "
                "the way; it can be sampled only"
            )
        self._call = inspect.signature(type(pipe).__call__).parameters
        if "strength" in self._call:
            raise UnsupportedPipelineError(
                f"{type(pipe).__name__} begins from an image, and training goes from noise to captioned images; train "
                "the text-to-image pipeline of the same model, whose LoRA it takes too"
            )
        size: dict[str, Any] = {"height": height, "width": width, "use_resolution_binning": False}
        size |= {"use_kv_cache": False, "pag_scale": 0.0}
        if self.family.makes == "videos":
            size["num_frames"] = 1  # an image is a video of one frame
        self.size = {name: value for name, value in size.items() if value is not None and name in self._call}
        self._first = self._record([_PROMPT], guided=False, steps=schedule_steps or GRID, runs=True)
        tensors = self._tensors(self._first)
        self.sample_shape = tuple(tensors[self.family.sample].shape[1:])
        self._constant = self._constants(tensors)
        scheduler = pipe.scheduler
        self.train_timesteps: int = scheduler.config.num_train_timesteps
        self.process = ForwardProcess.as_set(scheduler, exactly=schedule_steps is not None)
        self._check(tensors[self.convention.time_argument], torch.as_tensor(scheduler.timesteps[0]))

    def _tensors(self, arguments: dict[str, Any]) -> dict[str, Tensor]:
        return self.family.tensors(arguments, self._class_name)

    def _check(self, told: Tensor, timestep: Tensor) -> None:
        """The declared convention against the first call.

        Raises:
            UnsupportedPipelineError: this pipeline tells another time, or its denoiser predicts something else.
        """
        self._told_shape = tuple(told.shape[1:])
        expected = self.told(timestep.float().reshape(1))
        if not torch.allclose(told.float().flatten().cpu(), expected.flatten().cpu(), rtol=1e-2, atol=1e-2):
            raise UnsupportedPipelineError(
                f"{type(self.pipe).__name__} tells its {self._class_name} the time {float(told.flatten()[0]):g} at the "
                f"timestep {float(timestep):g}, which is not `{self.convention.time}`, as declared for that class: it "
                "can be sampled, but not trained"
            )
        own, answered = self.sample_shape, self._answered
        if answered[1:] != own[1:] or not self.convention.reads(answered[0], own[0]):
            raise UnsupportedPipelineError(
                f"{type(self.pipe).__name__} gives its {self._class_name} latents of {own} and gets {answered} back: "
                "how the one belongs to the other is not declared, so that it can be sampled, but not trained"
            )

    def told(self, timesteps: Tensor) -> Tensor:
        """What the denoiser is told at timesteps (N,) of the scheduler: one for each row, or for each of its tokens."""
        times = self.convention.told(timesteps, self.train_timesteps, self.module.config)
        return times.view(-1, *[1] * len(self._told_shape)).expand(-1, *self._told_shape)

    # -- the pipeline's runs

    def run(self, prompts: Sequence[str], answer: Answer, guided: bool, steps: int, **options: Any) -> None:
        """Run the pipeline with `answer` in the denoiser's place, until its end or until `Left` is raised."""
        if self._inputs is not None:
            given = self._inputs(list(prompts), guided)
        elif "prompt" in self._call:
            given = {"prompt": list(prompts)}
            if guided and self.family.guidance == "two calls" and "negative_prompt" in self._call:
                given["negative_prompt"] = [""] * len(prompts)
        else:
            raise UnsupportedPipelineError(
                f"{type(self.pipe).__name__} takes no prompts, so that captions cannot be trained with it"
            )
        given |= {"num_inference_steps": steps, "output_type": "latent", **self.size, **options}
        # In one batch, whether there are negative rows decides where the conditional ones are. The first of two calls
        # is the same with and without, and its scale may be an input of the model, which keeps its default.
        if self.family.scale in self._call and (guided or self.family.guidance == "batched"):
            given[self.family.scale] = self.family.unguided_scale + (2.0 if guided else 0.0)
        with torch.no_grad(), suppress(Left), answering(self.module, self.family, answer):
            self._pipeline_run(given)

    def _pipeline_run(self, given: dict[str, Any]) -> None:
        try:
            self.pipe(**given)
        except (
            TypeError,
            ValueError,
            AttributeError,
        ) as error:  # what pipelines raise where an input is missing
            raise UnsupportedPipelineError(
                f"{type(self.pipe).__name__} cannot be called as training does, with prompts alone and for "
                f"{given['num_inference_steps']} steps ({first_line(error)}); train the text-to-image pipeline of the "
                "same model, and a few-step model with --schedule-steps"
            ) from error

    def _record(
        self, prompts: Sequence[str], guided: bool, steps: int = _FEW, runs: bool = False
    ) -> dict[str, Any]:
        """The arguments of the first denoiser call; `runs`: it is run too, to see what it answers."""
        found: dict[str, Any] = {}

        def answer(named: dict[str, Any], forward: Callable[[], Any]) -> Any:
            found.update(named)
            if runs:
                self._answered = tuple(prediction_of(forward(), self._class_name).shape[1:])
            raise Left

        self.run(prompts, answer, guided, steps)
        if not found:
            raise UnsupportedPipelineError(
                f"{type(self.pipe).__name__} ended without calling its denoiser; training cannot learn its conditions"
            )
        rows = len(self._tensors(found)[self.family.sample])
        if rows != len(prompts) and not (guided and self.family.guidance == "batched"):
            raise UnsupportedPipelineError(
                f"{type(self.pipe).__name__} calls its {self._class_name} with {rows} rows for {len(prompts)} prompts, "
                "of which training cannot tell the prompts' own; it can be sampled, but not trained"
            )
        return found

    def answer(self, prediction: Tensor, arguments: dict[str, Any]) -> Any:
        """What the denoiser returns if that is what the scheduler shall be given, (N, ...)."""
        said = self.convention.said(prediction, self._answered[0])
        rows = list(said.unbind(0)) if self.family.sample in self.family.lists else said
        return form_like({"sample": rows}, as_tuple=not arguments.get("return_dict", True))

    # -- conditions

    def _constants(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is the same for all prompts."""
        kept = (self.family.sample, self.convention.time_argument)
        return {
            name: tensor
            for name, tensor in tensors.items()
            if name not in kept and (self.family.role(name) == "neither" or tensor.ndim == 0)
        }

    def _per_prompt(self, arguments: dict[str, Any], rows: slice) -> dict[str, Tensor]:
        """The arguments that go with a prompt: conditions, masks, and rows that are not states or times."""
        tensors = self._tensors(arguments)
        left_out = {self.family.sample, self.convention.time_argument, *self._constant}
        for name, tensor in self._constants(tensors).items():
            if name not in self._constant or tensor.shape != self._constant[name].shape:
                raise UnsupportedPipelineError(
                    f"{type(self.pipe).__name__} gives its {self._class_name} another `{name}` for other prompts, "
                    f"{tuple(tensor.shape)} in place of {tuple(self._constant[name].shape)}; training needs it to be "
                    "the same for all: pad prompts to one length"
                )
        count = len(tensors[self.family.sample])
        return {
            name: (tensor if len(tensor) == count else tensor.expand(count, *tensor.shape[1:]))[rows].clone()
            for name, tensor in tensors.items()
            if name not in left_out
        }

    def conditions(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the pipeline conditions on for these prompts, each (N, ...)."""
        return self._per_prompt(self._record(prompts, guided=False), slice(None))

    def empty_condition(self) -> dict[str, Tensor] | None:
        """What the negative rows of guidance are conditioned on, each (1, ...); None for models whose guidance is one
        of their inputs, or which are never guided."""
        if self._first.get("guidance") is not None:
            return None
        if self.family.guidance == "batched":
            named = self._record([_PROMPT], guided=True)
            rows = len(self._tensors(named)[self.family.sample])
            if rows == 1:
                return None
            return self._per_prompt(named, slice(0, 1) if self.family.first == "negative" else slice(1, 2))
        calls: list[dict[str, Any]] = []

        def answer(named: dict[str, Any], forward: Callable[[], Any]) -> Any:
            calls.append(named)
            if len(calls) == 2:
                raise Left
            return self.answer(torch.zeros_like(self._tensors(named)[self.family.sample]), named)

        self.run([_PROMPT], answer, True, _FEW)
        time = self.convention.time_argument
        if len(calls) < 2 or not torch.equal(calls[0][time], calls[1][time]):  # the second is the next step's
            return None
        return self._per_prompt(calls[1], slice(0, 1))

    def padded(self, rows: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The same conditions, all with as many tokens as the longest has, and with the same masks: pipelines leave one
        out where there are words only.

        Raises:
            UnsupportedPipelineError: they differ in length, and nothing tells the words from the padding.
        """
        rows = self._with_masks(rows)
        most: dict[str, int] = {}
        for part in rows:
            for name, tensor in part.items():
                most[name] = max(most.get(name, 0), tensor.shape[1] if tensor.ndim > 1 else 0)
        differ = {
            name
            for part in rows
            for name, tensor in part.items()
            if tensor.ndim > 1 and tensor.shape[1] < most[name]
        }
        told = {*self.family.words(rows[0])}
        unknown = [
            name for name in sorted(differ) if self.family.role(name) == "condition" and name not in told
        ]
        if unknown:
            raise UnsupportedPipelineError(
                f"{type(self.pipe).__name__} gives its {self._class_name} a `{unknown[0]}` of another length for other "
                "prompts, with no mask of its words: a batch cannot hold both; take captions of one length"
            )
        return [
            {name: _longer(tensor, most[name]) if name in differ else tensor for name, tensor in part.items()}
            for part in rows
        ]

    def _with_masks(self, rows: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """With masks that show every token, where others have one that does not."""
        masks = {
            name: tensor
            for part in rows
            for name, tensor in part.items()
            if name in self.family.masks and tensor.ndim == 2
        }
        return [
            {
                name: part[self.family.masks[name]].new_ones(
                    part[self.family.masks[name]].shape[:2], dtype=like.dtype
                )
                for name, like in masks.items()
                if name not in part and self.family.masks[name] in part
            }
            | part
            for part in rows
        ]

    def merge(
        self, conditions: dict[str, Tensor], members: Sequence[int], strategy: GroupCondition
    ) -> dict[str, Tensor]:
        """The group condition of some rows, each (1, ...), as sampling makes it."""
        latents = next(iter(conditions.values())).new_zeros((len(next(iter(conditions.values()))), 1))
        gathered = Gathering(self.family, strategy).rows(
            {**conditions, self.family.sample: latents}, [tuple(members)]
        )
        return {name: gathered[name] for name in conditions}

    def __call__(
        self,
        states: Tensor,
        timesteps: Tensor,
        conditions: dict[str, Tensor],
        module: torch.nn.Module | None = None,
    ) -> Tensor:
        """(N, ...) states, (N,) timesteps as the scheduler tells them, conditions each (N, ...) -> (N, ...), what the
        scheduler is given.

        Args:
            module: called in place of the pipeline's own: the same wrapped for several GPUs, or a frozen copy.
        """
        tensors = {
            **conditions,
            **self._constant,
            self.family.sample: states,
            self.convention.time_argument: self.told(timesteps),
        }
        named = self.family.put(self._first, tensors) | {"return_dict": False}
        output = (self.module if module is None else module)(**named)
        return self.convention.read(prediction_of(output, self._class_name), states.shape[1])


def check_trainable(*denoiser: str) -> Convention:
    """The declared convention of a denoiser, by the names of its class and bases.

    Raises:
        UnsupportedPipelineError: none is declared.
    """
    for name in denoiser:
        if name in FAMILIES and (found := FAMILIES[name].convention) is not None:
            return found
    raise _undeclared(denoiser[0])


def _undeclared(name: str) -> UnsupportedPipelineError:
    return UnsupportedPipelineError(
        f"{name} can be sampled only: how its pipeline tells time and reads predictions is not declared in the table "
        "of families, and training by another convention would spoil the model without a word"
    )


def _longer(tensor: Tensor, tokens: int) -> Tensor:
    """(N, L, ...) to (N, tokens, ...), with zeros at the end."""
    more = tensor.new_zeros((len(tensor), tokens - tensor.shape[1], *tensor.shape[2:]))
    return torch.cat([tensor, more], 1)
