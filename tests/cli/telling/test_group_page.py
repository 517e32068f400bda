"""The page of a plan's groups: whole, by itself, and whatever prompts hold."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np

from sagediff.cli.telling.group_page import MARK, group_page
from sagediff.cli.telling.thresholds import AtThreshold
from sagediff.plan.share_plan import SharePlan

HOSTILE = [
    "<script>alert(1)</script>",
    "a & b \"quoted\" 'twice'",
    "\u202egod a",
    "x" * 5000,
    "</details><h1>",
    "🐈",
]


class Page(HTMLParser):
    """The tags of a page, and the texts of its list items."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.items: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "onclick")]
        if tag == "li":
            self.items.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "li" in self.open and self.open[-1] == "li":
            self.items[-1] += data


def test_every_prompt_is_listed_once_and_nothing_in_it_is_markup() -> None:
    plan = SharePlan.from_groups([[0, 3], [1, 2, 4], [5]], 10)
    vectors = np.eye(6, dtype=np.float32)
    text = "".join(group_page(plan, HOSTILE, 0.8, vectors, [AtThreshold.of(0.8, plan)]))
    page = Page()
    page.feed(text)
    assert page.open == [] and MARK in text
    assert not page.links and not {"script", "img", "link", "iframe", "base"} & set(page.tags)
    assert page.tags.count("h1") == 1 and page.tags.count("details") == 3
    shown = [text if text != "\u202egod a" else "\\u202egod a" for text in HOSTILE]
    assert page.items == [shown[i] for i in (1, 2, 4, 0, 3, 5)]
    assert "\u202e" not in text and "http" not in text.replace("http-equiv", "")
    assert "minimum similarity 0.00" in text and "prefers-color-scheme: dark" in text
    assert "viewport" in text and "default-src 'none'" in text


def test_a_plan_that_shares_nothing_says_so() -> None:
    text = "".join(group_page(SharePlan.from_groups([[0], [1]], 10), ["a", "b"], 0.8, None))
    assert "No prompts share." in text and "<table>" not in text and "minimum similarity" not in text
