"""`sagediff plan`: groups, branch points, evaluations and saving, without the denoiser."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from sagediff.cli.scale import ScaleOptions, plan_at_scale
from sagediff.cli.settings import RunSettings, quiet_libraries
from sagediff.pipelines.loading import load_for_planning
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.plan_prompts import default_guidance, plan_prompts
from sagediff.scale.disk_groups import GROUPS


def run_plan(
    prompts: list[str], settings: RunSettings, as_json: bool, scale: ScaleOptions | None = None
) -> None:
    """Print the plan; with `scale` the groups stay in its folder, and the figures alone are printed."""
    quiet_libraries()
    pipe, denoiser_class = load_for_planning(
        settings.model, scheduler=settings.scheduler, text_encoders=settings.encoder is None
    )
    guidance = default_guidance(type(pipe)) if settings.guidance_scale is None else settings.guidance_scale
    if scale is not None:
        plan = plan_at_scale(prompts, settings, scale, pipe, denoiser_class, guidance)
        figures = plan.summary() | {
            "threshold": settings.policy.threshold,
            "groups_file": str(scale.work / GROUPS),
        }
        print(
            json.dumps(figures, indent=2)
            if as_json
            else f"{plan_title(plan)}; the groups are in {scale.work}"
        )
        return
    plan = plan_prompts(
        prompts, settings.policy, pipe, denoiser_class, settings.num_steps, guidance, encoder=settings.encoder
    )
    if as_json:
        print(json.dumps(plan_record(plan, prompts, settings.policy.threshold), ensure_ascii=False, indent=2))
    else:
        Console().print(plan_table(plan, prompts))


def plan_title(plan: SharePlan) -> str:
    return (
        f"{plan.num_prompts} prompts in {len(plan.groups)} groups: {plan.evaluations} evaluations instead of "
        f"{plan.evaluations_independent} ({plan.cost_saving:.1%} saved)"
    )


def plan_record(plan: SharePlan, prompts: list[str], threshold: float) -> dict[str, object]:
    """The summary, and for each group its prompts, branch step and evaluations."""
    groups = [
        {
            "prompts": group,
            "texts": [prompts[i] for i in group],
            "branch_step": max(plan.branch_steps[i] for i in group),
            "evaluations": round(float(plan.prompt_evaluations[group].sum()), 6),
        }
        for group in plan.groups
    ]
    return plan.summary() | {"threshold": threshold, "groups": groups}


def plan_table(plan: SharePlan, prompts: list[str]) -> Table:
    table = Table(title=plan_title(plan), title_justify="left")
    table.add_column("group", justify="right")
    table.add_column("branch step", justify="right")
    table.add_column("prompts")
    for number, group in enumerate(plan.groups):
        branch = max(plan.branch_steps[i] for i in group)
        table.add_row(str(number), f"{branch} of {plan.num_steps}", "\n".join(prompts[i] for i in group))
    return table
