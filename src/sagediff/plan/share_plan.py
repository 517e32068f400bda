"""Share plans: for every step, which prompts are denoised as one node, and what that costs.

Pure: knows neither tensors nor pipelines (generators excepted, which import torch when asked for).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sagediff.errors import PlanError
from sagediff.files.digest import number_of
from sagediff.plan.costs import (
    calls,
    calls_taken,
    check_guided,
    check_replayed,
    check_rows,
    first_guided,
    may_guide,
    rows_of_calls,
    rows_of_nodes,
    spans,
)
from sagediff.plan.levels import (
    Level,
    branching_levels,
    check_groups,
    check_levels,
    check_ratios,
    part_of_steps,
    renumber,
    tree_levels,
)
from sagediff.plan.plan_json import plan_fields, plan_text

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SharePlan:
    """Partitions of the prompts into nodes, one per step, that only get finer.

    Attributes:
        num_steps: sampling steps.
        levels: (first step, node of each prompt), steps strictly growing from 0, each level refining the one
            before. Nodes are numbered in the order of their first member.
        shared_guidance: guidance scale of nodes of two or more members; None takes the pipeline's. At 1.0
            the negative rows of such nodes are not run.
        unguided_steps: first steps that run without classifier-free guidance for every node, also those of one
            member: their negative rows are not run (limited-interval guidance, arXiv 2404.07724).
        rows_per_prompt: 2 with classifier-free guidance, 1 without, more with guidance of further parts.
        calls_per_step: denoiser calls of each step (Heun's method takes two); None for one each.
        share_ratio: what the plan was made with, one number, or one per group in the order they were given; for
            reports. None when it is not known.
        replayed_steps: for each prompt how many of its first steps are replayed from a recorded trajectory and so
            cost no rows; members agree while they are one node. None: nothing is replayed.
        guided_from: with 2 rows per prompt, for each prompt the first step with guidance, None where it has none at
            all; members of a group agree. None: `unguided_steps` for all.
        rows_per_call: `rows_per_prompt` of each solver call, where the pipeline's guidance stops or begins on the way
            (truncated guidance, guidance intervals), 0 where the run has ended before (SDXL's `denoising_end`); None
            where all are alike.

    Raises:
        PlanError: partitions that do not refine, do not cover the prompts, or numbers out of range.
    """

    num_steps: int
    levels: tuple[Level, ...]
    shared_guidance: float | None = None
    unguided_steps: int = 0
    rows_per_prompt: int = 2
    calls_per_step: tuple[int, ...] | None = None
    share_ratio: float | tuple[float, ...] | None = None
    replayed_steps: tuple[int, ...] | None = None
    guided_from: tuple[int | None, ...] | None = None
    rows_per_call: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_steps(self.num_steps)
        if self.shared_guidance is not None and not (
            math.isfinite(self.shared_guidance) and self.shared_guidance >= 0
        ):
            raise PlanError(f"shared_guidance must be None or at least 0, got {self.shared_guidance!r}")
        if isinstance(self.unguided_steps, bool) or not (
            isinstance(self.unguided_steps, int) and 0 <= self.unguided_steps <= self.num_steps
        ):
            raise PlanError(
                f"unguided_steps must be a whole number in [0, {self.num_steps}], got {self.unguided_steps!r}"
            )
        if self.calls_per_step is not None and (
            len(self.calls_per_step) != self.num_steps or min(self.calls_per_step) < 1
        ):
            raise PlanError(
                f"calls_per_step must hold {self.num_steps} counts of at least 1, got {self.calls_per_step!r}"
            )
        check_rows(self)
        check_levels(self.levels, self.num_steps)
        check_replayed(self)
        check_guided(self)

    @classmethod
    def from_groups(
        cls,
        groups: Sequence[Sequence[int]],
        num_steps: int = 30,
        share_ratio: float | Sequence[float] = 0.4,
        shared_guidance: float | None = None,
        unguided_steps: int = 0,
        rows_per_prompt: int = 2,
    ) -> SharePlan:
        """Each group shares the first `share_ratio * num_steps` steps (rounded half up), then its members part.

        Args:
            groups: prompt numbers; 0..N-1, each exactly once.
            share_ratio: in [0, 1]; one number, or one per group.

        Raises:
            PlanError: the groups do not cover the prompts once, or a ratio is out of range.
        """
        check_groups(groups)
        _check_steps(num_steps)
        kept: float | tuple[float, ...]
        if not isinstance(share_ratio, int | float | np.number):  # a list, an array, a column of a table
            kept = ratios = tuple(map(float, share_ratio))
        else:
            kept = float(share_ratio)
            ratios = (kept,) * len(groups)
        if len(ratios) != len(groups):
            raise PlanError(
                f"share_ratio must be one number or one per group ({len(groups)}), got {len(ratios)}"
            )
        check_ratios(ratios)
        branch = [
            part_of_steps(ratio, num_steps) if len(group) > 1 else 0
            for ratio, group in zip(ratios, groups, strict=True)
        ]
        levels = branching_levels(groups, branch, num_steps)
        return cls(num_steps, levels, shared_guidance, unguided_steps, rows_per_prompt, None, kept)

    @classmethod
    def from_tree(
        cls,
        tree: Sequence[tuple[float, Sequence[Sequence[int]]]],
        num_steps: int = 30,
        shared_guidance: float | None = None,
        unguided_steps: int = 0,
        rows_per_prompt: int = 2,
    ) -> SharePlan:
        """Groups that part into smaller groups, and those into single prompts (a tree, arXiv 2508.21032).

        Args:
            tree: (share ratio, groups), coarsest first, ratios growing: these groups share until that part of the
                steps, rounded half up. Every partition holds each of the prompts 0..N-1 once and refines the one
                before.

        Raises:
            PlanError: there is no partition, one joins prompts that were apart, or ratios out of range or order.
        """
        _check_steps(num_steps)
        ratios = [float(ratio) for ratio, _ in tree]
        check_ratios(ratios)
        if not ratios or ratios != sorted(set(ratios)):
            raise PlanError(
                f"a tree needs share ratios that grow from one partition to the next, got {ratios}"
            )
        ends = [(part_of_steps(ratio, num_steps), groups) for ratio, groups in tree]
        levels = tree_levels(ends, num_steps)
        return cls(num_steps, levels, shared_guidance, unguided_steps, rows_per_prompt)

    # -- partitions

    @property
    def num_prompts(self) -> int:
        return len(self.levels[0][1])

    def partition(self, step: int) -> npt.NDArray[np.int64]:
        """Node number of each prompt at that step, shape (N,)."""
        if not 0 <= step < self.num_steps:
            raise PlanError(f"step must lie in [0, {self.num_steps}), got {step}")
        nodes = next(nodes for start, nodes in reversed(self.levels) if start <= step)
        return np.asarray(nodes, dtype=np.int64)

    def shared(self, step: int) -> npt.NDArray[np.bool_]:
        """Whether each prompt's node has two or more members at that step, shape (N,)."""
        nodes = self.partition(step)
        return np.asarray(np.bincount(nodes)[nodes] > 1) if len(nodes) else np.zeros(0, dtype=bool)

    def replays(self, step: int) -> npt.NDArray[np.bool_]:
        """Whether each prompt's step is replayed instead of run, shape (N,)."""
        return np.asarray(self.replayed_steps or (0,) * self.num_prompts, dtype=np.int64) > step

    @cached_property
    def groups(self) -> list[list[int]]:
        """The coarsest partition, as lists of prompt numbers."""
        out: list[list[int]] = []
        for prompt, node in enumerate(self.levels[0][1]):
            if node == len(out):
                out.append([])
            out[node].append(prompt)
        return out

    @cached_property
    def branch_steps(self) -> list[int]:
        """For each prompt the first step that it takes alone; 0 where it never shares, `num_steps` where always.

        A replayed step is not a step of its own: it was shared with those whose steps were recorded.
        """
        out = [self.num_steps] * self.num_prompts
        for start, _ in reversed(self.levels):
            for prompt in np.flatnonzero(~self.shared(start)):
                out[prompt] = start
        return [max(pair) for pair in zip(out, self.replayed_steps or out, strict=True)]

    # -- cost

    def runs_negative(self, step: int, members: int) -> bool:
        """Whether the negative rows of a node of so many members are run at that step, if there is guidance."""
        return step >= self.unguided_steps and may_guide(self, members)

    def is_guided(self) -> npt.NDArray[np.bool_]:
        """Whether each prompt is guided in any of its steps, shape (N,)."""
        starts = np.maximum(first_guided(self), self.branch_steps if self.shared_guidance == 1.0 else 0)
        return np.asarray(starts < self.num_steps)

    def step_evaluations(self, step: int) -> int:
        """Denoiser rows that the step runs, guidance rows included."""
        return int(rows_of_nodes(self, (step, step + 1)).sum())

    @cached_property
    def evaluations(self) -> int:
        """Denoiser rows of the whole plan."""
        return sum(int(rows_of_nodes(self, span).sum()) for span in spans(self))

    @property
    def evaluations_independent(self) -> int:
        """Denoiser rows of independent sampling with the same steps, solver and guidance."""
        unguided = 0 if self.guided_from is None else self.guided_from.count(None)
        guided = self.num_prompts - unguided
        return guided * sum(self.rows_of_calls()) + unguided * calls_taken(self, 0, self.num_steps)

    @cached_property
    def evaluations_unshared(self) -> int:
        """Denoiser rows of independent sampling that leaves guidance out wherever this plan does, prompt by prompt."""
        return sum(
            int((rows_of_nodes(self, span, replayed_too=True) * np.bincount(self.partition(span[0]))).sum())
            for span in spans(self)
        )

    @property
    def cost_saving(self) -> float:
        """1 - evaluations / evaluations_independent: all that is saved, 1 - (1 - sharing's) (1 - guidance's)."""
        return _saving(self.evaluations, self.evaluations_independent)

    @property
    def sharing_saving(self) -> float:
        """What sharing saves, against the same steps and the same guidance without sharing."""
        return _saving(self.evaluations, self.evaluations_unshared)

    @property
    def guidance_saving(self) -> float:
        """What leaving guidance out saves (`unguided_steps`, a `shared_guidance` of 1), without any sharing."""
        return _saving(self.evaluations_unshared, self.evaluations_independent)

    @property
    def savings(self) -> str:
        """The savings in words, each by its name."""
        parts = [f"{self.cost_saving:.1%} saved"]
        if self.guidance_saving:
            parts.append(
                f"sharing alone {self.sharing_saving:.1%}, leaving guidance out {self.guidance_saving:.1%}"
            )
        return ": ".join(parts)

    @property
    def title(self) -> str:
        """The plan's figures in one line."""
        return f"{self.num_prompts} prompts in {len(self.groups)} groups: {self.counts}"

    @property
    def counts(self) -> str:
        """Evaluations and savings in words."""
        return f"{self.evaluations} evaluations instead of {self.evaluations_independent} ({self.savings})"

    @cached_property
    def prompt_evaluations(self) -> npt.NDArray[np.float64]:
        """Each prompt's part, shape (N,): a node's rows divided evenly over its members. Sums to `evaluations`."""
        total = np.zeros(self.num_prompts)
        for span in spans(self):
            nodes = self.partition(span[0])
            total += (rows_of_nodes(self, span) / np.bincount(nodes))[nodes]
        return total

    def rows_of_calls(self) -> tuple[int, ...]:
        """Denoiser rows of a guided prompt in each solver call."""
        return rows_of_calls(self, 0, self.num_steps)

    def rows_of_node(self, step: int, members: int) -> int:
        """Denoiser rows that a step takes for a node of so many members, if there is guidance and no replay."""
        rows = rows_of_calls(self, step, step + 1)
        return sum(rows) if self.runs_negative(step, members) else calls_taken(self, step, step + 1)

    def recost(
        self, rows_per_prompt: int | None = None, calls_per_step: Sequence[int] | None = None
    ) -> SharePlan:
        """The same sharing on another cost basis; None leaves a basis as it is. Rows are those of every prompt."""
        if calls_per_step is None:
            plan = self
        else:
            calls = tuple(calls_per_step)
            kept = self.rows_per_call if calls == self.calls_per_step else None
            plan = replace(self, calls_per_step=calls, rows_per_call=kept)
        if rows_per_prompt is None:
            return plan
        return replace(plan, rows_per_prompt=rows_per_prompt, guided_from=None, rows_per_call=None)

    def recost_from(self, solver_call: int, rows_per_prompt: int, end: int | None = None) -> SharePlan:
        """The same sharing where solver calls from this one on have so many rows per prompt.

        Args:
            end: the first solver call that is not taken any more; None: all are.
        """
        before, count = self.rows_of_calls()[:solver_call], calls(self, 0, self.num_steps)
        taken = count if end is None else end
        rows = (*before, *(rows_per_prompt,) * (taken - solver_call), *(0,) * (count - taken))
        alike = len(set(rows)) == 1
        return replace(
            self, rows_per_prompt=max(rows), guided_from=None, rows_per_call=None if alike else rows
        )

    def with_guidance(self, starts: Sequence[int | None], rows_per_prompt: int = 2) -> SharePlan:
        """The same sharing where each prompt is guided from its step on, or, with None, not at all.

        Args:
            rows_per_prompt: of those that are guided.
        """
        guided = replace(self, rows_per_prompt=rows_per_prompt, guided_from=None, rows_per_call=None)
        first = starts[0]
        if len(set(starts)) > 1:
            return replace(guided, unguided_steps=0, guided_from=tuple(starts))
        return replace(guided, rows_per_prompt=1) if first is None else replace(guided, unguided_steps=first)

    def subset(self, prompts: Sequence[int]) -> SharePlan:
        """The plan of some whole groups, their prompts renumbered in the order given.

        Raises:
            PlanError: a group is named in part.
        """
        chosen = set(prompts)
        if len(chosen) != len(prompts):
            raise PlanError("a subset may name each prompt once")
        # not every group: waves of a large plan are many
        for node in sorted({self.levels[0][1][i] for i in prompts}):
            if not chosen >= set(self.groups[node]):
                raise PlanError(f"a subset must take whole groups; it names only some of {self.groups[node]}")
        levels: list[Level] = []
        for start, nodes in self.levels:
            part = tuple(renumber([nodes[i] for i in prompts]))
            if not levels or levels[-1][1] != part:
                levels.append((start, part))
        # ratios given one per group stand in the caller's order of groups, which a part cannot tell
        ratio = None if isinstance(self.share_ratio, tuple) else self.share_ratio
        replayed = self.replayed_steps and tuple(self.replayed_steps[i] for i in prompts)
        part_plan = replace(
            self, levels=tuple(levels), share_ratio=ratio, replayed_steps=replayed, guided_from=None
        )
        starts = self.guided_from
        return (
            part_plan
            if starts is None
            else part_plan.with_guidance([starts[i] for i in prompts], self.rows_per_prompt)
        )

    # -- noise

    def generators(self, seed: int | Sequence[int] = 0, device: str = "cpu") -> list[torch.Generator]:
        """One generator per prompt, equally seeded within a group, so that its members start from equal noise.

        Args:
            seed: one number, from which every group's seed is derived; or one per prompt, of which a group
                takes its first member's.
        """
        import torch

        first = {i: group[0] for group in self.groups for i in group}
        if isinstance(seed, int | np.integer):
            seeds = [number_of(f"{seed}/{first[i]}") >> 1 for i in range(self.num_prompts)]
        else:
            given = list(seed)  # by position, whatever index a column has
            if len(given) != self.num_prompts:
                raise PlanError(
                    f"seed must be one number or one per prompt ({self.num_prompts}), got {len(given)}"
                )
            seeds = [int(given[first[i]]) for i in range(self.num_prompts)]
        return [torch.Generator(device).manual_seed(s) for s in seeds]

    # -- in and out

    def summary(self) -> dict[str, Any]:
        """The figures of `report.json` and `plan --json`."""
        ratio = self.share_ratio
        return {
            "num_prompts": self.num_prompts,
            "num_groups": len(self.groups),
            "num_steps": self.num_steps,
            "share_ratio": list(ratio) if isinstance(ratio, tuple) else ratio,
            "evaluations": self.evaluations,
            "evaluations_independent": self.evaluations_independent,
            "cost_saving": self.cost_saving,
            "sharing_saving": self.sharing_saving,
            "guidance_saving": self.guidance_saving,
        }

    def to_json(self) -> str:
        return plan_text(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SharePlan:
        """Raises PlanError for text that is no plan, or a plan that is not valid."""
        fields = plan_fields(text)
        try:
            return cls(**fields)
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"not a share plan: {error}") from error

    def __str__(self) -> str:
        guidance = "" if self.shared_guidance is None else f", guidance {self.shared_guidance:g} while shared"
        unguided = f", the first {self.unguided_steps} without guidance" if self.unguided_steps else ""
        lines = [
            f"{self.num_prompts} prompts in {len(self.groups)} groups, {self.num_steps} steps{guidance}{unguided}: "
            f"{self.counts}"
        ]
        for number, group in enumerate(self.groups[:20]):
            branch = max(self.branch_steps[i] for i in group)
            lines.append(f"  group {number}: prompts {', '.join(map(str, group))}; branch point {branch}")
        if len(self.groups) > 20:
            lines.append(f"  ... and {len(self.groups) - 20} more groups")
        return "\n".join(lines)


def _saving(run: int, instead_of: int) -> float:
    return 1 - run / instead_of if instead_of else 0.0


def _check_steps(num_steps: object) -> None:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise PlanError(f"num_steps must be a whole number of at least 1, got {num_steps!r}")
