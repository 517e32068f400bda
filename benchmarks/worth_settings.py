"""What `worth_of_sharing.py` compares: the settings of each part, from budgets and what a small search found. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sagediff.evaluation.grid import AFTER, Setting, Weights
from sagediff.evaluation.summary import Row
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing

PlanOf = Callable[[Sharing, int, bool], SharePlan]
"""(sharing, steps, whether there is guidance) to the plan of the captions measured."""
MOST_STEPS = 60


@dataclass(frozen=True)
class World:
    """What differs between the built-in models.

    Attributes:
        threshold, max_group_size: of the groups.
        guidance: scale where there is guidance.
        solvers: searched for part a; None is the model's own.
    """

    threshold: float
    max_group_size: int
    guidance: float
    solvers: tuple[str | None, ...]


WORLDS = {
    "demo": World(0.35, 8, 4.0, (None, "dpm++-beta", "unipc")),
    "emoji": World(0.7, 8, 4.0, (None, "dpm++-sde", "unipc")),
}


def setting(
    world: World, part: str, weights: Weights, steps: int, ratio: float, unguided: float = 0.0,
    guided: bool = True, noise: float = 0.0, solver: str | None = None,
) -> Setting:  # fmt: skip
    """One way of sampling; `part` begins its method's name."""
    sharing = Sharing(
        world.threshold, ratio, world.max_group_size, shared_guidance=1.0 if ratio else None,
        unguided=unguided if guided else 1.0, handover_noise=noise if ratio else 0.0,
    )  # fmt: skip
    way = "shared" if ratio else "independent"
    return Setting(
        f"{part}: {way}{AFTER[weights]}", weights, steps, sharing, world.guidance if guided else 1.0, solver
    )


def paper_candidates(world: World, steps: int = 20, ratio: float = 0.4) -> list[Setting]:
    """Part a: 40 % shared, standard fine-tuning and SAGE training with each solver, guided and not."""
    return [
        setting(world, "a", weights, steps, ratio, guided=guided, noise=noise, solver=solver)
        for weights in ("standard", "sage")
        for solver in world.solvers
        for guided, noise in ((True, 0.0), (False, 0.0), (False, 1.0))
    ]


def frontier_candidates(world: World, plan_of: PlanOf, budgets: Sequence[int]) -> dict[int, list[Setting]]:
    """Part c: for each budget of evaluations per image the settings of any weights that come nearest to it."""
    ways: list[tuple[Weights, float]] = [(weights, 0.0) for weights in ("base", "standard", "sage")]
    ways += [(weights, ratio) for weights in ("base", "sage") for ratio in (0.25, 0.5)]
    found: dict[int, list[Setting]] = {}
    for budget in budgets:
        for weights, ratio in ways:
            for guided, unguided in ((False, 1.0), (True, 0.5), (True, 0.0)):
                noise = 1.0 if weights == "sage" and not guided else 0.0
                if ratio > unguided and guided and unguided:
                    continue  # guidance is off while sharing anyway
                made = within(
                    setting(world, "c", weights, 1, ratio, unguided, guided, noise), plan_of, budget
                )
                if made is not None:
                    found.setdefault(budget, []).append(made)
    return found


def within(one: Setting, plan_of: PlanOf, budget: float) -> Setting | None:
    """The setting with as many steps as the budget allows; None where not even two are."""
    best = None
    for steps in range(2, MOST_STEPS + 1):
        plan = plan_of(one.sharing, steps, one.guidance_scale != 1.0)
        if plan.evaluations <= budget * plan.num_prompts * 1.02:
            best = replace(one, num_steps=steps)
        elif plan.evaluations > budget * plan.num_prompts * 1.5:
            break
    return best


def winners(rows: Sequence[Row], shared: bool, count: int = 1) -> list[Setting]:
    """The settings of least Frechet distance among those that share, or do not."""
    mine = [row for row in rows if (row.setting.sharing.share_ratio > 0) is shared]
    mine.sort(key=lambda row: row.figures["frechet"].mean)
    return [row.setting for row in mine[:count]]


def worth(world: World, plan_of: PlanOf, steps: int, least: Sequence[float] = (0.255, 0.4)) -> list[Setting]:
    """Part b: the trained weights without guidance, independent and with the least ratios that save so much."""
    ratios = [0.0]
    for saving in least:
        for shared in range(1, steps):
            one = setting(world, "b", "sage", steps, shared / steps, guided=False, noise=1.0)
            if plan_of(one.sharing, steps, False).sharing_saving >= saving:
                ratios.append(shared / steps)
                break
    return [setting(world, "b", "sage", steps, ratio, guided=False, noise=1.0) for ratio in ratios]


def by_likeness(fixed: Setting, policies: dict[str, Sharing]) -> list[Setting]:
    """Part d: a fixed split, and policies of other kinds in its place."""
    return [
        replace(fixed, method=f"d: {name}", sharing=sharing)
        for name, sharing in {"fixed": fixed.sharing, **policies}.items()
    ]


def ablation(world: World) -> list[Setting]:
    """How weights of each variant of the training are sampled."""
    return [
        setting(world, "ablation", "sage", 8, 0.5, guided=False, noise=1.0),
        setting(world, "ablation", "sage", 6, 0.0, guided=False),
    ]
