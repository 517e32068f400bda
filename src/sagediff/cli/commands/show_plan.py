"""`sagediff plan`: groups, branch points, evaluations and saving, without the denoiser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sagediff.cli import options
from sagediff.cli.asked_run import asked_run
from sagediff.cli.early_checks import check_page
from sagediff.cli.job_options import ScaleOptions, VideoOptions
from sagediff.cli.terminal import print_json
from sagediff.collector import importing
from sagediff.files.atomic import writing
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions
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
    html: Annotated[
        Path | None, options.of("Output", help="Write a page that lists the groups. [default: none]")
    ] = None,
) -> None:
    """Show how prompts would be grouped and what that saves, without loading the denoiser."""
    asked = read_images(prompts, prompt_file, requested, with_own=False)
    images, settings, guided = asked_run(asked, model, sampling, options.named(sharing), policy, scale.work)
    if html is not None:
        check_page(html)
    with importing():
        from rich.console import Console

        from sagediff.cli.media import check_makes
        from sagediff.cli.planning import advice, messages, plan_images
        from sagediff.cli.row_loras import check_lora_files
        from sagediff.cli.telling.group_page import group_page
        from sagediff.cli.telling.run_words import plan_rows, table
        from sagediff.cli.telling.thresholds import around, curve_table
        from sagediff.denoiser.table import FAMILIES
        from sagediff.pipelines.from_images import begins_from, from_images
        from sagediff.pipelines.loading import load_for_planning
        from sagediff.scale.disk_groups import GROUPS

    check_lora_files(images)
    texts, threshold = images.prompts, settings.sharing.threshold
    pipe, denoiser = load_for_planning(
        settings.model.source,
        scheduler=settings.model.scheduler,
        text_encoders=settings.sampling.encoder is None,
    )
    family = FAMILIES[denoiser].in_pipeline(cls.__name__ for cls in type(pipe).__mro__)
    check_makes(family)
    if family.makes == "images":
        video.check_images()
    pipe = from_images(pipe, begins_from(images.requests))
    planned = plan_images(images, settings, guided, scale, pipe, denoiser)
    found = planned.plan
    for words in messages(images, found, planned.reading):
        print(words, file=sys.stderr)
    if note := settings.note():
        print(f"note: {note}", file=sys.stderr)
    record = found.summary() | {"threshold": threshold, "num_rows": len(images.starts)}
    curve = [] if as_json and html is None else planned.curve(around(threshold))
    if html is not None:
        with writing(html) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(group_page(found, texts, threshold, planned.vectors, curve))
        print(f"page of the groups: {printable(str(html))}", file=sys.stderr)
    if scale.work is not None:  # the groups stay in its folder, the figures alone are printed
        figures = record | {"groups_file": str(scale.work / GROUPS)}
        if as_json:
            print_json(figures, indent=2)
        else:
            print(table([*plan_rows(found, family.makes), ("groups", f"in {scale.work}")]))
    elif as_json:
        print_json(record | {"groups": group_records(found, texts)}, indent=2)
    else:
        Console().print(plan_table(found, texts))
        print(table([*plan_rows(found, family.makes), *advice(planned, texts, threshold)]))
        if len(texts) > 1:
            print(f"\n{curve_table(curve, threshold, settings.sharing.share_ratio)}")


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

    table = Table()
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
