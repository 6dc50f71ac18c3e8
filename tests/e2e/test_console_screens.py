"""The console in a browser, against clusters that are made up: large, busy, hostile, seen by a phone, a keyboard, a screen reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import sleep, time
from typing import Literal

import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect

from shoal.gateway.auth.key import KeyRole
from shoal.gateway.auth.key_store import KeyStore
from shoal.observed.cluster import Advice, NodeAction, PlanView
from shoal.observed.event import WARNINGS, EventKind
from shoal.observed.models import ModelHere, ModelsView
from shoal.observed.requests import RequestView, Timeline
from shoal.sizes import human_bytes
from shoal.text.reasoning import THINK
from shoal.text.tools import HERMES
from tests.support.browser import PAGES, PHONE, Visitor, focused, overflow, shows, tab_to, violations
from tests.support.cluster import until
from tests.support.engine import FakeEngine, says
from tests.support.operator import MODEL, FakeOperator, busy_loading, cluster, furnished, history, steps
from tests.support.served_console import served_console

pytestmark = [pytest.mark.slow, pytest.mark.real]

REQUEST = "chatcmpl-4f7e21"
SCREENS = [*PAGES, f"timeline/{REQUEST}"]
ANSWER = "# Cities\n\nA *list*:\n\n- Rome\n- Oslo\n\n```python\ndef add(a, b):\n    return a + b  # sum\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
HOSTILE = '<img src=x onerror="window.injected=1"><script>window.injected=1</script>\'"/`;'


@pytest.fixture
def operator() -> FakeOperator:
    return furnished()


@pytest.fixture
def engine() -> FakeEngine:
    made = FakeEngine(says(ANSWER), tools=HERMES, reasoning=THINK, longest=100_000)
    made.name = MODEL.name
    return made


@pytest.fixture
def visitor(browser: Browser, operator: FakeOperator, engine: FakeEngine, tmp_path: Path) -> Iterator[Visitor]:
    with served_console(tmp_path, operator, engine) as url:
        made = Visitor(browser, url)
        yield made
        for context in browser.contexts:
            context.close()
    made.check()


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")
    page.locator(".answer-figures").last.wait_for()


# Everybody can read it.


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong_on_any_screen(visitor: Visitor, operator: FakeOperator, scheme: Literal["light", "dark"]) -> None:
    operator.view = msgspec.structs.replace(operator.view, attention=[Advice("attention", "studio is silent", "studio")])
    operator.happen(EventKind.REFUSED, "a machine at 192.168.1.99 was not let in: its code has expired")
    page = visitor.open(scheme=scheme)
    for screen in SCREENS:
        page.goto(f"{visitor.url}/console/#/{screen}")
        page.locator("main h1").wait_for()
        if screen == "chat":
            page.get_by_role("button", name="Settings").click()
            page.get_by_label("Ask for the probabilities").check()
            ask(page, "Hello")
            page.get_by_role("button", name="Probabilities").click()
            page.locator(".tokens span").first.click()
        if screen == "join":
            page.get_by_role("button", name="Make a code").click()
            page.locator(".qr").wait_for()
        if screen.startswith("timeline/"):
            page.get_by_role("button", name="Next step").click()
        assert violations(page) == [], screen
    page.goto(f"{visitor.url}/console/#/cluster")
    page.get_by_label("Actions for attic").select_option("drain")
    page.get_by_text("predicted afterwards").wait_for()
    assert violations(page) == []


def test_a_phone_shows_every_screen_without_scrolling_sideways(visitor: Visitor) -> None:
    page = visitor.open(size=PHONE)
    for screen in SCREENS:
        page.goto(f"{visitor.url}/console/#/{screen}")
        page.locator("main h1").wait_for()
        sleep(0.1)  # for what is measured when it is there
        assert overflow(page) == [], screen
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), screen
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("link", name="Keys").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Keys")
    expect(page.get_by_role("link", name="Keys")).to_be_hidden()


def test_a_keyboard_is_enough(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open()
    page.locator("tr[data-machine]").first.wait_for()
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to content"
    page.keyboard.press("Enter")
    assert focused(page) == "Cluster"
    tab_to(page, "Actions for kitchen")
    page.get_by_label("Actions for kitchen").select_option("drain")  # how a select opens is the system's affair
    expect(page.get_by_role("dialog", name="Drain kitchen")).to_be_visible()
    page.get_by_text("predicted afterwards").wait_for()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert focused(page).startswith("Actions for kitchen") and not operator.asked
    page.goto(f"{visitor.url}/console/#/timeline/{REQUEST}")
    picture = page.get_by_role("application")
    expect(page.locator(".step-table")).to_have_attribute("data-step", "240")
    picture.focus()
    for key in "nnp":
        before = page.locator(".step-table").get_attribute("data-step")
        page.keyboard.press(key)
        expect(page.locator(".step-table")).not_to_have_attribute("data-step", before or "")
    page.keyboard.press("Escape")
    expect(page.get_by_text("(the latest)")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("button", name="Follow")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("f")
    expect(page.get_by_role("button", name="Follow")).to_have_attribute("aria-pressed", "true")


def test_the_theme_is_the_systems_until_another_is_chosen(visitor: Visitor) -> None:
    page = visitor.open(scheme="dark")
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "dark"
    page.locator(".theme").get_by_text("light").click()
    assert page.evaluate(theme) == "light"
    page.reload()
    page.locator("main h1").wait_for()
    assert page.evaluate(theme) == "light"
    page.locator(".theme").get_by_text("auto").click()
    assert page.evaluate(theme) == "dark"
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"{theme} === 'light'")


# Nothing that anybody calls anything can inject markup.


def test_no_name_and_no_message_becomes_markup(visitor: Visitor, operator: FakeOperator, engine: FakeEngine) -> None:
    names = [HOSTILE, f"b{HOSTILE}"]
    hostile = furnished(names)
    operator.__dict__.update(hostile.__dict__)
    view = operator.view
    model = msgspec.structs.replace(view.model, name=HOSTILE)
    advice = [Advice("attention", HOSTILE, HOSTILE)]
    operator.view = msgspec.structs.replace(view, model=model, cluster=HOSTILE, reason=HOSTILE, advice=advice, attention=advice)
    operator.happen(EventKind.REFUSED, HOSTILE, HOSTILE, **{HOSTILE: 1.0})
    operator.listed = ModelsView([ModelHere(HOSTILE, HOSTILE, 1, False, None, False, HOSTILE)], [], 1)
    operator.invitation = msgspec.structs.replace(operator.invitation, command=f"shoal join {HOSTILE}", code=HOSTILE[:20])
    operator.timelines[REQUEST] = msgspec.structs.replace(
        operator.timelines[REQUEST], request=msgspec.structs.replace(operator.timelines[REQUEST].request, key=HOSTILE, reason=HOSTILE)
    )
    engine.name = HOSTILE
    engine._script = says(f"{HOSTILE}\n\n[a](javascript:window.injected=1) **{HOSTILE}**\n\n```html\n{HOSTILE}\n```\n")
    page = visitor.open()
    for screen in SCREENS:
        page.goto(f"{visitor.url}/console/#/{screen}")
        page.locator("main h1").wait_for()
        if screen == "chat":
            ask(page, HOSTILE)
        if screen == "keys":
            page.get_by_label("Name").fill(HOSTILE)
            page.get_by_label("Role").select_option("operator")
            page.get_by_role("button", name="Create").click()
            page.get_by_role("dialog").wait_for()
            page.get_by_role("button", name="I have it").click()
            page.get_by_role("dialog").wait_for(state="detached")
        if screen == "join":
            page.get_by_role("button", name="Make a code").click()
            page.locator(".qr").wait_for()
        if screen not in ("connect", "keys"):
            expect(page.locator("main")).to_contain_text(HOSTILE)
        assert page.locator("main img, main iframe, main object, main script").count() == 0
        assert page.evaluate("window.injected") is None
    page.goto(f"{visitor.url}/console/#/cluster")
    page.get_by_label(f"Actions for {HOSTILE}", exact=True).select_option("remove")
    page.get_by_role("button", name="Remove it").click()
    until(lambda: operator.asked == [(HOSTILE, "remove", None)], lambda: str(operator.asked))
    assert page.evaluate("window.injected") is None
    visitor.expected.append("401")


def enter(page: Page, key: str) -> None:
    """The key, where the page asks for one."""
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Use this key").click()
    page.get_by_label("Key", exact=True).wait_for(state="hidden")


# Much of everything.


def test_a_hundred_machines_and_ten_thousand_events(visitor: Visitor, operator: FakeOperator) -> None:
    names = [f"node-{i}" for i in range(100)]
    operator.view = cluster(names)
    kinds = list(EventKind)
    for i in range(10_000 - len(operator.happened)):
        operator.happen(kinds[i % len(kinds)], f"this is event {i} of many", names[i % 100])
    page = visitor.open()
    expect(page.locator("tr[data-machine]")).to_have_count(100)
    page.goto(f"{visitor.url}/console/#/events")
    expect(page.locator('[data-figure="events"]')).to_have_text("10,000")
    assert page.locator("[data-event]").count() < 80
    assert page.locator("[data-event]").first.get_attribute("data-event") == "10000"
    page.locator(".virtual").evaluate("box => box.scrollTop = box.scrollHeight")
    expect(page.locator('[data-event="1"]')).to_be_visible()
    page.get_by_label("Machine").select_option("node-7")
    page.get_by_label("Kind").select_option("warnings")
    mine = [e for e in operator.happened if e.node == "node-7" and e.kind in WARNINGS]
    expect(page.locator('[data-figure="events"]')).to_have_text(f"{len(mine)} of 10,000")
    page.get_by_label("Words").fill(mine[-1].message.removeprefix("this is "))
    expect(page.locator("[data-event]")).to_have_count(1)
    page.get_by_label("Words").fill("")
    operator.happen(EventKind.LOST, "node-7 is gone", "node-7")
    expect(page.locator("[data-event]").first).to_contain_text("node-7 is gone")


class Ticking(FakeOperator):
    """One stream of 200 tokens a second, as long as somebody looks."""

    RATE = 200.0

    def __init__(self, before: int) -> None:
        """before: steps that there were already."""
        super().__init__(cluster(["attic", "kitchen", "studio"]))
        self.begun = time() - before / self.RATE
        self.made = steps(before + 60 * 200, 3, self.begun, self.RATE)

    async def timeline(self, answer: str, owner: str | None, after: int) -> Timeline | None:
        count = min(int((time() - self.begun) * self.RATE), len(self.made))
        request = RequestView(answer, self.begun, "", "running", 10, 0, count, self.begun, 0.0, self.RATE)
        return Timeline(request, {1: ["attic", "kitchen", "studio"]}, self.made[after:count], [], count)


def test_two_hundred_tokens_a_second_drop_no_frames(browser: Browser, engine: FakeEngine, tmp_path: Path) -> None:
    with served_console(tmp_path, Ticking(5000), engine) as url:
        visitor = Visitor(browser, url)
        page = visitor.open("timeline/busy")
        picture = page.get_by_role("application")
        page.wait_for_function("() => Number(document.querySelector('[data-figure=steps] b')?.textContent) >= 5000")
        page.evaluate(
            "() => { window.long = []; new PerformanceObserver(l => window.long.push(...l.getEntries())).observe({type: 'longtask'}); }"
        )
        frames = int(picture.get_attribute("data-frames") or 0)
        for look in ("All", "Follow"):
            page.get_by_role("button", name=look).click()
            seen = int(shows_steps(page))
            page.wait_for_function(f"() => Number(document.querySelector('[data-figure=steps] b').textContent) >= {seen + 600}")
            drawn = int(picture.get_attribute("data-bars") or 0)
            assert 0 < drawn < 25_000, f"{look}: {drawn} bars in a frame"  # a pixel of a lane has one of each colour at most
        drawn = int(picture.get_attribute("data-frames") or 0) - frames
        long = page.evaluate("() => window.long.length")
        assert drawn > 20 and long <= drawn / 4, f"{long} long tasks in {drawn} frames"
        visitor.check()
        page.context.close()


def shows_steps(page: Page) -> str:
    return page.locator('[data-figure="steps"] b').text_content() or "0"


# What operators do.


def test_a_drain_is_previewed_before_it_is_done(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open()
    page.get_by_label("Actions for attic").select_option("drain")
    dialog = page.get_by_role("dialog")
    assert shows(page, "dialog", "predicted_now") == "41.7 tokens/s" and shows(page, "dialog", "predicted") == "29.4 tokens/s"
    expect(dialog).to_contain_text("(−29 %)")
    expect(dialog).to_contain_text("loads 8 layers")
    operator.refusal = "attic is needed: nobody else holds layer 3"
    visitor.expected.append("409")
    dialog.get_by_role("button", name="Drain it").click()
    expect(dialog).to_contain_text(operator.refusal)
    operator.refusal = ""
    dialog.get_by_role("button", name="Drain it").click()
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("status")).to_contain_text("leaves when its layers have moved")
    assert operator.asked == [("attic", "drain", None)] * 2
    operator.plan = PlanView(why="the other nodes cannot hold the model: 2.1 GiB are missing")
    page.get_by_label("Actions for attic").select_option("drain")
    expect(dialog).to_contain_text("2.1 GiB are missing")
    expect(dialog.get_by_role("button", name="Drain it")).to_be_disabled()


def test_what_a_limit_moves_is_shown_while_it_is_typed(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open()
    page.get_by_label("Actions for attic").select_option("cap")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("loads 8 layers")
    assert operator.previewed == [("attic", NodeAction("cap"))]
    operator.plan = PlanView(why="the other nodes cannot hold the model: 2.1 GiB are missing")
    page.get_by_label("Most memory").fill("1GiB")
    expect(dialog).to_contain_text("It cannot be done: the other nodes cannot hold the model: 2.1 GiB are missing")
    assert operator.previewed[-1] == ("attic", NodeAction("cap", memory=1 << 30))
    visitor.expected.append("400")
    page.get_by_label("Most memory").fill("1 lot")
    expect(dialog).to_contain_text("memory: ")
    expect(dialog).not_to_contain_text("are missing")


def test_what_a_removal_leaves_is_shown_before_it_is_done(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open()
    page.get_by_label("Actions for attic").select_option("remove")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("loads 8 layers")
    page.keyboard.press("Escape")
    operator.plan = PlanView(why="2.1 GiB are missing")
    page.get_by_label("Actions for attic").select_option("remove")
    expect(dialog).to_contain_text("Afterwards nobody serves the model: 2.1 GiB are missing")
    dialog.get_by_role("button", name="Remove it").click()
    expect(dialog).to_have_count(0)
    assert [action.do for _, action in operator.previewed] == ["remove", "remove"] and operator.asked == [("attic", "remove", None)]


def test_a_machine_is_renamed_and_its_memory_limited(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open("join")
    page.get_by_label("Actions for attic").select_option("rename")
    page.get_by_label("New name").fill("loft")
    page.get_by_role("button", name="Rename it").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    for given in ("8GiB", ""):
        page.get_by_label("Actions for attic").select_option("cap")
        page.get_by_label("Most memory").fill(given)
        page.get_by_role("button", name="Set the limit").click()
        expect(page.get_by_role("dialog")).to_have_count(0)
    assert operator.asked == [("attic", "rename", "loft"), ("attic", "cap", 8 << 30), ("attic", "cap", None)]


def test_a_machine_is_invited_until_its_code_expires(visitor: Visitor, operator: FakeOperator) -> None:
    operator.happen(EventKind.REFUSED, "a machine at 192.168.1.99 was not let in: its code has expired")
    page = visitor.open("join")
    expect(page.locator(".refusals")).to_contain_text("its code has expired")
    operator.invitation = msgspec.structs.replace(operator.invitation, expires=time() + 600)
    page.get_by_role("button", name="Make a code").click()
    expect(page.get_by_label("the line for Linux", exact=True)).to_have_text(operator.invitation.command)
    page.get_by_text("Windows").click()
    expect(page.get_by_label("the line for Windows", exact=True)).to_have_text(f"py -m {operator.invitation.command}")
    expect(page.locator(".the-code")).to_have_text(operator.invitation.code)
    minutes, seconds = (page.get_by_role("timer").text_content() or "").split(":")
    assert 500 < int(minutes) * 60 + int(seconds) <= 600
    operator.invitation = msgspec.structs.replace(operator.invitation, expires=time() - 1)
    page.get_by_role("button", name="Another").click()
    expect(page.get_by_text("The code has expired")).to_be_visible()
    expect(page.locator(".qr")).to_have_count(0)


def test_keys_are_made_shown_once_and_revoked(visitor: Visitor, tmp_path: Path) -> None:
    visitor.expected.append("401")
    page = visitor.open("keys")
    page.get_by_label("Name").fill("admin")
    page.get_by_label("Role").select_option("operator")
    page.get_by_role("button", name="Create").click()
    token = page.get_by_label("the key", exact=True).text_content() or ""
    assert token.startswith("sk-shoal-")
    page.get_by_role("button", name="I have it").click()
    page.get_by_role("dialog").wait_for(state="detached")
    assert token not in page.content()
    assert page.evaluate("sessionStorage.getItem('shoal.key')") == token, "the page had none"
    page.get_by_label("Name").fill("alice")
    page.get_by_label("Requests a minute").fill("60")
    page.get_by_label("Expires after days").fill("90")
    page.get_by_role("button", name="Create").click()
    page.get_by_role("button", name="I have it").click()
    (kept,) = [key for key in KeyStore(tmp_path).all() if key.name == "alice"]
    assert kept.limits.requests == 60 and kept.role is KeyRole.USER and abs((kept.expires or 0) - time() - 90 * 86400) < 600
    row = page.locator(f'[data-key="{kept.id}"]')
    expect(row).to_contain_text("60 requests/min")
    page.get_by_role("button", name="Revoke alice").click()
    page.get_by_role("button", name="Revoke it").click()
    expect(row).to_contain_text("revoked")
    assert not next(key for key in KeyStore(tmp_path).all() if key.name == "alice").good(time())


@pytest.mark.parametrize("remember", [False, True])
def test_the_key_is_asked_for_sent_and_kept_as_the_user_wants(visitor: Visitor, tmp_path: Path, remember: bool) -> None:
    visitor.expected.append("401")
    key, token = KeyStore(tmp_path).create("alice", time())
    sleep(1.1)  # a keyring looks for new keys once a second
    page = visitor.open()
    expect(page.get_by_role("heading", level=1)).to_have_text("A key, please")
    page.get_by_label("Key", exact=True).fill("sk-shoal-wrong")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_contain_text("not accepted")
    page.get_by_label("Keep it in this browser").set_checked(remember)
    enter(page, token)
    expect(page.locator("tr[data-machine]")).to_have_count(3)
    expect(page.locator(".whose")).to_contain_text(f"{key.name}, user")
    assert page.get_by_label("Actions for attic").count() == 0
    kept = page.evaluate("[sessionStorage.getItem('shoal.key'), localStorage.getItem('shoal.key')]")
    assert kept == ([None, token] if remember else [token, None])
    page.goto(f"{visitor.url}/console/#/keys")
    expect(page.locator("main")).to_contain_text("role of a user")
    page.goto(f"{visitor.url}/console/#/chat")
    ask(page, "Hello")
    page.get_by_role("button", name="forget it").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("A key, please")
    assert page.evaluate("[sessionStorage.getItem('shoal.key'), localStorage.getItem('shoal.key')]") == [None, None]


def test_models_say_what_fits_and_are_fetched_with_progress(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open("models")
    expect(page.locator('[data-model="llama-3.3-70b"]')).to_contain_text("too large")
    expect(page.locator('[data-model="qwen3-30b-a3b"]')).to_contain_text("served")
    expect(page.locator('[data-pull="tinyllama-1.1b"]')).to_contain_text("44 % of 308.0 MiB")
    page.get_by_role("button", name="Fetch qwen2.5-coder-1.5b").click()
    expect(page.get_by_role("status")).to_contain_text("qwen2.5-coder-1.5b is being fetched")
    page.get_by_label("Name of a model").fill("org/name:Q4_K_M")
    page.keyboard.press("Enter")
    until(lambda: operator.asked == [("qwen2.5-coder-1.5b", "pull"), ("org/name:Q4_K_M", "pull")], lambda: str(operator.asked))
    operator.listed = msgspec.structs.replace(
        operator.listed, pulls=[msgspec.structs.replace(operator.listed.pulls[0], ended=time(), failed="the disk is full")]
    )
    expect(page.locator('[data-pull="tinyllama-1.1b"]')).to_contain_text("the disk is full")


def test_loading_is_shown_for_each_node_and_attention_only_where_it_is_needed(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open()
    expect(page.get_by_text("Needs attention")).to_have_count(0)
    operator.view = msgspec.structs.replace(
        busy_loading(["attic", "kitchen", "studio"]),
        attention=[Advice("attention", "kitchen is 2.1 times slower than it measured", "kitchen")],
    )
    expect(page.locator(".notice")).to_contain_text("2 of 3 nodes have loaded")
    expect(page.get_by_role("row", name="studio")).to_contain_text("51 % of 5.7 GiB")
    expect(page.get_by_label("Needs attention")).to_contain_text("2.1 times slower")
    expect(page.locator(".nav .count")).to_contain_text("1")
    operator.view = cluster(["attic", "kitchen"])
    expect(page.get_by_text("Needs attention")).to_have_count(0)
    expect(page.locator("tr[data-machine]")).to_have_count(2)


def test_experts_are_shown_as_they_were_used(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open()
    picture = page.get_by_role("img", name="Rows by layer and expert")
    rows = operator.experts_used.rows
    assert picture.evaluate("canvas => [canvas.width, canvas.height]") == [len(rows[0]), len(rows)]
    page.get_by_text("Figures by layer").click()
    table = page.get_by_label("Expert use by layer").locator("tbody tr")
    expect(table).to_have_count(len(rows))
    for layer in (0, len(rows) - 1):
        total, most = sum(rows[layer]), max(rows[layer])
        told = table.nth(layer).locator("td").all_text_contents()
        assert told[:3] == [f"{total:,}", str(rows[layer].index(most)), f"{most * len(rows[layer]) / total:.2f}"]
    picture.hover(position={"x": 1, "y": 1})
    expect(page.locator(".heat-at")).to_contain_text(f"layer 0, expert 0: {rows[0][0]:,} rows")


def test_the_last_day_is_summed_up_in_words(visitor: Visitor) -> None:
    day = history(time())
    page = visitor.open("events")
    for name, most in (("queue", str(max(day.queue))), ("memory", human_bytes(max(day.memory)))):
        expect(page.locator(f'[data-series="{name}"] figcaption')).to_contain_text(f"at most {most}")
    expect(page.locator("[data-series] canvas")).to_have_count(4)


# A chat.


def test_reasoning_calls_and_results_are_shown(visitor: Visitor, engine: FakeEngine) -> None:
    call = json.dumps({"name": "weather", "arguments": {"city": "Rome"}})
    engine._script = says(f"<think>Which city?</think><tool_call>\n{call}\n</tool_call>")
    page = visitor.open("chat")
    page.get_by_role("button", name="Settings").click()
    page.get_by_text("Tools", exact=True).click()
    page.get_by_label("Functions, as JSON").fill("{")
    expect(page.get_by_text("The tools are not JSON")).to_be_visible()
    page.get_by_label("Functions, as JSON").fill(
        '{"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}'
    )
    ask(page, "How is the weather?")
    expect(page.locator(".reasoning")).to_contain_text("Which city?")
    expect(page.locator(".call")).to_contain_text("weather")
    expect(page.get_by_label("Arguments")).to_contain_text('"city": "Rome"')
    engine._script = says("<think>Sun.</think>It is sunny in Rome.")
    page.get_by_label("Its result").fill("sunny")
    page.get_by_role("button", name="Send the result").click()
    expect(page.locator(".answer").last).to_contain_text("It is sunny in Rome.")
    prompt = engine.tokenizer.decode(engine.streams[-1].request.prompt)
    assert "sunny (weather," in prompt and '"city": "Rome"' in prompt


def test_an_error_is_shown_with_what_came_before_it(visitor: Visitor, engine: FakeEngine) -> None:
    visitor.expected.append("400")
    page = visitor.open("chat")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("77")
    page.get_by_role("textbox", name="Message").fill("Hello")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .failed")).to_contain_text("temperature")


def test_the_server_may_go_and_come_back(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open()
    page.locator("tr[data-machine]").first.wait_for()
    visitor.expected.append("ERR_")
    page.context.set_offline(True)
    page.goto(f"{visitor.url}/console/#/events")
    page.context.set_offline(False)
    operator.happen(EventKind.JOINED, "it is back", "attic")
    expect(page.locator("[data-event]").first).to_contain_text("it is back")
