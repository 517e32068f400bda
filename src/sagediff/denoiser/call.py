"""`DenoiserCall`: which of a run's denoiser calls one is, and which of its rows belong to which prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sagediff.denoiser.guidance import CONDITIONAL, Part, Way


@dataclass(frozen=True)
class DenoiserCall:
    """One call of the denoiser by the pipeline.

    Attributes:
        run: number of the pipeline's run, to tell a new one.
        step: the plan's step, from 0.
        solver_call: number of the solver's call that it serves, from 0; some solvers make two or more a step.
        prompts: prompts of the plan.
        way: in which the pipeline guides, as far as this call.
        number: of the call in that way, from 0; some pipelines make two or more for one call of the solver.
    """

    run: int
    step: int
    solver_call: int
    prompts: int
    way: Way
    number: int = 0

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its parts, one after another in the batch; each has a row per prompt."""
        return self.way.calls[self.number]

    @property
    def rows(self) -> int:
        """Rows that the pipeline gives."""
        return self.prompts * len(self.parts)

    @property
    def begins_run(self) -> bool:
        """Whether it serves the run's first solver call."""
        return self.solver_call == 0

    def first_rows(self) -> Iterator[tuple[int, Part]]:
        """The first row of each part, with the part."""
        for number, part in enumerate(self.parts):
            yield number * self.prompts, part

    def place(self, part: Part) -> int:
        """Of a part among all those of its solver call: 0 for the conditional one, then the others in their order."""
        parts = [each for call in self.way.calls[: self.number + 1] for each in call]
        return sorted(parts, key=lambda each: each != CONDITIONAL).index(part)

    def owner(self, row: int) -> tuple[Part, int]:
        """Part and prompt of a row."""
        return self.parts[row // self.prompts], row % self.prompts
