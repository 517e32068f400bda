"""`Trajectory`: what the denoiser answered in the first steps of a run, kept so that a later run can replay it.

Pure tensors: it knows neither plans nor pipelines, and not what makes two runs alike enough to replay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sagediff.errors import InputError
from sagediff.files.json_input import parse_object
from sagediff.plan.costs import MOST_ROWS, ROWS_PER_PROMPT

_FORMAT = "sagediff.Trajectory"
_LARGEST_RECORD = 1 << 20  # bytes of what is said beside the tensors

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The denoiser's answers of some first steps, as the pipeline saw them, for one node.

    Attributes:
        outputs: for every solver call (rows, ...): the conditional row, and then those of the other parts of guidance,
            if any differs.
        calls: solver calls of each step (Heun's method takes two).
        timesteps: the scheduler's timestep of every solver call.
        sample_shape: shape of one row of the noisy latents.
        start: the first few numbers of the noisy latents that the run began with, which tell its noise from other.
        rows_per_prompt: in the first solver call; 1 without guidance, 2 with a negative row, more with further parts.

    Raises:
        InputError: fields that contradict each other.
    """

    outputs: tuple[Tensor, ...]
    calls: tuple[int, ...]
    timesteps: tuple[float, ...]
    sample_shape: tuple[int, ...]
    rows_per_prompt: int
    start: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.outputs)
        if not count or min(self.calls, default=0) < 1 or not sum(self.calls) == count == len(self.timesteps):
            raise InputError(
                f"a trajectory needs one output and one timestep for each solver call of at least one step; got "
                f"{count} outputs and {len(self.timesteps)} timesteps for {list(self.calls)} calls per step"
            )
        if self.rows_per_prompt not in ROWS_PER_PROMPT:
            raise InputError(
                f"rows_per_prompt must be 1, or 2 to {MOST_ROWS} with guidance, got {self.rows_per_prompt!r}"
            )
        shape, dtype = self.outputs[0].shape[1:], self.outputs[0].dtype
        if not all(shape) or min(self.sample_shape, default=0) < 1:
            raise InputError(
                f"a trajectory needs outputs and latents that hold numbers, got rows of {tuple(shape)} for latents of "
                f"{tuple(self.sample_shape)}"
            )
        for call, output in enumerate(self.outputs):
            most = MOST_ROWS if call else self.rows_per_prompt
            if output.ndim < 2 or not 1 <= len(output) <= most:
                raise InputError(
                    f"output {call} of a trajectory has shape {tuple(output.shape)}; it should hold 1 to {most} rows"
                )
            if output.shape[1:] != shape or output.dtype != dtype:
                raise InputError(f"output {call} of a trajectory is of another shape or dtype than the first")

    @property
    def num_steps(self) -> int:
        """Steps that it holds."""
        return len(self.calls)

    @property
    def nbytes(self) -> int:
        """Bytes of its outputs."""
        return sum(output.nbytes for output in self.outputs)

    @property
    def is_finite(self) -> bool:
        """Whether all of its numbers are."""
        return all(map(math.isfinite, (*self.timesteps, *self.start))) and all(
            bool(output.isfinite().all()) for output in self.outputs
        )

    def row(self, call: int, place: int) -> Tensor:
        """What the pipeline saw at that solver call, one row without its batch dimension.

        Args:
            place: of the part among those of the call (`DenoiserCall.place`), 0 for the conditional one.

        Raises:
            InputError: the recorded call had fewer parts.
        """
        output = self.outputs[call]
        if len(output) == 1:  # all parts were alike
            return output[0]
        if place >= len(output):
            raise InputError(
                f"a trajectory cannot be replayed: its call {call} was guided by {len(output)} rows per prompt, this "
                f"run's has more; use the same guidance"
            )
        return output[place]

    def equals(self, other: Trajectory) -> bool:
        """Whether all numbers are the same."""
        return (
            self is other
            or (self.calls, self.timesteps, self.sample_shape, self.rows_per_prompt, self.start)
            == (other.calls, other.timesteps, other.sample_shape, other.rows_per_prompt, other.start)
        ) and all(
            mine.dtype == theirs.dtype and torch.equal(mine, theirs.to(mine.device))
            for mine, theirs in zip(self.outputs, other.outputs, strict=True)
        )

    def to(self, device: str | torch.device) -> Trajectory:
        """The same on another device."""
        return replace(self, outputs=tuple(output.to(device) for output in self.outputs))

    # -- in and out

    def tensors(self) -> dict[str, Tensor]:
        """Its outputs by name, as a safetensors file holds them."""
        return {f"output.{call:04d}": output.contiguous() for call, output in enumerate(self.outputs)}

    def metadata(self) -> dict[str, str]:
        """All else, as the metadata of a safetensors file."""
        told = {name: value for name, value in vars(self).items() if name != "outputs"}
        return {"format": _FORMAT, "version": "1", "trajectory": json.dumps(told)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Trajectory:
        """The opposite of `tensors` and `metadata`; other names are left alone.

        Raises:
            InputError: they do not make a trajectory.
        """
        if metadata.get("format") != _FORMAT or metadata.get("version") != "1":
            raise InputError(f"not a trajectory: expected metadata with format '{_FORMAT}' and version '1'")
        told = parse_object(metadata.get("trajectory", ""), "not a trajectory", max_bytes=_LARGEST_RECORD)
        names = sorted(name for name in tensors if name.startswith("output."))
        try:
            made = cls(
                outputs=tuple(tensors[name] for name in names),
                calls=_numbers(told["calls"], int),
                timesteps=_numbers(told["timesteps"], float),
                sample_shape=_numbers(told["sample_shape"], int),
                rows_per_prompt=_numbers([told["rows_per_prompt"]], int)[0],
                start=_numbers(told["start"], float),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"not a trajectory: {error!r}") from error
        if not made.outputs[0].is_floating_point() or not made.is_finite:
            raise InputError(
                "not a trajectory: it holds numbers that are not finite, or no numbers with a point"
            )
        return made

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file."""
        from safetensors.torch import save_file

        save_file(self.to("cpu").tensors(), str(path), self.metadata())

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read a file that `save` wrote, onto the CPU.

        Raises:
            InputError: it is none.
        """
        return cls.from_tensors(*read_file(path))


def _numbers(found: Any, kind: type[Number]) -> tuple[Number, ...]:
    """Raises TypeError for anything else than a list of numbers of that kind."""
    allowed = (int, float) if kind is float else (int,)
    if not isinstance(found, list) or not all(type(each) in allowed for each in found):
        raise TypeError(f"expected numbers, got {str(found)[:40]}")
    return tuple(map(kind, found))


def read_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        InputError: the file is missing or broken, or no file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():  # a pipe would be waited for
        raise InputError(f"{path} is not a safetensors file: there is no such file")
    try:
        with safe_open(str(path), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error


@dataclass
class Recording:
    """A trajectory while it is made.

    Attributes:
        num_steps: steps that are wanted.
    """

    num_steps: int
    _rows: list[list[Tensor]] = field(default_factory=list)  # of each solver call, by their place in it
    _sample_shape: tuple[int, ...] = ()
    _start: tuple[float, ...] = ()
    _broken: bool = False

    def begin(self) -> None:
        """Forget what there is: the pipeline runs anew."""
        self._rows, self._broken = [], False

    def give_up(self) -> None:
        """A step was not run: what comes after it belongs to nothing."""
        self._broken = True

    def note(self, call: int, rows: Mapping[int, Tensor], sample: Tensor) -> None:
        """Copy rows of a solver call, by their place in it; each comes once.

        Args:
            sample: (...) the noisy latents that they answer.
        """
        if call == len(self._rows):
            self._rows.append([])
            if call == 0:
                self._sample_shape, self._start = tuple(sample.shape), start_of(sample)
        kept = self._rows[call]
        for place in sorted(rows):  # the conditional row first
            kept.append(
                kept[0] if kept and torch.equal(kept[0], rows[place]) else rows[place].detach().clone()
            )

    def trajectory(
        self,
        finished_calls: int,
        calls_per_step: Sequence[int],
        timesteps: Sequence[float],
        rows_per_prompt: int,
    ) -> Trajectory | None:
        """What was recorded; None while its last step is not finished, or when a step of it was not run."""
        calls = tuple(calls_per_step[: self.num_steps])
        count = sum(calls)
        if self._broken or not count or finished_calls < count or len(self._rows) < count:
            return None
        return Trajectory(
            tuple(
                torch.stack(rows if any(row is not rows[0] for row in rows) else rows[:1])
                for rows in self._rows[:count]
            ),
            calls,
            tuple(timesteps[:count]),
            self._sample_shape,
            rows_per_prompt,
            self._start,
        )


def start_of(sample: Tensor) -> tuple[float, ...]:
    """`Trajectory.start` of one row of noisy latents."""
    return tuple(sample.flatten()[:8].tolist())


def check_timesteps(
    trajectory: Trajectory, steps: int, calls: Sequence[int], timesteps: Sequence[float], where: str
) -> None:
    """A run's first steps must be taken at the timesteps of the recorded ones.

    Args:
        steps: how many, at most those recorded.
        calls, timesteps: of the run, as the trajectory has them.
        where: begins the message.

    Raises:
        InputError: they are not.
    """
    count = sum(trajectory.calls[:steps])
    same = tuple(calls[:steps]) == trajectory.calls[:steps] and all(
        math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6)
        for a, b in zip(timesteps[:count], trajectory.timesteps[:count], strict=True)
    )
    if not same:
        raise InputError(
            f"{where}: it was recorded at timesteps {_few(trajectory.timesteps[:count])}, this run's first are "
            f"{_few(timesteps[:count])}; replay it with the solver and the number of steps that it was recorded with"
        )


def _few(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:6]) + (", ..." if len(values) > 6 else "")
