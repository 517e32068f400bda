"""How prompts are shared: `SharePolicy`, every option of it, and the plan that it makes of vectors. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sagediff.errors import InputError
from sagediff.plan.grouping import group_prompts
from sagediff.plan.ladder import Parting, Rung, group_ratios, ladder, nested_groups
from sagediff.plan.levels import part_of_steps
from sagediff.plan.share_plan import SharePlan


@dataclass(frozen=True)
class SharePolicy:
    """How prompts become a plan.

    Attributes:
        threshold: least cosine between any two members of a group, in [-1, 1].
        share_ratio: part of the steps that a group takes together, in [0, 1].
        max_group_size: most members of a group.
        shared_guidance: guidance scale of shared steps; 1.0 leaves the negative rows out, None takes the
            pipeline's.
        unguided: part of the steps, the first ones, that run without guidance for every prompt, in [0, 1].
        rungs: (threshold, share ratio) pairs above the first, which `threshold` and `share_ratio` are; both grow:
            prompts more alike than the threshold stay together longer. None (default): a fixed split.
        parting: with rungs, "tree" (default) cuts each group into the closer groups that the next rung makes of it,
            step by step; "together" gives every group one branch point, by its least alike pair.

    Raises:
        InputError: a value out of range.
    """

    threshold: float = 0.8
    share_ratio: float = 0.4
    max_group_size: int = 8
    shared_guidance: float | None = 1.0
    unguided: float = 0.0
    rungs: tuple[tuple[float, float], ...] = ()
    parting: Parting = "tree"

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """All rungs, the first one included."""
        return ladder([(self.threshold, self.share_ratio), *self.rungs])

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and -1 <= self.threshold <= 1):
            raise InputError(f"threshold must lie in [-1, 1], got {self.threshold}")
        if not 0 <= self.share_ratio <= 1:
            raise InputError(f"share_ratio must lie in [0, 1], got {self.share_ratio}")
        if not 0 <= self.unguided <= 1:
            raise InputError(f"unguided must lie in [0, 1], got {self.unguided}")
        if self.max_group_size < 1:
            raise InputError(f"max_group_size must be at least 1, got {self.max_group_size}")
        if self.shared_guidance is not None and not (
            math.isfinite(self.shared_guidance) and self.shared_guidance >= 0
        ):
            raise InputError(f"shared_guidance must be None or at least 0, got {self.shared_guidance}")
        if self.parting not in ("tree", "together"):
            raise InputError(f"parting must be 'tree' or 'together', got {self.parting!r}")
        ladder([(self.threshold, self.share_ratio), *self.rungs])

    def plan(self, vectors: Any, num_steps: int, rows_per_prompt: int = 2) -> SharePlan:
        """Group unit vectors, (N, D), and plan; pure."""
        groups = group_prompts(vectors, self.threshold, self.max_group_size)
        return self.plan_groups(groups, num_steps, rows_per_prompt, vectors)

    def plan_groups(
        self,
        groups: Sequence[Sequence[int]],
        num_steps: int,
        rows_per_prompt: int = 2,
        vectors: Any = None,
    ) -> SharePlan:
        """Plan groups that were made elsewhere, at this policy's threshold and size.

        Args:
            vectors: (N, D) unit vectors; only a policy with rungs asks for them, and only those of prompts in groups.

        Raises:
            InputError: the policy has rungs, and there are no vectors. PlanError: groups that are no partition.
        """
        unguided = part_of_steps(self.unguided, num_steps)
        if self.rungs and vectors is None:
            raise InputError("rungs need the prompts' vectors; plan without rungs, or with SharePolicy.plan")
        if self.rungs and self.parting == "tree":
            tree = nested_groups(vectors, groups, self.ladder, self.max_group_size)
            return SharePlan.from_tree(tree, num_steps, self.shared_guidance, unguided, rows_per_prompt)
        ratio: float | list[float] = self.share_ratio
        if self.rungs:
            ratio = group_ratios(vectors, groups, self.ladder)
        return SharePlan.from_groups(
            groups, num_steps, ratio, self.shared_guidance, unguided, rows_per_prompt
        )
