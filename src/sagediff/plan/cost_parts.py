"""A plan's evaluations by what they are for. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagediff.plan.costs import calls_taken
from sagediff.plan.share_plan import SharePlan


@dataclass(frozen=True)
class CostParts:
    """Denoiser rows of a plan.

    Attributes:
        shared: on the condition of a group.
        own: on a prompt's own condition.
        guidance: negative rows, of groups and of prompts.
        saved_by_sharing: rows that the same steps and guidance would take in addition without sharing.
        saved_by_guidance: rows that leaving guidance out saves beside that.
    """

    shared: int
    own: int
    guidance: int
    saved_by_sharing: int
    saved_by_guidance: int

    @classmethod
    def of(cls, plan: SharePlan) -> CostParts:
        """The parts of a plan; the first three sum to its evaluations, all to those of independent sampling."""
        shared = own = 0
        for step in range(plan.num_steps):
            calls = calls_taken(plan, step, step + 1)
            nodes = plan.partition(step)
            members = np.bincount(nodes)
            run = np.zeros(len(members), dtype=bool)
            run[nodes] = ~plan.replays(step)
            shared += calls * int((run & (members > 1)).sum())
            own += calls * int((run & (members == 1)).sum())
        without = plan.evaluations_unshared
        return cls(
            shared,
            own,
            plan.evaluations - shared - own,
            without - plan.evaluations,
            plan.evaluations_independent - without,
        )
