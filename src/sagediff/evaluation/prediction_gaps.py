"""Measures on a sample of prompts how far group predictions lie from the members', within a number of evaluations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sagediff.errors import InputError
from sagediff.evaluation.gap_model import GapModel, GroupGap, fit_gaps, spread_of
from sagediff.plan.grouping import group_prompts
from sagediff.plan.levels import part_of_steps
from sagediff.plan.sharing import Sharing
from sagediff.sampling.member_predictions import check_levels_known, predicted_for_members
from sagediff.sampling.plan_prompts import CostBasis, cost_basis, default_guidance
from sagediff.sampling.sampler import SharedSampler

Floats = npt.NDArray[np.float32]
_MEMBERS = 8  # of a group that are run; the spread says what more would do
_LEVELS = 6  # noise levels looked at
_TOGETHER = 32  # prompts in one call of the pipeline


@dataclass(frozen=True)
class Gaps:
    """What was measured, and the model of it.

    Attributes:
        measured: one entry per group and step.
        groups: how many groups were run, over all seeds.
        evaluations: denoiser rows run.
    """

    model: GapModel
    measured: tuple[GroupGap, ...]
    groups: int
    evaluations: int


@dataclass(frozen=True)
class Sample:
    """Groups of the prompts that are run, and the steps at which they are looked at."""

    groups: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...]
    evaluations: int


@dataclass(frozen=True)
class GapRunner:
    """Measures gaps of a pipeline on prompts.

    Attributes:
        vectors: (N, D) unit vectors of the prompts.
        guidance_scale: None for the pipeline's own.
        sharing: how the shared steps are guided.
        seeds: of the noise and of the choice of groups; the evaluations are divided among them.
    """

    pipe: Any
    prompts: Sequence[str]
    vectors: Floats
    num_steps: int
    guidance_scale: float | None
    sharing: Sharing
    seeds: tuple[int, ...] = (0,)

    @cached_property
    def _basis(self) -> CostBasis:
        denoiser = SharedSampler(self.pipe).denoiser_class
        scale = default_guidance(type(self.pipe)) if self.guidance_scale is None else self.guidance_scale
        return cost_basis(self.pipe, denoiser, self.num_steps, scale)

    def _rows(self, step: int) -> int:
        """Denoiser rows of one prediction at a step."""
        guided = self.sharing.shared_guidance != 1.0 and step >= part_of_steps(
            self.sharing.unguided, self.num_steps
        )
        return self._basis.rows_per_prompt if guided else 1

    def sample(self, thresholds: Sequence[float], last: int, evaluations: int, seed: int) -> Sample:
        """Which groups to run: as many at each threshold as fit, chosen by the seed. Runs nothing.

        Args:
            last: the last step to look at.
            evaluations: most denoiser rows of the sample.

        Raises:
            InputError: not even one group fits.
        """
        steps = levels_to_look_at(last)
        shared = sum(self._rows(step) * self._basis.calls_per_step[step] for step in range(last + 1))
        each = sum(self._rows(step) for step in steps)
        generator = np.random.default_rng(seed)
        chosen: list[tuple[int, ...]] = []
        spent, least = 0, shared + 2 * each
        seen: set[tuple[int, ...]] = set()
        for number, threshold in enumerate(thresholds):
            allowed = evaluations * (number + 1) // len(thresholds)
            found = [g for g in group_prompts(self.vectors, threshold, _MEMBERS) if len(g) > 1]
            for place in generator.permutation(len(found)):
                group = tuple(found[place])
                fits = min(len(group), (allowed - spent - shared) // each)
                if fits < 2 or group[:fits] in seen:
                    continue
                seen.add(group[:fits])
                chosen.append(group[:fits])
                spent += shared + fits * each
        if not chosen and evaluations < least:
            raise InputError(
                f"{evaluations} evaluations are too few to look at one group: at least {least} are needed with each "
                f"seed at {self.num_steps} steps"
            )
        return Sample(tuple(chosen), steps, spent)

    def measure(
        self,
        thresholds: Sequence[float],
        last: int,
        evaluations: int,
        on_groups: Callable[[int], None] | None = None,
    ) -> Gaps | None:
        """Run a sample with each seed; None where no two prompts are alike enough to share.

        Args:
            thresholds: growing; groups are formed at each.
            last: the last step to look at.
            evaluations: most denoiser rows, over all seeds.
            on_groups: told after each run how many groups it had.

        Raises:
            InputError: too few evaluations, or predictions that are not finite.
            UnsupportedPipelineError: noise levels or a kind of prediction that are not known.
        """
        check_levels_known(self.pipe.scheduler)
        samples = [self.sample(thresholds, last, evaluations // len(self.seeds), seed) for seed in self.seeds]
        measured: list[GroupGap] = []
        signal: tuple[float, ...] = ()
        run = count = 0
        for seed, sample in zip(self.seeds, samples, strict=True):
            for wave in _waves(sample.groups):
                numbers = [i for group in wave for i in group]
                ends = np.cumsum([len(group) for group in wave]).tolist()
                places = [list(range(end - len(group), end)) for end, group in zip(ends, wave, strict=True)]
                found = predicted_for_members(
                    self.pipe,
                    self._sampling([self.prompts[i] for i in numbers]),
                    places,
                    sample.steps,
                    num_steps=self.num_steps,
                    guidance_scale=self.guidance_scale,
                    shared_guidance=self.sharing.shared_guidance,
                    unguided_steps=part_of_steps(self.sharing.unguided, self.num_steps),
                    seed=seed,
                )
                for step in found.steps:
                    for group, members in zip(wave, places, strict=True):
                        gap = float(np.mean([step.gap[i] for i in members]))
                        measured.append(GroupGap(spread_of(self.vectors[list(group)]), step.step, gap))
                signal, run, count = found.signal, run + found.evaluations, count + len(wave)
                if on_groups is not None:
                    on_groups(len(wave))
        if not measured:
            return None
        model = fit_gaps(measured, self.num_steps, signal, self.sharing.renewed_variance)
        return Gaps(model, tuple(measured), count, run)

    def _sampling(self, prompts: list[str]) -> Callable[[list[torch.Generator]], object]:
        """Calls the pipeline for these prompts."""
        options: dict[str, Any] = {"prompt": prompts, "num_inference_steps": self.num_steps}
        if self.guidance_scale is not None:
            options["guidance_scale"] = self.guidance_scale
        if "output_type" in inspect.signature(type(self.pipe).__call__).parameters:
            options["output_type"] = "latent"  # where the last step is looked at, the run comes to its end
        return lambda generators: self.pipe(generator=generators, **options)


def levels_to_look_at(last: int) -> tuple[int, ...]:
    """Steps from 0 to the last one, evenly spread, at most six."""
    return tuple(sorted({round(place) for place in np.linspace(0, last, min(_LEVELS, last + 1)).tolist()}))


def _waves(groups: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    waves: list[list[tuple[int, ...]]] = []
    for group in groups:
        if not waves or sum(map(len, waves[-1])) + len(group) > _TOGETHER:
            waves.append([])
        waves[-1].append(group)
    return waves
