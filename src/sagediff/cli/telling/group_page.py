"""A page that lists the groups of a plan with their prompts: one file, no scripts, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from sagediff.cli.telling.run_words import plan_rows
from sagediff.cli.telling.thresholds import AtThreshold, number
from sagediff.cli.telling.told_groups import Vectors, least_alike
from sagediff.plan.share_plan import SharePlan
from sagediff.printable import printable

MARK = '<meta name="generator" content="sagediff plan">'
_TITLE = 200  # characters of a prompt above its group
_OPEN = 20  # groups that are unfolded at first
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5b6472; --line: #d9dde4; --page: #fff; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaf0; --soft: #a3adbd; --line: #3a414d; --page: #14171c; --card: #1c2027; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
tr[aria-current] td { font-weight: 600; }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
summary { padding: .6rem .9rem; cursor: pointer; overflow-wrap: anywhere; }
summary span { color: var(--soft); display: block; }
ol { margin: 0; padding: 0 .9rem .8rem; list-style: none; }
li { padding: .15rem 0; overflow-wrap: anywhere; }
li b { color: var(--soft); font-weight: 400; margin-right: .5rem; font-variant-numeric: tabular-nums; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
"""


def group_page(
    plan: SharePlan,
    prompts: Sequence[str],
    threshold: float,
    vectors: Vectors | None,
    curve: Sequence[AtThreshold] = (),
) -> Iterator[str]:
    """The page, piece by piece, largest groups first; prompts that are alone are in one list at the end.

    Args:
        vectors: unit vectors of the prompts, (N, D), for the groups' minimum similarities; None leaves them out.
        curve: the figures at other thresholds.
    """
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"{MARK}\n<title>Groups of {plan.num_prompts:,} prompts</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        "<h1>Which prompts share their early steps</h1>\n<dl>\n"
    )
    for name, text in (*plan_rows(plan), ("threshold", number(threshold))):
        yield f"<dt>{_shown(name)}</dt><dd>{_shown(text)}</dd>\n"
    yield "</dl>\n"
    yield from _curve(curve, threshold)
    shared = sorted(
        (group for group in plan.groups if len(group) > 1), key=lambda group: (-len(group), group[0])
    )
    yield "<h2>Groups</h2>\n" if shared else "<p>No prompts share.</p>\n"
    for count, group in enumerate(shared):
        branch = max(plan.branch_steps[i] for i in group)
        about = f"{len(group):,} prompts, together for {branch} of {plan.num_steps} steps"
        if vectors is not None:
            about += f", minimum similarity {least_alike(vectors[group])[0]:.2f}"
        yield from _list(_title(prompts[group[0]]), about, group, prompts, is_open=count < _OPEN)
    alone = [group[0] for group in plan.groups if len(group) == 1]
    if alone:
        yield "<h2>Alone</h2>\n"
        yield from _list(
            "Prompts that share with none", f"{len(alone):,}", alone, prompts, is_open=not shared
        )
    yield "</body>\n</html>\n"


def _curve(curve: Sequence[AtThreshold], used: float) -> Iterator[str]:
    if not curve:
        return
    yield (
        '<h2>Saving against threshold</h2>\n<div class="wide"><table>\n<tr><th>threshold</th><th>groups</th>'
        "<th>alone</th><th>evaluations</th><th>saved by sharing</th><th>saved in all</th></tr>\n"
    )
    for each in curve:
        mark = ' aria-current="true"' if each.threshold == used else ""
        cells = "".join(f"<td>{cell}</td>" for cell in each.cells())
        yield f"<tr{mark}>{cells}</tr>\n"
    yield "</table></div>\n"


def _list(
    title: str, about: str, numbers: Sequence[int], prompts: Sequence[str], *, is_open: bool
) -> Iterator[str]:
    yield f"<details{' open' if is_open else ''}><summary>{title} <span>{about}</span></summary>\n<ol>\n"
    for i in numbers:
        yield f"<li><b>{i}</b>{_shown(prompts[i])}</li>\n"
    yield "</ol></details>\n"


def _title(text: str) -> str:
    return _shown(text if len(text) <= _TITLE else text[: _TITLE - 1] + "…")


def _shown(text: str) -> str:
    """A text of others as HTML: escaped, and nothing in it reorders the line."""
    return escape(printable(text))
