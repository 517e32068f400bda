"""What `generate` and `plan` tell: words on stderr, machines' JSON on stdout, and figures that agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sagediff.cli import main

PROMPTS = [
    "a large cat at the top on a red background",
    "a large dog at the top on a red background",
    "a <b>tiny</b> \u202espaceship",
    "a small rocket at the center on a black background",
]


def test_a_run_tells_what_it_costs_where_it_writes_and_how_long_it_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["generate", *PROMPTS, "--steps", "2", "--threshold", "0.3", "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert said.out.count("\n") == 1 and report == json.loads((out / "report.json").read_text("utf-8"))
    assert report["seconds"] == pytest.approx(report["seconds_loading"] + report["seconds_sampling"])
    assert report["images_per_second"] == pytest.approx(report["images_made"] / report["seconds"])
    assert all(line.isprintable() for line in said.err.splitlines())
    first, last = (said.err.index(words) for words in ("time         told once", "images       4 made"))
    assert first < last
    for words in (
        "images       4: 1 group of 2, 2 alone",
        f"evaluations  {report['evaluations']} of {report['evaluations_independent']}: ",
        f"saving       {report['cost_saving']:.1%} saved: ",
        f"written to   {out}",
        "contact sheet: ",
        "largest      2 prompts: 'a large cat",
        "loosest      similarity 0.",
    ):
        assert words in said.err, said.err
    assert main([*command, "--resume"]) == 0
    said = capsys.readouterr()
    assert "there already  4 images" in said.err and "0 made" in said.err and "told once" not in said.err


def test_plan_shows_saving_against_threshold_and_writes_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "groups.html"
    command = ["plan", *PROMPTS, "--steps", "10", "--threshold", "0.3"]
    assert main([*command, "--html", str(page)]) == 0
    said = capsys.readouterr()
    assert "saving against threshold, at share ratio 0.5" in said.out and "* 0.30" in said.out
    assert str(page) in said.err and "\u202e" not in said.out
    text = page.read_text("utf-8")
    assert "a &lt;b&gt;tiny&lt;/b&gt; \\u202espaceship" in text and 'aria-current="true"><td>0.30' in text
    # a row of the table is what a run at that threshold costs
    assert main(["plan", *PROMPTS, "--steps", "10", "--threshold", "0.5", "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert main([*command[:-1], "0.4"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["0.50"])
    assert row.split()[1:] == [
        str(other["num_groups"]),
        str(sum(len(group["prompts"]) == 1 for group in other["groups"])),
        str(other["evaluations"]),
        f"{other['sharing_saving']:.1%}",
        f"{other['cost_saving']:.1%}",
    ]


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine")
    for target, words in (
        (mine, "holds something else"),
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "g.html", "there is no folder"),
    ):
        assert main(["plan", "a cat", "--html", str(target)]) == 2
        said = capsys.readouterr()
        assert words in said.err and not said.out
    assert mine.read_text() == "<p>mine"
    page = tmp_path / "g.html"
    for _ in range(2):
        assert main(["plan", "a cat", "--steps", "1", "--json", "--html", str(page)]) == 0
        assert json.loads(capsys.readouterr().out)["num_prompts"] == 1
