"""`Layout`: which rows of a denoiser call are run, and where each output goes.  Pure: knows plans, not tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from sagediff.denoiser.call import DenoiserCall
from sagediff.denoiser.guidance import CONDITIONAL
from sagediff.errors import UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan


@dataclass(frozen=True)
class Layout:
    """Which rows of a denoiser call are run, and which output each row of the call gets.

    Attributes:
        sources: for every row run, the rows of the call that it stands for (the members of a node, in one
            part of the batch).
        spread: (rows,) for every row of the call the row run that it takes its output from; -1: it is not
            run, and takes the conditional prediction of an earlier call for the same step, or a replayed one.
    """

    sources: tuple[tuple[int, ...], ...]
    spread: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every row of the call is run for itself."""
        return self.spread == tuple(range(len(self.sources)))

    def check_whole_parts(self, call: DenoiserCall) -> None:
        """The parts of the call are run for the same nodes each, so that they can be told by their place.

        Raises:
            UnsupportedPipelineError: some part is left out for some node.
        """
        counts = Counter(rows[0] // call.prompts for rows in self.sources)
        if self.sources and [counts[number] for number in range(len(call.parts))] != [
            len(self.sources) // len(call.parts)
        ] * len(call.parts):
            raise UnsupportedPipelineError(
                f"perturbed-attention guidance (PAG) runs its parts ({', '.join(call.parts)}) in one batch, which its "
                f"attention tells by their place, so none can be left out: set shared_guidance=None and "
                f"unguided_steps=0, or pag_scale=0"
            )

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
        left: list[tuple[int, int]] = []  # (row of the call, node): takes the conditional output
        for first_row, part in call.first_rows():
            run_as: dict[int, int] = {}
            for node, of_node in members.items():
                if node in idle or (part != CONDITIONAL and not plan.runs_negative(call.step, len(of_node))):
                    continue
                run_as[node] = len(sources)
                sources.append(tuple(first_row + prompt for prompt in of_node))
            if part == CONDITIONAL:
                conditional = run_as
            for node in nodes:
                if node not in run_as:
                    left.append((len(spread), node))
                spread.append(run_as.get(node, -1))
        for row, node in left:
            spread[row] = conditional.get(node, -1)
        return cls(tuple(sources), tuple(spread))


def batches_of(rows: int, size: int, parts: int = 1) -> list[list[int]]:
    """The numbers of rows in batches of at most `size`; with `parts`, each batch has as many rows of every part.

    Args:
        parts: how many equally long parts the rows are made of, one after another; a batch has one row of each at
            least.
    """
    length, step = rows // parts, max(1, size // parts)
    return [
        [part * length + row for part in range(parts) for row in range(start, min(start + step, length))]
        for start in range(0, length, step)
    ]


def in_order(batches: Sequence[Sequence[int]]) -> list[int]:
    """Where in the batches, one after another, each row is."""
    return sorted(range(sum(map(len, batches))), key=[row for batch in batches for row in batch].__getitem__)
