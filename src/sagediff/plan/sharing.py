"""How prompts share: `Sharing`, every option of it, declared once; and the plan that it makes of vectors. Pure.

Validation, policy files, the record in a LoRA's file, a run's manifest, a cache's key, a bench's table and the command
line all read these fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from sagediff.errors import InputError
from sagediff.files.atomic import write_text
from sagediff.files.json_input import SMALL, read_object
from sagediff.options import check, check_value, option
from sagediff.plan.grouping import group_prompts
from sagediff.plan.ladder import Parting, Rung, group_ratios, ladder, nested_groups
from sagediff.plan.levels import part_of_steps
from sagediff.plan.share_plan import SharePlan

Repeats: TypeAlias = Literal["separate", "share"]
Layer = Mapping[str, Any]
"""Some of the options by name, as one source has them; those of a later layer win."""


@dataclass(frozen=True)
class Sharing:
    """Every option of sharing; what each does is its `help`.

    Raises:
        InputError: a value of another type or out of range.
    """

    threshold: float = option(
        0.8,
        "Minimum similarity in a group. Higher: less saved, safer.",
        low=-1,
        high=1,
    )
    share_ratio: float = option(
        0.4,
        "Fraction of the steps shared. Higher: more saved.",
        low=0,
        high=1,
    )
    max_group_size: int = option(8, "Most prompts in a group.", low=1)
    shared_guidance: float | None = option(
        1.0,
        "Guidance of shared steps: 1 is none, 'same' the run's.",
        low=0,
        words={"same": None},
    )
    unguided: float = option(
        0.0,
        "Fraction of the steps, the first, without any guidance.",
        low=0,
        high=1,
        for_unguided=True,
    )
    rungs: tuple[tuple[float, float], ...] = option(
        (),
        "Further pairs (threshold, share ratio), both growing: more similar prompts share longer.",
        flag=False,
    )
    parting: Parting = option(
        "tree",
        "With rungs: 'tree' splits a group step by step into its more similar parts, 'together' gives every group "
        "one branch point, that of its least similar pair.",
        choices=("tree", "together"),
        flag=False,
    )
    handover_noise: float = option(
        0.0,
        "Fresh noise on leaving a group; 1 with a LoRA for sharing.",
        low=0,
        high=1,
        for_unguided=True,
    )
    fresh_noise: float = option(
        0.75,
        "Fresh noise, 0 to 1, of copies of a prompt that share.",
        low=0,
        high=1,
    )
    repeats: Repeats = option(
        "separate",
        "Whether copies of a prompt share with each other.",
        choices=("separate", "share"),
    )

    def __post_init__(self) -> None:
        check(self)
        _ = self.ladder  # its own check

    # -- layers and files

    @classmethod
    def layer(cls, found: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """The options among a mapping's entries, checked one by one; other entries are somebody else's.

        Who names a threshold or a share ratio without rungs says that there are none.

        Args:
            where: names the source in errors.

        Raises:
            InputError: a value of the wrong kind, or rungs without the first rung beside them.
        """
        names = {each.name: each.metadata for each in fields(cls)}
        layer = {name: value for name, value in found.items() if name in names}
        for name, value in layer.items():
            if isinstance(value, str) and value in names[name]["words"]:
                layer[name] = value = names[name]["words"][value]
            if name != "rungs":
                check_value(cls, name, value, f"{where}: `{name}`" if where else "")
        if layer.get("rungs"):
            layer["rungs"] = _rungs(layer, where)
        elif "threshold" in layer or "share_ratio" in layer:
            layer["rungs"] = ()
        return layer

    @classmethod
    def merged(cls, *layers: Layer) -> Sharing:
        """The options of all layers, each winning over those before it; defaults for the rest.

        Raises:
            InputError: options that do not go together.
        """
        return cls(**{name: value for layer in layers for name, value in layer.items()})

    @classmethod
    def load(cls, path: str | Path) -> Sharing:
        """Read a policy file, as `save` and `sagediff tune` write it.

        Raises:
            InputError: no such file, no JSON object, or a value of the wrong kind.
        """
        return cls.merged(cls.layer(read_object(Path(path), max_bytes=SMALL), str(path)))

    def save(self, path: str | Path) -> None:
        """Write a policy file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        write_text(Path(path), json.dumps(self.record(), indent=2) + "\n")

    def record(self) -> dict[str, Any]:
        """Every option as JSON has it; `layer` reads it back."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    # -- plans

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """All rungs, the first included, which `threshold` and `share_ratio` are."""
        return ladder([(self.threshold, self.share_ratio), *self.rungs])

    def shared_steps(self, num_steps: int) -> int:
        """How many steps a group takes together, rungs aside."""
        return part_of_steps(self.share_ratio, num_steps)

    def plan(
        self,
        vectors: Any,
        num_steps: int,
        rows_per_prompt: int = 2,
        copies: Sequence[int] | None = None,
    ) -> SharePlan:
        """Group unit vectors, (N, D), and plan.

        Args:
            copies: for each prompt how many that equal it come before (`copy_numbers`); None: no two are equal.
        """
        if copies is None or self.repeats_may_share:
            groups = group_prompts(vectors, self.threshold, self.max_group_size)
            return self.plan_groups(groups, num_steps, rows_per_prompt, vectors)
        groups, numbers = [], np.asarray(copies)
        for number in np.unique(numbers):
            chosen = np.flatnonzero(numbers == number)
            found = group_prompts(vectors[chosen], self.threshold, self.max_group_size)
            groups += [chosen[group].tolist() for group in found]
        return self.plan_groups(sorted(groups), num_steps, rows_per_prompt, vectors)

    def plan_groups(
        self,
        groups: Sequence[Sequence[int]],
        num_steps: int,
        rows_per_prompt: int = 2,
        vectors: Any = None,
    ) -> SharePlan:
        """Plan groups that were made elsewhere, with this threshold and size.

        Args:
            vectors: (N, D) unit vectors; asked for only with rungs, and only those of prompts in groups.

        Raises:
            InputError: rungs without vectors. PlanError: groups that are no partition.
        """
        unguided = part_of_steps(self.unguided, num_steps)
        if self.rungs and vectors is None:
            raise InputError("rungs need the prompts' vectors; plan without rungs, or with Sharing.plan")
        if self.rungs and self.parting == "tree":
            tree = nested_groups(vectors, groups, self.ladder, self.max_group_size)
            return SharePlan.from_tree(tree, num_steps, self.shared_guidance, unguided, rows_per_prompt)
        ratio: float | list[float] = self.share_ratio
        if self.rungs:
            ratio = group_ratios(vectors, groups, self.ladder)
        return SharePlan.from_groups(
            groups, num_steps, ratio, self.shared_guidance, unguided, rows_per_prompt
        )

    # -- noise of each member's own

    @property
    def repeats_may_share(self) -> bool:
        """Whether copies of a prompt may be in one group; that they differ is up to `fresh_noise`."""
        return self.repeats == "share"

    @property
    def sets_members_apart(self) -> bool:
        """Whether a prompt that leaves its group gets any noise of its own, even one that equals another."""
        return self.fresh_noise > 0 or self.handover_noise > 0

    @property
    def renews_all(self) -> bool:
        """Whether every prompt that leaves its group gets noise of its own, and not only those that equal others."""
        return self.handover_noise > 0

    @property
    def renewed_variance(self) -> float:
        """The part of a leaving prompt's noise, by variance, that is drawn anew."""
        return float(self.handover_noise) ** 2

    def noise(self, plan: SharePlan, apart: Sequence[bool]) -> dict[str, Any]:
        """The keywords of `shared_sampling` that say who gets how much noise of its own.

        Args:
            apart: for each prompt of the plan whether it must not come out like another.
        """
        return {
            "fresh_noise": float(self.fresh_noise) if any(apart) else 0.0,
            "fresh_noise_rows": list(apart),
            "handover_noise": float(self.handover_noise) if any(plan.branch_steps) else 0.0,
        }

    # -- for people

    def __str__(self) -> str:
        """The ladder in words."""
        if self.share_ratio == 0:
            return "nothing shared"
        rungs = ", ".join(f"{rung.share_ratio:.0%} from {rung.threshold:g} on" for rung in self.ladder)
        together = ", which part together" if self.parting == "together" and self.rungs else ""
        return f"{rungs}, groups of up to {self.max_group_size}{together}"

    def numbers_in_words(self) -> list[str]:
        """What tells one way of sharing from others in a table, each number with its word."""
        parts = []
        if self.share_ratio:
            parts += [f"share ratio {self.share_ratio:g}", f"threshold {self.threshold:g}"]
            parts += [f"{ratio:g} from {threshold:g} on" for threshold, ratio in self.rungs]
            parts += ["groups part as a whole"] if self.rungs and self.parting == "together" else []
        if self.unguided:
            parts += [f"first {self.unguided:.0%} unguided"]
        if self.handover_noise:
            parts += [f"noise at the hand-over {self.handover_noise:g}"]
        return parts


CAUTIOUS: Layer = {"threshold": 0.9, "share_ratio": 0.15, "max_group_size": 4, "shared_guidance": None}
"""Sharing for a model of which nobody has measured what it bears: only prompts that are nearly the same share, for few
steps and in small groups, and guidance is left out nowhere."""


def for_guidance(layer: Layer) -> dict[str, Any]:
    """A layer without the options that belong to sampling without guidance (`option`'s `for_unguided`)."""
    left_out = {each.name for each in fields(Sharing) if each.metadata["for_unguided"]}
    return {name: value for name, value in layer.items() if name not in left_out}


def _rungs(layer: Layer, where: str) -> tuple[tuple[float, float], ...]:
    rungs, at = layer["rungs"], f"{where}: " if where else ""
    pairs = isinstance(rungs, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(type(n) in (int, float) for n in pair)
        for pair in rungs
    )
    if not pairs or "threshold" not in layer or "share_ratio" not in layer:
        raise InputError(
            f"{at}`rungs` should be pairs [threshold, share ratio], beside a `threshold` and a `share_ratio`, which "
            f"are the first rung; got {rungs!r}"
        )
    try:
        ladder([(layer["threshold"], layer["share_ratio"]), *rungs])
    except InputError as error:
        raise InputError(f"{at}{error}") from error
    return tuple((float(threshold), float(ratio)) for threshold, ratio in rungs)
