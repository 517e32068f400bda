"""`sagediff plan`: groups, branch points, evaluations and saving, without the denoiser."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from sagediff.cli import options
from sagediff.cli.early_checks import check_settings, check_work
from sagediff.cli.job_options import ScaleOptions, VideoOptions, guided_sharing
from sagediff.cli.libraries import import_libraries
from sagediff.cli.terminal import print_json
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve
from sagediff.plan.share_plan import SharePlan
from sagediff.printable import printable
from sagediff.prompts.image_list import read_images

if TYPE_CHECKING:
    from rich.table import Table


def plan(
    *prompts: options.Prompts,
    prompt_file: options.PromptFile = None,
    requested: options.Requested = options.ShortRequestOptions(),  # noqa: B008 - frozen, as the others
    model: options.Model = ModelOptions(),  # noqa: B008
    sampling: options.Sampling = SamplingOptions(),  # noqa: B008
    sharing: options.SharingOptions = None,
    policy: options.Policy = None,
    video: Annotated[VideoOptions, options.flattened("Sampling")] = VideoOptions(),  # noqa: B008 - changes no cost
    scale: Annotated[ScaleOptions, options.flattened("Scale")] = ScaleOptions(),  # noqa: B008
    as_json: Annotated[
        bool, options.of("Output", "--json", help="Print the figures and groups as JSON.")
    ] = False,
) -> None:
    """Show how prompts would be grouped and what that saves, without loading the denoiser."""
    images = read_images(prompts, prompt_file, requested, with_own=False)
    given = options.named(sharing)
    settings = resolve(model, sampling, given, policy, cautious=True)
    check_settings(settings)
    check_work(scale.work)
    guided = guided_sharing(images, settings, model, sampling, given, policy)
    import_libraries()
    from rich.console import Console

    from sagediff.cli.planning import messages, plan_images
    from sagediff.pipelines.from_images import begins_from, from_images
    from sagediff.pipelines.loading import load_for_planning
    from sagediff.scale.disk_groups import GROUPS

    texts, chosen = images.prompts, settings.sharing
    pipe, denoiser = load_for_planning(
        settings.model.source,
        scheduler=settings.model.scheduler,
        text_encoders=settings.sampling.encoder is None,
    )
    pipe = from_images(pipe, begins_from(images.requests))
    found, reading = plan_images(images, settings, guided, scale, pipe, denoiser)
    for words in messages(images, found, reading):
        print(words, file=sys.stderr)
    if note := settings.note():
        print(f"note: {note}", file=sys.stderr)
    record = found.summary() | {"threshold": chosen.threshold, "num_rows": len(images.starts)}
    if scale.work is not None:  # the groups stay in its folder, the figures alone are printed
        figures = record | {"groups_file": str(scale.work / GROUPS)}
        words = f"{found.title}; the groups are in {scale.work}"
        if as_json:
            print_json(figures, indent=2)
        else:
            print(printable(words))
    elif as_json:
        print_json(record | {"groups": group_records(found, texts)}, indent=2)
    else:
        Console().print(plan_table(found, texts))


def group_records(plan: SharePlan, prompts: list[str]) -> list[dict[str, object]]:
    """For each group its prompts, branch step and evaluations."""
    return [
        {
            "prompts": group,
            "texts": [prompts[i] for i in group],
            "branch_step": max(plan.branch_steps[i] for i in group),
            "evaluations": round(float(plan.prompt_evaluations[group].sum()), 6),
        }
        for group in plan.groups
    ]


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
