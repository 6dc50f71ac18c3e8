"""The console in a browser, against a real cluster of two nodes: what it shows is what the API says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support import console_figures as expected
from tests.support.browser import PACKAGES, PAGES, Visitor, chats, require
from tests.support.cluster import MODEL, Cluster, served, until
from tests.support.console_figures import figures
from tests.support.console_format import duration, short, size

pytestmark = [pytest.mark.slow, pytest.mark.real]

QUESTION = "Name three rivers in Europe."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require()
    with served(tmp_path_factory.mktemp("cluster"), 2) as made:
        yield made


@pytest.fixture
def visitor(browser: Browser, made: Cluster) -> Iterator[Visitor]:
    visitor = Visitor(browser, made.url)
    yield visitor
    for context in browser.contexts:
        context.close()
    visitor.check()


def api(made: Cluster, path: str) -> Any:
    answer = made.http.get(f"/operator/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")
    page.locator(".answer-figures").last.wait_for()


def settle(page: Page, tokens: int) -> None:
    """Settings with which an answer is always the same."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill(str(tokens))
    page.get_by_role("button", name="Settings").click()


def plain(made: Cluster, tokens: int) -> str:
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": tokens, "temperature": 0}
    return made.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]


def words(text: str | None) -> list[str]:
    """Without digits, some of which Markdown takes for a list's."""
    return re.findall(r"[^\W\d]+", text or "")


def test_the_cluster_is_shown_as_the_api_has_it(visitor: Visitor, made: Cluster) -> None:
    made.complete("Hello", 8)
    made.until_idle()
    page = visitor.open()

    def wanted() -> list[str]:
        return expected.cluster_page(api(made, "cluster"), {})

    # What is shown may be half a second old: memory and the time since the start change meanwhile.
    until(lambda: figures(page) == wanted(), lambda: f"{figures(page)}\nis not\n{wanted()}")
    view = api(made, "cluster")
    expect(page.locator('[data-figure="model"]')).to_have_text(f"{view['model']['layers']} of {MODEL}, {size(view['model']['weights'])}")
    expect(page.locator("tr[data-stage]")).to_have_count(2)
    expect(page.locator(".state-line")).to_contain_text("serving")


def test_a_chat_says_what_the_api_says(visitor: Visitor, made: Cluster) -> None:
    page = visitor.open("chat")
    settle(page, 24)
    ask(page, QUESTION)
    said = plain(made, 24)
    assert words(page.locator(".answer .markdown").text_content()) == words(said)
    request = (page.locator(".answer-figures a").get_attribute("href") or "").rpartition("/")[2]
    (listed,) = [each for each in api(made, "requests")["requests"] if each["id"] == request]
    shown = page.locator(".answer-figures").text_content() or ""
    assert shown.startswith(f"{listed['generated']} tokens · ") and f" · prompt {listed['prompt_tokens']}" in shown
    # The page asks before the head hears it, and reads each token after the head has it.
    (kept,) = chats(page)
    waited, rate = (kept["messages"][1]["figures"][name] for name in ("first", "rate"))
    assert f"{short(rate)} tokens/s · first after {duration(waited)}" in shown
    first, more = listed["first"] - listed["began"], listed["generated"] - 1
    assert waited >= first and waited + more / rate >= first + more / listed["tokens_per_second"]
    page.get_by_role("button", name="Regenerate").click()
    page.locator(".answer-figures").wait_for()
    assert words(page.locator(".answer .markdown").text_content()) == words(said)
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Your message").fill("Say hello.")
    page.get_by_role("button", name="Send again").click()
    page.locator(".answer-figures").wait_for()
    expect(page.locator(".message")).to_have_count(2)
    expect(page.locator(".question")).to_contain_text("Say hello.")


def test_an_answer_is_stopped_and_its_request_ends(visitor: Visitor, made: Cluster) -> None:
    page = visitor.open("chat")
    settle(page, 4000)
    page.get_by_role("textbox", name="Message").fill("Count from one to a thousand, in words.")
    page.keyboard.press("Enter")
    page.locator(".answer .markdown").wait_for()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer-figures")).to_contain_text("stopped")
    made.until_idle()
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_chats_are_kept_renamed_taken_along_and_deleted(visitor: Visitor) -> None:
    page = visitor.open("chat")
    settle(page, 8)
    ask(page, QUESTION)
    said = page.locator(".answer .markdown").text_content()
    page.reload()
    page.get_by_role("button", name="Chats").click()
    page.locator(".chats").get_by_role("button", name=QUESTION).first.click()
    expect(page.locator(".answer .markdown")).to_have_text(said or "")
    page.get_by_role("button", name="Chats").click()
    page.get_by_role("button", name=f"Rename {QUESTION}").click()
    page.get_by_label("Title").fill("Rivers")
    page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Export Rivers").click()
    kept = downloading.value.path().read_text()
    assert kept.startswith("# Rivers\n") and QUESTION in kept and downloading.value.suggested_filename == "Rivers.md"
    page.get_by_role("button", name="Delete Rivers").click()
    page.get_by_role("button", name="Delete it").click()
    page.reload()
    page.get_by_role("button", name="Chats").click()
    expect(page.locator(".chats")).to_contain_text("There are none yet")


def test_probabilities_are_those_of_the_api(visitor: Visitor, made: Cluster) -> None:
    page = visitor.open("chat")
    settle(page, 6)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Ask for the probabilities").check()
    ask(page, QUESTION)
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    scored = made.http.post("/v1/chat/completions", json=body).json()["choices"][0]["logprobs"]["content"]
    page.get_by_role("button", name="Probabilities").click()
    expect(page.locator(".tokens span")).to_have_count(len(scored))
    page.locator(".tokens").focus()
    for i, token in enumerate(scored):
        page.keyboard.press("ArrowRight")
        shown = page.locator(".token-map tbody tr")
        expect(page.locator(".token-map caption")).to_have_text(f"Token {i + 1}")
        logprobs = [float(text) for text in shown.locator("td:last-child").all_text_contents()]
        assert logprobs == [round(top["logprob"], 3) for top in token["top_logprobs"]]  # greedy: the first is the one that was taken


def test_a_timeline_has_every_step_with_the_apis_figures(visitor: Visitor, made: Cluster) -> None:
    answer = made.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12})
    request = answer.headers["X-Request-Id"]
    until(lambda: api(made, f"requests/{request}/timeline")["request"]["ended"])
    timeline = api(made, f"requests/{request}/timeline")
    page = visitor.open("timeline")
    page.get_by_role("link", name=request).click()
    expect(page.locator('[data-figure="steps"] b')).to_have_text(str(len(timeline["steps"])))
    expect(page.locator('[data-figure="generated"] b')).to_have_text(str(timeline["request"]["generated"]))
    expect(page.locator('[data-figure="state"] b')).to_have_text("ended")
    picture = page.get_by_role("application")
    assert int(picture.get_attribute("data-bars") or 0) > 5 * len(timeline["steps"])
    view, requests = api(made, "cluster"), api(made, "requests")["requests"]
    for i, step in enumerate(timeline["steps"]):
        page.get_by_role("button", name="Next step").click()
        expect(page.locator(".step-table")).to_have_attribute("data-step", str(step["number"]))
        assert figures(page) == expected.timeline_page(view, timeline, requests, i)
    assert sum(step["tokens"] for step in timeline["steps"]) == timeline["request"]["generated"]


def test_events_are_those_of_the_api(visitor: Visitor, made: Cluster) -> None:
    page = visitor.open("events")
    until(lambda: page.locator("[data-event]").count() == len(api(made, "events")["events"]))
    events = api(made, "events")["events"]
    rows = [line for event in reversed(events) for line in expected.event_row(event)]
    assert figures(page)[-len(rows) :] == rows
    expect(page.locator("[data-series]")).to_have_count(4)
    expect(page.locator("[data-series] canvas")).to_have_count(4)


def test_a_machine_is_invited_with_a_real_code(visitor: Visitor, made: Cluster) -> None:
    page = visitor.open("join")
    page.get_by_role("button", name="Make a code").click()
    line = page.get_by_label("the line for Linux", exact=True)
    expect(line).to_contain_text(f"shoal join 127.0.0.1:{made.control_port}")


def test_the_model_is_listed_as_served_and_a_request_works_from_here(visitor: Visitor, made: Cluster) -> None:
    page = visitor.open("models")
    row = page.locator(f'[data-model="{MODEL}"]')
    expect(row).to_contain_text("served")
    expect(row).to_contain_text("fits")
    assert figures(page) == expected.models_page(api(made, "cluster"), api(made, "models"))
    page.goto(f"{visitor.url}/console/#/connect")
    expect(page.get_by_label("the base URL", exact=True)).to_have_text(f"{made.url}/v1")
    expect(page.get_by_label("the lines for curl", exact=True)).to_contain_text(MODEL)
    curl = page.get_by_label("the lines for curl", exact=True).text_content() or ""
    done = subprocess.run(["bash", "-c", curl.replace("curl -N", "curl -sSN --noproxy '*'")], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("data: [DONE]"), done.stdout
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_label("What came")).to_contain_text("data: [DONE]")


def test_every_screen_opens(visitor: Visitor) -> None:
    page = visitor.open()
    for screen in PAGES:
        page.goto(f"{visitor.url}/console/#/{screen}")
        expect(page.locator(f'nav [aria-current="page"][href="#/{screen}"]')).to_be_visible()
        expect(page.locator("main h1")).to_be_visible()
        expect(page.locator("main .failed")).to_have_count(0)


def test_a_node_is_killed_while_its_timeline_is_open(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path, 2) as made:
        visitor = Visitor(browser, made.url)
        page = visitor.open("chat")
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Most tokens").fill("1500")
        page.get_by_role("textbox", name="Message").fill("Write a very long story about a sailor.")
        page.keyboard.press("Enter")
        page.locator(".answer .markdown").wait_for()
        (request,) = [each["id"] for each in api(made, "requests")["requests"]]
        watching = visitor.open(f"timeline/{request}")
        watching.wait_for_function("() => Number(document.querySelector('[data-figure=steps] b')?.textContent) > 5")
        lost = api(made, "cluster")["stages"][-1]["node"]
        victim = made.nodes[int(lost.removeprefix("n"))]
        for process in [*psutil.Process(victim.popen.pid).children(recursive=True), psutil.Process(victim.popen.pid)]:
            process.send_signal(signal.SIGKILL)
        told = watching.locator(".recoveries li")
        told.wait_for()
        until(lambda: "not over yet" not in (told.text_content() or "not over yet"), made.story)
        (recovery,) = api(made, f"requests/{request}/timeline")["recoveries"]
        assert recovery["node"] == lost and recovery["ended"] > recovery["at"]
        expect(told).to_have_text(expected.recovery(recovery))
        before = int(watching.locator('[data-figure="generated"] b').text_content() or 0)
        watching.wait_for_function(f"() => Number(document.querySelector('[data-figure=generated] b').textContent) > {before + 10}")
        assert api(made, f"requests/{request}/timeline")["request"]["state"] == "running"
        watching.goto(f"{made.url}/console/#/events")
        expect(watching.locator(".event", has_text=lost).filter(has=watching.locator(".kind", has_text="lost"))).to_have_count(1)
        watching.goto(f"{made.url}/console/#/cluster")
        expect(watching.locator("tr[data-stage]")).to_have_count(1)
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".answer .failed")).to_have_count(0)
        visitor.check()
        for context in browser.contexts:
            context.close()


def test_what_the_console_computes() -> None:
    """Its own unit tests."""
    require()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # Node.js comes with the tests
    done = subprocess.run(["npm", "test", "--silent"], cwd=PACKAGES.parent, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
