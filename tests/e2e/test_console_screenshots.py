"""The pictures of docs/console.md: `make screenshots` takes them, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from shoal.text.reasoning import THINK
from tests.support.browser import PHONE, Visitor, chromium
from tests.support.engine import FakeEngine, says
from tests.support.operator import MODEL, furnished
from tests.support.served_console import served_console

pytestmark = [pytest.mark.slow, pytest.mark.skipif("SHOAL_SCREENSHOTS" not in os.environ, reason="make screenshots takes them")]

ANSWER = (
    "<think>They want one that is easy to read.</think>Sort by length, then by the word itself:\n\n```python\ndef by_length(words):\n"
    '    """Shortest first."""\n    return sorted(words, key=lambda word: (len(word), word))\n```\n\n'
    "- `sorted` is stable, so equal words keep their order.\n- It runs in *O(n log n)*.\n"
)


def taken(page: Page, name: str) -> None:
    page.mouse.move(0, 0)
    page.evaluate("document.fonts.ready")
    page.wait_for_timeout(400)  # for what glides
    page.screenshot(path=Path(os.environ["SHOAL_SCREENSHOTS"]) / f"console-{name}.png")


def test_pictures_for_the_docs(tmp_path: Path) -> None:
    engine = FakeEngine(says(ANSWER), reasoning=THINK, longest=100_000)
    engine.name = MODEL.name
    with chromium() as browser, served_console(tmp_path, furnished(), engine) as url:
        visitor = Visitor(browser, url)
        page = visitor.open(size=(1180, 800))
        expect(page.locator("tr[data-machine]")).to_have_count(3)
        taken(page, "cluster")
        page = visitor.open("timeline/chatcmpl-4f7e21", size=(1180, 640), scheme="dark")
        page.get_by_role("button", name="All").click()
        page.mouse.move(775, 340)  # where a node is lost
        page.mouse.wheel(0, -900)
        taken(page, "timeline")
        page = visitor.open("chat", size=(1180, 640))
        page.get_by_role("textbox", name="Message").fill("How do I sort words by length in Python?")
        page.keyboard.press("Enter")
        page.locator(".answer-figures").wait_for()
        page.get_by_text("Reasoning", exact=True).click()
        taken(page, "chat")
        page = visitor.open("cluster", size=PHONE, scheme="dark")
        expect(page.locator("tr[data-machine]")).to_have_count(3)
        taken(page, "phone")
        visitor.check()
        for context in browser.contexts:
            context.close()
