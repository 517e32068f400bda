"""`sagediff plan`: groups, branch points, evaluations and saving, without the denoiser."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from sagediff.cli import options
from sagediff.cli.job_options import ScaleOptions
from sagediff.cli.terminal import print_json
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve
from sagediff.plan.share_plan import SharePlan
from sagediff.printable import printable
from sagediff.prompts.prompt_files import gather_prompts

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
    """Show how prompts would be grouped and what that saves, without loading the denoiser."""
    texts = gather_prompts(prompts, prompt_file)
    settings = resolve(model, sampling, options.named(sharing), policy)
    from rich.console import Console

    from sagediff.distributed.cluster import usable_cores
    from sagediff.pipelines.content import embedding_source
    from sagediff.pipelines.loading import load_for_planning
    from sagediff.plan.compatibility import copy_numbers
    from sagediff.progress import stage_bars
    from sagediff.prompts.embeddings import text_encoder
    from sagediff.sampling.plan_prompts import default_guidance, plan_prompts
    from sagediff.sampling.reading import read_prompts
    from sagediff.scale.cover import CoverOptions
    from sagediff.scale.disk_groups import GROUPS, groups_at_scale

    steps, encoder = settings.sampling.num_inference_steps, settings.sampling.encoder
    scale_named = settings.sampling.guidance_scale
    chosen, groups = settings.sharing, None
    pipe, denoiser = load_for_planning(
        settings.model.name, scheduler=settings.model.scheduler, text_encoders=encoder is None
    )
    guidance = default_guidance(type(pipe)) if scale_named is None else scale_named
    reading = read_prompts(pipe, texts)
    if scale.work is not None:
        copies = None if chosen.repeats_may_share else copy_numbers(reading.keys)
        cover = CoverOptions(chosen.threshold, chosen.max_group_size, jobs=scale.jobs or usable_cores())
        with stage_bars() as show:
            groups = groups_at_scale(
                texts, text_encoder(pipe, encoder), scale.work, cover,
                source=embedding_source(settings), copies=copies, on_progress=show,
            )  # fmt: skip
    found = plan_prompts(
        texts, chosen, pipe, denoiser, steps, guidance, encoder=encoder, groups=groups, read=reading.keys
    )
    if warning := reading.warning():
        print(f"warning: {warning}", file=sys.stderr)
    if scale.work is not None:  # the groups stay in its folder, the figures alone are printed
        figures = found.summary() | {"threshold": chosen.threshold, "groups_file": str(scale.work / GROUPS)}
        words = f"{found.title}; the groups are in {scale.work}"
        if as_json:
            print_json(figures, indent=2)
        else:
            print(printable(words))
    elif as_json:
        print_json(plan_record(found, texts, chosen.threshold), indent=2)
    else:
        Console().print(plan_table(found, texts))


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
    from rich.text import Text

    table = Table(title=plan.title, title_justify="left")
    table.add_column("group", justify="right")
    table.add_column("branch step", justify="right")
    table.add_column("prompts")
    for number, group in enumerate(plan.groups):
        branch = max(plan.branch_steps[i] for i in group)
        shown = Text(
            "\n".join(printable(prompts[i]) for i in group)
        )  # no markup: prompts may hold [brackets]
        table.add_row(str(number), f"{branch} of {plan.num_steps}", shown)
    return table
