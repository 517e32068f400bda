"""`sagediff plan`: groups, branch points, evaluations and saving, without the denoiser."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

from sagediff.cli import options
from sagediff.cli.job_options import ScaleOptions
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve
from sagediff.plan.share_plan import SharePlan

if TYPE_CHECKING:
    from rich.table import Table


def plan(
    *prompts: options.Prompts,
    prompt_file: options.PromptFile = None,
    model: options.Model = ModelOptions(),  # noqa: B008 - frozen, as the others
    sampling: options.Sampling = SamplingOptions(),  # noqa: B008
    sharing: options.SharingOptions = None,
    policy: options.Policy = None,
    scale: Annotated[ScaleOptions, options.flattened("Scale")] = ScaleOptions(),  # noqa: B008
    as_json: Annotated[
        bool, options.of("Output", "--json", help="Print the figures and groups as JSON.")
    ] = False,
) -> None:
    """Show how prompts would be grouped and what that saves, without loading the denoiser.

    Examples:
        sagediff plan --prompts prompts.txt --model path/or/hub-id
        sagediff plan --prompts prompts.txt --threshold 0.7 --json
    """
    texts = options.prompts_of(prompts, prompt_file)
    settings = resolve(model, sampling, options.named(sharing), policy)
    from rich.console import Console

    from sagediff.cli.planning_at_scale import plan_at_scale
    from sagediff.pipelines.loading import load_for_planning, quiet_libraries
    from sagediff.sampling.plan_prompts import default_guidance, plan_prompts
    from sagediff.scale.disk_groups import GROUPS

    quiet_libraries()
    encoder, steps, threshold = (
        settings.sampling.encoder,
        settings.sampling.num_inference_steps,
        settings.sharing.threshold,
    )
    pipe, denoiser = load_for_planning(
        settings.model.name, scheduler=settings.model.scheduler, text_encoders=encoder is None
    )
    scale_given = settings.sampling.guidance_scale
    guidance = default_guidance(type(pipe)) if scale_given is None else scale_given
    if scale.work is not None:  # the groups stay in its folder, the figures alone are printed
        found = plan_at_scale(texts, settings, scale, pipe, denoiser, guidance)
        figures = found.summary() | {"threshold": threshold, "groups_file": str(scale.work / GROUPS)}
        words = f"{plan_title(found)}; the groups are in {scale.work}"
        print(json.dumps(figures, indent=2) if as_json else words)
        return
    found = plan_prompts(texts, settings.sharing, pipe, denoiser, steps, guidance, encoder=encoder)
    if as_json:
        print(json.dumps(plan_record(found, texts, threshold), ensure_ascii=False, indent=2))
    else:
        Console().print(plan_table(found, texts))


def plan_title(plan: SharePlan) -> str:
    """The plan's figures in one line."""
    return (
        f"{plan.num_prompts} prompts in {len(plan.groups)} groups: {plan.evaluations} evaluations instead of "
        f"{plan.evaluations_independent} ({plan.savings})"
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
    """A row for each group."""
    from rich.table import Table

    table = Table(title=plan_title(plan), title_justify="left")
    table.add_column("group", justify="right")
    table.add_column("branch step", justify="right")
    table.add_column("prompts")
    for number, group in enumerate(plan.groups):
        branch = max(plan.branch_steps[i] for i in group)
        table.add_row(str(number), f"{branch} of {plan.num_steps}", "\n".join(prompts[i] for i in group))
    return table
