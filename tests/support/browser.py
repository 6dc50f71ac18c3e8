"""The console in Debian's Chromium, driven by Playwright. `make console browser` gets what it needs; without it, tests are skipped.

Playwright keeps an event loop running in the thread, so tests that use it call nothing that runs one of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from shoal.gateway.endpoints import console
from tests.support.cluster import BOUND

PACKAGES = Path(__file__).parents[2] / "console" / "node_modules"
PAGES = ("cluster", "chat", "timeline", "events", "join", "keys", "models", "connect")
PHONE = (360, 740)


def needed() -> str:
    """What is missing; empty: nothing is."""
    if shutil.which("chromium") is None:
        return "there is no Chromium: make browser"
    if not console.built() or not PACKAGES.is_dir():
        return "the console was not built: make console"
    return ""


def require() -> None:
    """Skips the test where something is missing, or fails it where nothing may be."""
    if missing := needed():
        (pytest.fail if os.environ.get("SHOAL_REQUIRE_BROWSER") else pytest.skip)(missing)


@contextmanager
def chromium() -> Iterator[Browser]:
    require()
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    expect.set_options(timeout=BOUND * 1000)  # five seconds are as long as the pages' own pauses between looks
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=[*flags, "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """Opens pages of one server. What they must never do is kept, and looked at by `check`."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser, self.url = browser, url
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.expected: list[str] = []
        """Words of errors that a test provokes."""

    def open(
        self, page: str = "cluster", *, scheme: Literal["light", "dark"] = "light", size: tuple[int, int] = (1280, 860), **more: Any
    ) -> Page:
        """more: of Playwright's context."""
        width, height = size
        context = self._browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": height}, reduced_motion="reduce", accept_downloads=True, **more
        )
        context.set_default_timeout(BOUND * 1000)
        made = context.new_page()
        made.on("console", self._said)
        made.on("pageerror", lambda error: self.errors.append(str(error)))
        made.on("request", self._asked)
        made.goto(f"{self.url}/console/#/{page}")
        made.locator("main h1").wait_for()
        return made

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _asked(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in ("data", "blob") and f"{url.scheme}://{url.netloc}" != self.url:
            self.foreign.append(request.url)

    def check(self) -> None:
        assert not self.foreign, f"other servers were asked: {self.foreign}"
        unexpected = [error for error in self.errors if not any(words in error for words in self.expected)]
        assert not unexpected, unexpected


def shows(page: Page, within: str, figure: str) -> str:
    """The text of a figure, by the name that the API has for it."""
    return (page.locator(within).locator(f'[data-figure="{figure}"]').first.text_content() or "").strip()


def chats(page: Page) -> list[dict[str, Any]]:
    """What the browser keeps of chats."""
    return page.evaluate(
        """() => new Promise(done => {
            indexedDB.open("shoal", 1).onsuccess = ({ target: { result: base } }) =>
                base.transaction("conversations").objectStore("conversations").getAll().onsuccess = ({ target }) => done(target.result);
        })"""
    )


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong."""
    page.evaluate((PACKAGES / "axe-core" / "axe.min.js").read_text())
    found: dict[str, Any] = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


def overflow(page: Page) -> list[str]:
    """Elements that stick out of the page at its right edge, but for what scrolls by itself."""
    return page.evaluate(
        """() => [...document.querySelectorAll("main *, header *")].filter(element => {
            if (element.closest(".scroll, .virtual, pre, .offscreen, [hidden], svg, .u-wrap, .segments, .messages, .day")) return false;
            const box = element.getBoundingClientRect();
            return box.width > 0 && box.right > document.documentElement.clientWidth + 1;
        }).map(element => element.outerHTML.slice(0, 120))"""
    )


def focused(page: Page) -> str:
    """What has the focus, as a screen reader would say it."""
    return page.evaluate(
        "() => { const e = document.activeElement; return (e.getAttribute('aria-label') || e.textContent || e.tagName).trim().slice(0, 80); }"
    )


def tab_to(page: Page, name: str, most: int = 80) -> None:
    """Presses Tab until what is called so has the focus."""
    met: Sequence[str] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        met = [*met, focused(page)]
        if met[-1] == name:
            return
    raise AssertionError(f"Tab never came to {name!r}, but to {met}")
