"""A pipeline's denoiser, callable on any states and timesteps: how training speaks to a model family.

Conditions are not made anew for each family: the pipeline is run up to its first denoiser call and what it
passes there is kept, sorted by the family's table (`denoiser/table.py`). So training knows no encoder and no
argument name, and gives the denoiser what sampling will give it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import Tensor

from sagediff.denoiser.condition import GroupCondition
from sagediff.denoiser.lookup import Family, denoiser_of, family_of
from sagediff.errors import UnsupportedPipelineError

_HOOK = "sagediff_recorder"

# What the tests train. Others scale time or turn the prediction around in their pipelines (Lumina 2), or predict
# a variance too (PixArt), which would be learnt wrongly without a word.
TRAINABLE = frozenset({"UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"})


class _Recorded(Exception):
    """Leaves the pipeline at its first denoiser call."""


class _Recorder(ModelHook):
    def __init__(self, parameters: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = parameters
        self.arguments: dict[str, Any] = {}

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.arguments = dict(zip(self._parameters, args, strict=False)) | kwargs
        raise _Recorded


class TrainableDenoiser:
    """Records conditions and calls the denoiser with them.

    Args:
        pipe: a pipeline with its text encoders; its denoiser's class must be in the table of families.
        height, width: pixels of the images trained on; None takes the pipeline's own size.
        inputs: what the pipeline is called with for some prompts, guided or not; None gives it the prompts
            themselves. For pipelines that hold no text encoder.

    Raises:
        UnsupportedPipelineError: a denoiser that the table does not know.
    """

    def __init__(
        self,
        pipe: Any,
        height: int | None = None,
        width: int | None = None,
        inputs: Callable[[list[str], bool], dict[str, Any]] | None = None,
    ) -> None:
        self._inputs = inputs or (lambda prompts, guided: {"prompt": prompts})
        self._pipe = pipe
        self.module: Any = denoiser_of(pipe)  # a diffusers model: a torch module with more on it
        self.family: Family = family_of(self.module, pipe)
        check_trainable(*(cls.__name__ for cls in type(self.module).__mro__))
        self._parameters = list(inspect.signature(type(self.module).forward).parameters)[1:]
        self._size = {k: v for k, v in (("height", height), ("width", width)) if v is not None}
        self._first = self._record(["an image"], guided=False)
        tensors = self.family.tensors(self._first, type(self.module).__name__)
        self.sample_shape = tuple(tensors[self.family.sample].shape[1:])
        passed = torch.as_tensor(self._first["timestep"]).flatten()[0].float()
        # FLUX's pipeline divides by 1000 what its scheduler says; others pass it on
        self._time_scale = float(passed / torch.as_tensor(pipe.scheduler.timesteps[0]).float())
        self._constant = {k: v for k, v in tensors.items() if self.family.arguments[k] == "neither"}

    def _record(self, prompts: Sequence[str], guided: bool) -> dict[str, Any]:
        recorder = _Recorder(self._parameters)
        registry = HookRegistry.check_if_exists_or_initialize(self.module)
        registry.register_hook(recorder, _HOOK)
        # two steps: with one, some schedulers begin at timestep 0, which tells no scale
        options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", **self._size}
        if self.family.guidance == "batched":
            options["guidance_scale"] = 2.0 if guided else 1.0
        try:
            with torch.no_grad(), suppress(_Recorded):
                self._pipe(**self._inputs(list(prompts), guided), **options)
        finally:
            registry.remove_hook(_HOOK, recurse=False)
        if not recorder.arguments:
            raise UnsupportedPipelineError(
                f"{type(self._pipe).__name__} ended without calling its denoiser; training cannot learn its "
                "conditions"
            )
        return recorder.arguments

    def _per_prompt(self, arguments: dict[str, Any], rows: slice) -> dict[str, Tensor]:
        """The arguments that go with a prompt: conditions, masks, and rows that are not states or times."""
        tensors = self.family.tensors(arguments, type(self.module).__name__)
        return {
            name: tensor[rows].clone()
            for name, tensor in tensors.items()
            if self.family.arguments[name] != "neither"
            and name not in (self.family.sample, "timestep")
            and tensor.ndim > 0
        }

    def conditions(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the pipeline conditions on for these prompts, each (N, ...)."""
        return self._per_prompt(self._record(prompts, guided=False), slice(None))

    def empty_condition(self) -> dict[str, Tensor] | None:
        """What the negative rows of guidance are conditioned on, each (1, ...); None for families whose guidance
        is an input of the model."""
        if self.family.guidance != "batched":
            return None
        return self._per_prompt(self._record(["an image"], guided=True), slice(0, 1))

    def merge(
        self, conditions: dict[str, Tensor], members: Sequence[int], strategy: GroupCondition
    ) -> dict[str, Tensor]:
        """The group condition of some rows, each (1, ...)."""
        rows = {k: v[list(members)] for k, v in conditions.items()}
        roles = {k: self.family.role(k) for k in rows}
        merged = strategy(
            {k: v for k, v in rows.items() if roles[k] in ("condition", "discrete")},
            {k: v for k, v in rows.items() if roles[k] in ("mask", "length")},
            self.family.words(rows),
        )
        return merged | {k: v[:1] for k, v in rows.items() if roles[k] == "row"}

    def __call__(
        self,
        states: Tensor,
        timesteps: Tensor,
        conditions: dict[str, Tensor],
        module: torch.nn.Module | None = None,
    ) -> Tensor:
        """(N, ...) states, (N,) timesteps as the scheduler tells them, conditions each (N, ...) -> (N, ...).

        Args:
            module: called in place of the pipeline's own: the same wrapped for several GPUs, or a frozen copy.
        """
        times = timesteps * self._time_scale if self._time_scale != 1.0 else timesteps
        tensors = {**conditions, **self._constant, self.family.sample: states, "timestep": times}
        named = self.family.put(self._first, tensors) | {"return_dict": False}
        output: Tensor = (self.module if module is None else module)(**named)[0]
        return output


def check_trainable(*denoiser: str) -> None:
    """Refuse a denoiser that training does not know, by the names of its class and bases.

    Raises:
        UnsupportedPipelineError: it is none of `TRAINABLE`.
    """
    if TRAINABLE.isdisjoint(denoiser):
        raise UnsupportedPipelineError(
            f"training is known to work with {', '.join(sorted(TRAINABLE))} and not with {denoiser[0]}, which can be "
            "sampled only"
        )


def pack(latents: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(N, C, H, W) latents in the layout that the denoiser takes.

    Denoisers that take tokens get patches of 2 x 2, rows first, each with its channels outermost: (N, H/2 W/2,
    4 C), as FLUX does.

    Raises:
        UnsupportedPipelineError: the latents fit neither layout.
    """
    if tuple(latents.shape[1:]) == shape:
        return latents
    count, channels, height, width = latents.shape
    if len(shape) == 2 and shape == (height * width // 4, channels * 4):
        patches = latents.view(count, channels, height // 2, 2, width // 2, 2)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(count, *shape)
    raise UnsupportedPipelineError(
        f"the autoencoder's latents have shape {tuple(latents.shape[1:])}, the denoiser takes {shape}; "
        f"known are equal shapes and FLUX's packing; supported denoisers: {', '.join(sorted(TRAINABLE))}"
    )
