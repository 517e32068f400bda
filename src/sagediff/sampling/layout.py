"""`Layout`: which rows of a denoiser call are run, and where each output goes.  Pure: knows plans, not tensors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from sagediff.denoiser.call import DenoiserCall
from sagediff.plan.share_plan import SharePlan


@dataclass(frozen=True)
class Layout:
    """Which rows of a denoiser call are run, and which output each row of the call gets.

    Attributes:
        sources: for every row run, the rows of the call that it stands for (the members of a node, in one
            half of the batch).
        spread: (rows,) for every row of the call the row run that it takes its output from; -1: it is not
            run, and takes the output that the first call of the step gave it, or a replayed one.
    """

    sources: tuple[tuple[int, ...], ...]
    spread: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every row of the call is run for itself."""
        return self.spread == tuple(range(len(self.sources)))

    @classmethod
    def of(cls, plan: SharePlan, call: DenoiserCall, left_out: Collection[int] = ()) -> Layout:
        """The layout of a call.

        Args:
            left_out: prompts whose nodes are not run, because nobody wants them any more.  Replayed ones are not
                run either way.
        """
        nodes = [int(node) for node in plan.partition(call.step)]
        idle = {nodes[prompt] for prompt in (*np.flatnonzero(plan.replays(call.step)), *left_out)}
        members: dict[int, list[int]] = {}
        for prompt, node in enumerate(nodes):
            members.setdefault(node, []).append(prompt)
        sources: list[tuple[int, ...]] = []
        spread: list[int] = []
        conditional: dict[int, int] = {}
        negative_skipped: list[tuple[int, int]] = []  # (row of the call, node): takes the conditional output
        for first_row, is_negative in call.halves():
            run_as: dict[int, int] = {}
            for node, of_node in members.items():
                if node in idle or (is_negative and not plan.runs_negative(call.step, len(of_node))):
                    continue
                run_as[node] = len(sources)
                sources.append(tuple(first_row + prompt for prompt in of_node))
            if not is_negative:
                conditional = run_as
            for node in nodes:
                if node not in run_as:
                    negative_skipped.append((len(spread), node))
                spread.append(run_as.get(node, -1))
        for row, node in negative_skipped:
            spread[row] = conditional.get(node, -1)
        return cls(tuple(sources), tuple(spread))
