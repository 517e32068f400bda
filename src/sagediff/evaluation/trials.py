"""Trials of the search: a sharing run on a pipeline and measured, and the file that keeps what came out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from sagediff.errors import InputError
from sagediff.evaluation.diversity import group_diversity
from sagediff.evaluation.figures import Figures, Seen
from sagediff.evaluation.perception import Judging, Perception
from sagediff.evaluation.reference import Reference
from sagediff.evaluation.sampled_images import as_tensor, sampled
from sagediff.evaluation.search import Measured
from sagediff.files.atomic import output_errors
from sagediff.files.digest import object_digest
from sagediff.files.json_input import parse_object
from sagediff.plan.compatibility import copy_numbers
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.sampling.plan_prompts import CostBasis, cost_basis, default_guidance
from sagediff.sampling.reading import read_prompts
from sagediff.sampling.sampler import SharedSampler

Metric = Literal["accuracy", "clip"]
EQUAL = 0.99  # a cosine that, but for rounding, none but equal prompts reach


@dataclass(frozen=True)
class PolicyPlans:
    """What policies make of the same prompts on a pipeline, costed as it would run them; runs nothing.

    Attributes:
        vectors: (N, D) unit vectors of the prompts.
        guidance_scale: None for the pipeline's own.
    """

    pipe: Any
    prompts: list[str]
    vectors: npt.NDArray[np.float32]
    num_steps: int
    guidance_scale: float | None

    @cached_property
    def _basis(self) -> CostBasis:
        scale = self.guidance_scale
        scale = default_guidance(type(self.pipe)) if scale is None else scale
        return cost_basis(self.pipe, SharedSampler(self.pipe).denoiser_class, self.num_steps, scale)

    @cached_property
    def _copy_numbers(self) -> list[int]:
        return copy_numbers(read_prompts(self.pipe, self.prompts).keys)

    def plan(self, sharing: Sharing) -> SharePlan:
        """What a sharing makes of these prompts."""
        return self._basis.of(sharing.plan(self.vectors, self.num_steps, copies=self._copy_numbers))


@dataclass(frozen=True)
class TrialRunner:
    """Runs one sharing after the other on the same pipeline, prompts and seeds.

    Attributes:
        vectors: (N, D) unit vectors of the prompts.
        guidance_scale: None for the pipeline's own.
        metric: what quality is; "accuracy" needs a perception that judges these prompts (`judges`).
    """

    pipe: Any
    prompts: list[str]
    vectors: npt.NDArray[np.float32]
    perception: Perception
    num_steps: int
    guidance_scale: float | None
    seeds: tuple[int, ...]
    metric: Metric

    @cached_property
    def copies(self) -> list[list[int]]:
        """The numbers of every prompt that is there more than once."""
        return equal_prompts(self.prompts)

    @cached_property
    def _plans(self) -> PolicyPlans:
        return PolicyPlans(self.pipe, self.prompts, self.vectors, self.num_steps, self.guidance_scale)

    def plan(self, sharing: Sharing) -> SharePlan:
        """What a sharing makes of these prompts; runs nothing."""
        return self._plans.plan(sharing)

    def saving(self, sharing: Sharing) -> float:
        """Its cost saving, guidance that is left out included."""
        return self.plan(sharing).cost_saving

    def figures(self, sharing: Sharing, reference: Reference | None = None) -> list[Figures]:
        """Every metric, one record per seed; diversity is that of equal prompts."""
        return [seen.figures(self.copies, reference) for seen in self._seen(sharing)]

    def _seen(self, sharing: Sharing) -> Iterator[Seen]:
        """The images of each seed, looked at."""
        for seed in self.seeds:
            made = sampled(
                self.pipe, self.prompts, self.vectors, sharing, self.num_steps, self.guidance_scale, seed
            )
            yield Seen.by(self.perception, as_tensor(made.images), self.prompts)

    def measure(self, sharing: Sharing) -> Measured:
        """The quality of a sharing's images, and how far apart those of equal prompts are."""
        values, apart = [], []
        for seen in self._seen(sharing):
            found = seen.right["all"] if self.metric == "accuracy" else seen.aligned
            values.append(found.double().numpy())
            if self.copies:
                apart.append(group_diversity(seen.features, self.copies) or 0.0)
        over_seeds = np.mean(values, axis=0)  # (N,)
        each = [float(over_seeds[same].mean()) for same in repetitions(self.prompts)]
        return Measured(tuple(float(of_seed.mean()) for of_seed in values), tuple(apart), tuple(each))


@dataclass(frozen=True)
class TrialFile:
    """Finished trials, one JSON object per line, so that a stopped search goes on where it was.

    Attributes:
        about: what all trials of a search have in common; those of others are passed over.
    """

    path: Path
    about: Mapping[str, Any]

    @cached_property
    def _about(self) -> str:
        return object_digest(self.about, size=8)

    def read(self) -> dict[Sharing, Measured]:
        """What came out, by sharing; lines that are not whole are passed over, and run again."""
        found: dict[Sharing, Measured] = {}
        with output_errors(self.path):
            content = self.path.read_bytes() if self.path.is_file() else b""
        for line in filter(bytes.strip, dict.fromkeys(content.split(b"\n"))):  # equal ones once
            with suppress(InputError, KeyError):  # a line cut short by a kill, or written by somebody else
                entry = parse_object(line, f"a line of {self.path}")
                if entry["about"] == self._about:
                    measured = Measured(
                        _figures(entry["quality"]), _figures(entry["apart"]), _figures(entry["each"])
                    )
                    if not measured.quality:
                        continue
                    found[Sharing.merged(Sharing.layer(entry["policy"]))] = measured
        return found

    def remembered(self, measure: Callable[[Sharing], Measured]) -> Callable[[Sharing], Measured]:
        """`measure`, asked only of what is not in the file, and its answers put there."""
        known = self.read()

        def measured(sharing: Sharing) -> Measured:
            if sharing not in known:
                known[sharing] = measure(sharing)
                self.add(sharing, known[sharing])
            return known[sharing]

        return measured

    def add(self, sharing: Sharing, measured: Measured) -> None:
        """Raises OutputError if the disk refuses."""
        line = json.dumps({"about": self._about, "policy": sharing.record()} | asdict(measured))
        with output_errors(self.path), self.path.open("a+b") as file:
            if file.tell():  # behind a line that a kill cut short, begin another
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _figures(found: Any) -> tuple[float, ...]:
    """Raises InputError: not a list of numbers."""
    if not isinstance(found, list) or not all(type(each) in (int, float) for each in found):
        raise InputError(f"expected a list of numbers, got {str(found)[:80]}")
    return tuple(map(float, found))


def judges(perception: Perception, prompts: Sequence[str]) -> bool:
    """Whether accuracy is known for these prompts."""
    if not isinstance(perception, Judging):
        return False
    return "all" in perception.accuracy(torch.zeros(1, 3, 64, 64), prompts[:1])


def equal_prompts(prompts: Sequence[str]) -> list[list[int]]:
    """The numbers of every prompt that is there more than once."""
    return [numbers for numbers in repetitions(prompts) if len(numbers) > 1]


def repetitions(prompts: Sequence[str]) -> list[list[int]]:
    """For each different prompt its numbers."""
    places: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(number)
    return list(places.values())
