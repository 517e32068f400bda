"""How a pipeline speaks to its denoiser, as data: which time it tells, and how it reads the prediction.

A pipeline's scheduler has timesteps t of T and takes the prediction that its `prediction_type` names. Between it and
the denoiser many loops scale or turn both around; `Convention` says how, for each family of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:  # the table is read before torch is imported, to refuse a model at once
    from torch import Tensor

Time: TypeAlias = Literal["t", "t - 1", "t / T", "1 - t / T", "t * timestep_scale"]


@dataclass(frozen=True)
class Convention:
    """What a family's pipelines do to time and to predictions.

    Attributes:
        time: what the denoiser is told at a timestep t of the scheduler, out of T; `timestep_scale` is of the
            denoiser's configuration.
        negated: the pipeline takes the prediction with the opposite sign.
        with_variance: the denoiser may predict a variance too, as a second half of its channels, which is no part of
            what is trained.
        text_first: the denoiser answers for the text's tokens too, before those of the latents.
        time_argument: the denoiser's name for the time.
    """

    time: Time = "t"
    negated: bool = False
    with_variance: bool = False
    text_first: bool = False
    time_argument: str = "timestep"

    def _line(self, num_train_timesteps: int, config: Any) -> tuple[float, float]:
        """(offset, factor): told = offset + factor t."""
        if self.time == "t - 1":
            return -1.0, 1.0
        if self.time == "t / T":
            return 0.0, 1 / num_train_timesteps
        if self.time == "1 - t / T":
            return 1.0, -1 / num_train_timesteps
        if self.time == "t * timestep_scale":
            return 0.0, float(config["timestep_scale"])
        return 0.0, 1.0

    def told(self, timesteps: Tensor, num_train_timesteps: int, config: Any) -> Tensor:
        """The scheduler's timesteps as the denoiser is told them, of the same shape.

        Args:
            config: of the denoiser.
        """
        offset, factor = self._line(num_train_timesteps, config)
        return timesteps if (offset, factor) == (0.0, 1.0) else offset + factor * timesteps

    def heard(self, told: Tensor, num_train_timesteps: int, config: Any) -> Tensor:
        """The inverse of `told`."""
        offset, factor = self._line(num_train_timesteps, config)
        return (told.double() - offset) / factor

    def reads(self, answered: int, size: int) -> bool:
        """Whether an output with the second size `answered` is one for latents (N, size, ...)."""
        return (
            answered == size
            or (self.with_variance and answered == 2 * size)
            or (self.text_first and answered > size)
        )

    def read(self, output: Tensor, size: int) -> Tensor:
        """A denoiser's output as the scheduler takes it, (N, size, ...): size channels, or tokens of latents."""
        if output.shape[1] != size:
            output = output[:, -size:] if self.text_first else output[:, :size]
        return -output if self.negated else output

    def said(self, prediction: Tensor, answered: int) -> Tensor:
        """The inverse of `read`: (N, size, ...) to a denoiser's output (N, answered, ...), 0 where it is not read."""
        output = -prediction if self.negated else prediction
        if answered != output.shape[1]:
            import torch

            rest = output.new_zeros((len(output), answered - output.shape[1], *output.shape[2:]))
            output = torch.cat([rest, output] if self.text_first else [output, rest], 1)
        return output


AS_SCHEDULED = Convention()
OF_ONE = Convention("t / T")
FROM_NOISE = Convention("1 - t / T", negated=True)  # time runs from 0, noise, to 1
WITH_VARIANCE = Convention(with_variance=True)
