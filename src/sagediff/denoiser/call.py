"""`DenoiserCall`: which of a run's denoiser calls one is, and which of its rows belong to which prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class DenoiserCall:
    """One call of the denoiser by the pipeline.

    Attributes:
        run: number of the pipeline's run, to tell a new one.
        step: the plan's step, from 0.
        solver_call: number of the solver's call that it serves, from 0; some solvers make two or more a step.
        prompts: prompts of the plan.
        rows: rows that the pipeline gives: one per prompt, or two with the negative ones in the same call.
        is_second: it is the negative call of a step with two.
        negative_first: of two rows per prompt the negative one is in the first half.
    """

    run: int
    step: int
    solver_call: int
    prompts: int
    rows: int
    is_second: bool = False
    negative_first: bool = True

    @property
    def begins_run(self) -> bool:
        """Whether it is the run's first call, or that one's second."""
        return self.solver_call == 0

    def halves(self) -> Iterator[tuple[int, bool]]:
        """The first row of each half of the call, with whether its rows are negative; one half if it has no other."""
        if self.rows == self.prompts:
            yield 0, self.is_second
        else:
            yield 0, self.negative_first
            yield self.prompts, not self.negative_first
