"""The short table before a run, the same after it, in aligned lines of plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sagediff.cli.telling.told_groups import size_words
from sagediff.plan.cost_parts import CostParts
from sagediff.plan.share_plan import SharePlan
from sagediff.printable import printable


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and texts in two columns; nothing in them moves a cursor."""
    rows = list(rows)
    start = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{start}}{printable(text)}" for name, text in rows)


def plan_rows(plan: SharePlan, what: str = "images") -> list[tuple[str, str]]:
    """What a plan makes and costs.

    Args:
        what: "images" or "videos".
    """
    parts = CostParts.of(plan)
    by = [
        f"{rows:,} by {cause} ({part:.1%})"
        for rows, part, cause in (
            (parts.saved_by_sharing, plan.sharing_saving, "sharing"),
            (parts.saved_by_guidance, plan.guidance_saving, "leaving guidance out"),
        )
        if rows
    ]
    return [
        (what, f"{plan.num_prompts:,}: {size_words(plan)}"),
        (
            "evaluations",
            f"{plan.evaluations:,} of {plan.evaluations_independent:,}: {parts.shared:,} shared, {parts.own:,} own, "
            f"{parts.guidance:,} for guidance",
        ),
        ("saving", f"{plan.cost_saving:.1%} saved{': ' + ', '.join(by) if by else ''}"),
    ]


def before(plan: SharePlan, done: int, where: Path, what: str = "images") -> str:
    """The table before a run.

    Args:
        done: images that are there already.
        where: folder that is written.
        what: "images" or "videos".
    """
    rows = plan_rows(plan, what)
    if done:
        rows.append(("there already", f"{done:,} {what}"))
    rows += [("time", "told once two steps are measured")] * (done < plan.num_prompts)
    rows.append(("written to", str(where)))
    return table(rows)


def after(
    plan: SharePlan,
    made: int,
    evaluations: int,
    seconds: tuple[float, float],
    where: str,
    advice: Sequence[tuple[str, str]] = (),
    what: str = "images",
) -> str:
    """The same table with what came out.

    Args:
        made: images of this run.
        evaluations: denoiser rows that it ran.
        seconds: of loading and planning, and of sampling and writing.
        where: what lies where.
        advice: further rows.
        what: "images" or "videos".
    """
    (_, counts), costs, saved = plan_rows(plan, what)
    loading, sampling = seconds
    rows = [(what, f"{made:,} made, {counts}"), costs]
    if evaluations != plan.evaluations:
        rows.append(("evaluated now", f"{evaluations:,}"))
    rate = f", {60 * made / sampling:,.1f} {what} per minute" if made and sampling > 0 else ""
    rows += [
        saved,
        ("time", f"{duration(sampling)} for the {what}{rate}; {duration(loading)} before them"),
        ("written to", where),
        *advice,
    ]
    return table(rows)


def duration(seconds: float) -> str:
    """In words: "0.4 s", "48 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"
