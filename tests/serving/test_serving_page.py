"""The page at `/`, in a real browser against the real server and the built-in model."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from engines import condition_of, faulty
from servers import SETTINGS, Address, serving

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROMPTS = [f"a large {thing} at the top on a red background" for thing in ("cat", "dog", "lion")]
PATHS = ("/", "/page.css", "/page.js", "/stream.js", "/tree.js", "/icon.svg")
MOST = 30_000  # milliseconds that anything may take on a busy machine


@pytest.fixture(scope="module")
def server(small_demo: Any) -> Iterator[Address]:
    with serving(lambda: small_demo, window_ms=100.0) as address:
        assert address.engine.wait_until_loaded(60) == "ready"
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # a browser started by root, as in containers, cannot have its sandbox
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        launched = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield launched
        launched.close()


class Visit:
    """A page that is open, and what it asked for and complained of."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(MOST)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda said: self.complaints.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def says(self, words: str) -> None:
        """Waits until the live region says it."""
        self.page.get_by_role("status").filter(has_text=re.compile(words)).wait_for()

    def overflows(self) -> bool:
        # not against innerWidth: where something is too wide, a phone zooms out, and innerWidth grows with it
        return bool(
            self.page.evaluate("document.documentElement.scrollWidth") > self.page.viewport_size["width"]
        )


@pytest.fixture
def visit(browser: Any, server: Address) -> Iterator[Visit]:
    opened = Visit(browser, server.url)
    yield opened
    opened.page.context.close()


def ask(visit: Visit, prompts: list[str] = PROMPTS, steps: int = 4) -> None:
    visit.page.get_by_label("Prompts, one per line").fill("\n".join(prompts))
    visit.page.get_by_label("Steps", exact=True).fill(str(steps))
    visit.page.get_by_role("button", name="Make images").click()


def test_prompts_become_images_with_their_groups_saving_and_tree(visit: Visit, server: Address) -> None:
    visit.page.evaluate(
        """() => { window.shown = new Set();
        new MutationObserver(() => document.querySelectorAll('.frame img').forEach((i) => window.shown.add(i.src)))
            .observe(document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ['src']}); }"""
    )
    ask(visit)
    visit.says(r"Done: 3 images, 1 group shared steps, 33 % saved")
    page = visit.page
    for prompt in PROMPTS:
        assert page.get_by_role("img", name=prompt, exact=True).evaluate("image => image.naturalWidth") == 64
    # images on their way were seen too; how many of them depends on how often the browser draws
    assert page.evaluate("window.shown.size") > len(PROMPTS)
    assert page.get_by_text("8 denoiser evaluations instead of 12, for 3 images").is_visible()
    assert page.get_by_text("3 images shared the first 2 of 4 steps.").is_visible()
    tree = page.get_by_role("img", name="Plan as a tree")
    assert tree.get_attribute("aria-label") == (
        "Plan as a tree. Images 1, 2, 3 share the first 2 of 4 steps."
    )
    assert tree.locator(".trunk").count() == 1 and tree.locator(".branch").count() == 3
    assert tree.locator("image").count() == 3


def test_nothing_is_asked_of_anyone_else_and_nothing_is_complained_of(visit: Visit, server: Address) -> None:
    ask(visit, PROMPTS[:1])
    visit.says("Done")
    assert len(visit.asked) > len(PATHS)
    assert all(url.startswith((server.url + "/", "data:")) for url in visit.asked)
    assert visit.complaints == []
    # even if it tried to, the browser would not let it
    refused = visit.page.evaluate("fetch('https://example.com/').then(() => 'sent', () => 'refused')")
    assert refused == "refused" and "Content Security Policy" in " ".join(visit.complaints)


def test_images_that_may_not_share_are_drawn_alone(visit: Visit) -> None:
    visit.page.get_by_label("Share steps").uncheck()
    ask(visit)
    visit.says(r"Done: 3 images, 0 % saved")
    assert visit.page.locator("svg .trunk:visible").count() == 0
    assert visit.page.locator("#tree .branch.alone").count() == 3
    assert visit.page.get_by_role("heading", name="Alone").is_visible()


def test_the_keyboard_alone_is_enough(visit: Visit) -> None:
    page = visit.page
    focused = "document.activeElement.id || document.activeElement.textContent"
    page.get_by_role("button", name="Five animals").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "prompts"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # where the focus is, is seen
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the first example
    assert page.get_by_label("Prompts, one per line").input_value().count("\n") == 4
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate(focused) == "steps"
    page.keyboard.type("2")
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate(focused) == "go"
    page.keyboard.press("Enter")
    visit.says("Done: 5 images")
    page.get_by_label("Prompts, one per line").focus()
    page.keyboard.press("Control+Enter")
    visit.says("5 prompts sent|of 5 images")
    visit.says("Done: 5 images")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_only(browser: Any, server: Address, scheme: str) -> None:
    size = {"width": 360, "height": 740}
    visit = Visit(browser, server.url, viewport=size, color_scheme=scheme, has_touch=True, is_mobile=True)
    assert not visit.overflows()
    ask(visit, [*PROMPTS, "x" * 300])
    visit.says("Done: 4 images")
    assert not visit.overflows()
    ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(map(int, re.findall(r"\d+", ground)[:3])) > 3 * 128
    assert bright == (scheme == "light")
    visit.page.context.close()


def test_cancelling_takes_the_images_out_of_the_queue(browser: Any, small_demo: Any) -> None:
    with serving(lambda: small_demo, window_ms=30_000.0) as server:
        server.engine.wait_until_loaded(60)
        visit = Visit(browser, server.url)
        ask(visit)
        visit.says("3 prompts sent")
        while server.engine.waiting < 3:
            visit.page.wait_for_timeout(20)
        visit.page.get_by_role("button", name="Cancel").focus()
        visit.page.keyboard.press("Enter")
        visit.says("Cancelled")
        while server.engine.waiting:
            visit.page.wait_for_timeout(20)
        assert visit.page.evaluate("document.activeElement.id") == "go"  # not lost with the button
        assert not visit.page.get_by_role("button", name="Cancel").is_visible()
        visit.page.context.close()


def test_members_of_other_requests_are_counted_and_not_shown(browser: Any, small_demo: Any) -> None:
    with serving(lambda: small_demo, window_ms=30_000.0, max_batch=3) as server:
        server.engine.wait_until_loaded(60)
        visit = Visit(browser, server.url)
        ask(visit, PROMPTS[:1])
        while server.engine.waiting < 1:
            visit.page.wait_for_timeout(20)
        server.post(prompt=PROMPTS[1], n=2, num_inference_steps=4)  # closes the window by size
        visit.says("Done: 1 image, 1 group shared steps, 33 % saved")
        assert visit.page.get_by_text(
            "1 image with 2 of other requests shared the first 2 of 4 steps."
        ).count()
        tree = visit.page.get_by_role("img", name="Plan as a tree")
        assert tree.locator(".branch.others").count() == 1 and tree.locator("image").count() == 1
        assert tree.get_attribute("aria-label") == (
            "Plan as a tree. Image 1 and 2 of other requests share the first 2 of 4 steps."
        )
        assert PROMPTS[1] not in visit.page.locator("main").inner_text()
        visit.page.context.close()


def test_a_image_that_fails_is_said_and_the_others_are_shown(visit: Visit, small_demo: Any) -> None:
    culprit = condition_of(small_demo, PROMPTS[1])

    def fault(conditions: Any) -> None:
        if any((row - culprit).abs().max() < 1e-4 for row in conditions):
            raise RuntimeError("not this one")

    visit.page.get_by_label("Share steps").uncheck()
    with faulty(small_demo, fault):
        ask(visit)
        visit.says("Done: 2 images")
    assert visit.page.get_by_role("heading", name="Not made").is_visible()
    assert visit.page.get_by_text("the pipeline failed on this request").is_visible()
    assert visit.page.locator("#groups img").count() == 2


def test_errors_are_said_in_words(visit: Visit) -> None:
    error = visit.page.get_by_role("alert")
    visit.page.get_by_role("button", name="Make images").click()
    assert error.inner_text() == "Write at least one prompt, or choose an example."
    ask(visit, [PROMPTS[0], "x" * 5000])
    error.filter(has_text="Prompt 2 has 5000 characters; at most 4000 are taken").wait_for()
    ask(visit, steps=9)
    error.filter(has_text="must be at most 8, got 9").wait_for()
    visit.page.context.set_offline(True)
    ask(visit)
    error.filter(has_text="The connection to the server was lost").wait_for()
    visit.page.context.set_offline(False)
    ask(visit)
    visit.says("Done")
    assert not error.is_visible()


def test_a_key_is_asked_for_only_if_needed_and_kept_in_the_tab_only(
    browser: Any, server: Address, small_demo: Any
) -> None:
    free = Visit(browser, server.url)
    free.page.get_by_role("button", name="Five animals").wait_for()
    assert not free.page.get_by_label("API key").is_visible()
    free.page.context.close()
    with serving(lambda: small_demo, api_keys=("secret",)) as locked:
        locked.engine.wait_until_loaded(60)
        visit = Visit(browser, locked.url)
        visit.page.get_by_label("API key").fill("wrong")
        visit.page.get_by_role("button", name="Use key").click()
        visit.page.get_by_role("alert").filter(has_text="does not know this key").wait_for()
        visit.page.get_by_label("API key").fill("secret")
        visit.page.keyboard.press("Enter")
        visit.page.get_by_text("model: demo").wait_for()
        ask(visit)
        visit.says("Done: 3 images")
        assert visit.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert not any("secret" in url for url in visit.asked)
        visit.page.context.close()


def test_the_pages_files_need_no_key_and_keep_the_browser_to_this_server(small_demo: Any) -> None:
    with serving(lambda: small_demo, SETTINGS, api_keys=("secret",)) as server:
        for path in PATHS:
            answer = httpx.get(server.url + path)
            assert answer.status_code == 200
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert (
                "http://" not in answer.text.replace("http://www.w3.org/", "")
                and "https://" not in answer.text
            )
        assert httpx.get(server.url + "/v1/models").status_code == 401
