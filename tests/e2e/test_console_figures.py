"""Every figure on the console's pages is what the API answers, and there is none that no test compares."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import time
from typing import Any

import httpx
import msgspec
import pytest
from playwright.sync_api import Browser, Page, Response

from shoal.gateway.auth.key import KeyLimits, KeyRole
from shoal.gateway.auth.key_store import KeyStore, Use
from shoal.observed.cluster import Advice, Progress, RequestsView
from shoal.observed.event import EventKind
from shoal.observed.models import LoadedModel, ModelHere, PullView
from shoal.observed.requests import RequestView, Timeline
from shoal.request import Priority, TokenChunk
from tests.support import console_figures as expected
from tests.support.browser import Visitor, chats
from tests.support.cluster import until
from tests.support.console_figures import figures
from tests.support.console_format import clock, count, fixed, moment
from tests.support.engine import FakeEngine, Item, says
from tests.support.operator import MODEL, FakeOperator, busy_loading, fleet, furnished, history
from tests.support.served_console import served_console

pytestmark = [pytest.mark.slow, pytest.mark.real]

NAMES = ("attic", "kitchen", "studio", "cellar")
REQUEST = "chatcmpl-4f7e21"
QUESTION = "Which 3 cities?"


def differing() -> FakeOperator:
    """One all of whose figures differ, so that none can stand for another, with everything that pages show at times only."""
    made = furnished(NAMES)
    view = made.view
    machines = [
        msgspec.structs.replace(
            machine,
            threads=4 + i,
            weights=machine.weights + i * 511_000_000,
            memory=(12 + i) << 30,
            resident=machine.resident + i * 703_000_000,
            bytes_per_second=(38 + i) * 1e9,
            disk=(2.1 + i) * 1e9 if i else 0.0,
            round_trip=0.00042 * i,
            link_bytes_per_second=117e6 * i,
            busy=0.047 + 0.21 * i,
            queue=i,
        )
        for i, machine in enumerate(view.machines)
    ]
    machines[1] = msgspec.structs.replace(
        machines[1], role="experts", experts=1536, first_layer=0, end_layer=0, machine="x86_64 avx512", slower=2.34
    )
    machines[2] = msgspec.structs.replace(machines[2], state="suspected", words="was not heard for 3 s", silence=3.4)
    machines[3] = msgspec.structs.replace(
        machines[3], state="loading", words="loads", progress=Progress("loads layers", 3_100_000_000, 6_080_000_000)
    )
    stages = [
        msgspec.structs.replace(stage, wait=0.0021 * (i + 1), sample=0.0009 * i, hop=0.00061 + 0.0007 * i)
        for i, stage in enumerate(view.stages)
    ]
    made.view = msgspec.structs.replace(
        view,
        reason="a better split of 48 layers is prepared",
        machines=machines,
        stages=stages,
        requests=RequestsView(3, 17, 8, 212, 1024),
        attention=[
            Advice("attention", "kitchen is 2.3 times slower than it measured", "kitchen"),
            Advice("memory", "a word without figures"),
        ],
    )
    made.day = history(time())
    made.happen(EventKind.SLOW, "kitchen runs 2.3 times slower than it measured", "kitchen", slower=2.34)
    made.happen(EventKind.LOADED, "attic has loaded its part: 4.2 GiB in 3.1 s", "attic", bytes=4.56e9, seconds=3.14, epoch=12)
    made.happen(EventKind.CACHE, "7 KV block(s) of kept prompts were given up for new ones", count=7)
    made.happen(EventKind.REFUSED, "a machine at 192.168.1.99 was not let in: its code has expired")
    whole = made.timelines[REQUEST]
    made.timelines[REQUEST] = msgspec.structs.replace(
        whole, request=msgspec.structs.replace(whole.request, key="alice", reason="node 3 was lost once"), lost=31
    )
    begun = time() - 300
    made.timelines["chatcmpl-9"] = Timeline(RequestView("chatcmpl-9", begun, "", "waiting", 1500, 7, 0), {}, [], [], 0)
    made.listed = msgspec.structs.replace(
        made.listed,
        models=[*made.listed.models, ModelHere("unknown", "hf:org/unknown-7b", 0, False)],
        loaded=[
            *made.listed.loaded,
            LoadedModel("smollm2", "smollm2-135m", "1 of 3 nodes has joined", 3, 2, "llama", "", 8192, 134_515_008, [], True),
            LoadedModel("plain-7b", "plain-7b", "", 1, 1, "", "Q8_0", 512, 7_000_000_000, ["chat"]),
        ],
        aliases={"gpt-4o": MODEL.name, "best-1": "gpt-4o", "mini": "smollm2"},
        loading=["big-70b", "another"],
        failed={"huge-405b": "it could not be loaded: 211 GiB are missing"},
        pulls=[
            *made.listed.pulls,
            PullView("begun-1b", time() - 3, 0, 0),
            PullView("unsized-2b", time() - 5, 77_000_000, 0),
            PullView("fetched-3b", time() - 500, 9, 9, time() - 377),
            PullView("failed-4b", time() - 80, 5, 9, time() - 60, "the disk has 2.1 GiB left"),
        ],
    )
    return made


@pytest.fixture
def operator() -> FakeOperator:
    return differing()


@pytest.fixture
def visitor(browser: Browser, operator: FakeOperator, tmp_path: Path) -> Iterator[Visitor]:
    said = says("# Cities\n\nRome, Oslo and 3 more.")
    engine = FakeEngine(lambda request: [found_in_cache(item) for item in said(request)], longest=100_000)
    engine.name = MODEL.name
    with served_console(tmp_path, operator, engine) as url:
        made = Visitor(browser, url)
        yield made
        for context in browser.contexts:
            context.close()
    made.check()


def found_in_cache(item: Item) -> Item:
    return msgspec.structs.replace(item, cached=16) if isinstance(item, TokenChunk) else item


def api(visitor: Visitor, path: str, method: str = "GET", key: str = "") -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = httpx.request(method, f"{visitor.url}/operator/{path}", headers=headers, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def compare(page: Page, wanted: Sequence[str]) -> None:
    until(lambda: figures(page) == wanted, lambda: difference(figures(page), wanted))


def difference(shown: Sequence[str], wanted: Sequence[str]) -> str:
    pairs = [pair for pair in zip([*shown, *[""] * len(wanted)], [*wanted, *[""] * len(shown)], strict=False) if pair[0] != pair[1]]
    return "\n".join(f"shown  {a}\nwanted {b}" for a, b in pairs[:5])


def wider(page: Page) -> None:
    """A screen on which all rows of a list are in sight."""
    page.set_viewport_size({"width": 1280, "height": 2000})


def test_every_figure_of_the_cluster(visitor: Visitor) -> None:
    page = visitor.open()
    view = api(visitor, "cluster")
    wanted = expected.cluster_page(view, api(visitor, "experts")["rows"])
    compare(page, wanted)
    assert len(wanted) > 48 * 5 + 4 * 8 + 4 * 8
    (resting,) = [machine for machine in view["machines"] if machine["experts"]]
    assert f"{resting['name']}, holds: 1,536 experts" in wanted


def test_every_figure_of_each_of_several_pipelines(visitor: Visitor, operator: FakeOperator) -> None:
    operator.__dict__.update(fleet().__dict__)
    page = visitor.open()
    names = [operator.view.pipeline, *(view.pipeline for view in operator.others)]
    for name in names:
        page.get_by_role("link", name=name, exact=True).click()
        view = api(visitor, f"cluster?pipeline={name}")
        assert view["pipeline"] == name
        rows = api(visitor, f"experts?pipeline={name}")["rows"] if view["model"]["experts"] else {}
        compare(page, expected.cluster_page(view, rows))
    assert mislabelled(page) == []
    page.get_by_label("Actions for studio").select_option("drain")  # which is planned for the first pipeline, not for the one that is shown
    plan, first = api(visitor, "preview?node=studio&action=drain"), api(visitor, "cluster")
    dialog = expected.preview(plan, first, "It cannot be done")
    until(lambda: set(dialog) <= set(figures(page)), lambda: difference([line for line in figures(page) if line in dialog], dialog))
    assert f"pipeline: Of {first['pipeline']}:" in dialog
    page.keyboard.press("Escape")
    visitor.expected.append("404")
    listed = [one for one in operator.view.pipelines if one.model == MODEL.name]
    operator.view, operator.others = msgspec.structs.replace(operator.view, pipelines=listed), []
    compare(page, expected.cluster_page(api(visitor, "cluster"), api(visitor, "experts")["rows"], names[-1]))


@pytest.mark.parametrize("gap", [False, True])
def test_every_figure_of_a_cluster_that_loads(visitor: Visitor, operator: FakeOperator, gap: bool) -> None:
    operator.view = busy_loading(NAMES if not gap else NAMES[:3])
    if gap:
        operator.view = msgspec.structs.replace(operator.view, machines=operator.view.machines[1:], predicted=0.0, predicted_single=0.0)
    operator.experts_used.rows.clear()
    operator.experts_used.rows.update({3: [5, 0, 11, 2], 1: [0, 0, 0]})
    page = visitor.open()
    compare(page, expected.cluster_page(api(visitor, "cluster"), api(visitor, "experts")["rows"]))


def test_the_expert_under_the_pointer(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open()
    rows = operator.experts_used.rows
    page.get_by_role("img", name="Rows by layer and expert").hover(position={"x": 1, "y": 1})
    mean = sum(rows[0]) / len(rows[0])
    told = f"rows: layer 0, expert 0: {count(rows[0][0])} rows, {fixed(rows[0][0] / mean, 2)} × the mean"
    until(lambda: told in figures(page), lambda: str([line for line in figures(page) if line.startswith("rows")]))


@pytest.mark.parametrize("action", ["drain", "remove", "cap"])
@pytest.mark.parametrize("predicted", [29.4, 43.21, 0.0])
def test_every_figure_of_a_preview(visitor: Visitor, operator: FakeOperator, action: str, predicted: float) -> None:
    """predicted: 0: it cannot be done."""
    moved = {"kitchen": 1, "studio": 12, "cellar": 0}
    why = "" if predicted else "the other nodes cannot hold the model: 2.1 GiB are missing"
    operator.plan = msgspec.structs.replace(operator.plan, predicted=predicted, moved=moved, why=why)
    page = visitor.open("join")
    view = api(visitor, "cluster")
    before = expected.join_page(view, api(visitor, "events")["events"], None, time())
    compare(page, before)
    page.get_by_label("Actions for attic").select_option(action)
    lack = "Afterwards nobody serves the model" if action == "remove" else "It cannot be done"
    dialog = expected.preview(api(visitor, f"preview?node=attic&action={action}"), view, lack)
    at = before.index("attic, memory: 12.0 GiB") + 1
    compare(page, [*before[:at], *dialog, *before[at:]])


def test_every_figure_of_the_events_and_the_day(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open("events")
    wider(page)
    day, events = api(visitor, "history"), api(visitor, "events")["events"]
    compare(page, expected.events_page(api(visitor, "cluster"), day, events))
    assert all(figure in {name for event in events for name in event["figures"]} for figure in ("silence", "slower", "bytes", "epoch"))
    page.get_by_label("Machine").select_option("kitchen")
    until(lambda: f"events: {sum(e['node'] == 'kitchen' for e in events)} of {len(events)}" in figures(page))
    page.locator('[data-series="queue"] .u-over').hover()
    minutes = {clock(at)[:5]: i for i, at in enumerate(day["at"])}
    for series in ("tokens_per_second", "first", "queue", "memory"):
        minute, _, shown = (page.locator(f'[data-series="{series}"] .at').text_content() or "").partition(" ")
        assert shown == expected.sample(series, day, minutes[minute])


def test_a_day_without_requests_has_no_figures_for_them(visitor: Visitor, operator: FakeOperator) -> None:
    assert operator.day is not None
    nothing: list[float | None] = [None] * len(operator.day.at)
    operator.day = msgspec.structs.replace(operator.day, first_p50=nothing, first_p99=nothing)
    page = visitor.open("events")
    wider(page)
    compare(page, expected.events_page(api(visitor, "cluster"), api(visitor, "history"), api(visitor, "events")["events"]))


def test_every_figure_of_a_timeline(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open(f"timeline/{REQUEST}")
    view, timeline, requests = api(visitor, "cluster"), api(visitor, f"requests/{REQUEST}/timeline"), api(visitor, "requests")["requests"]
    compare(page, expected.timeline_page(view, timeline, requests))
    for step in range(3):
        page.get_by_role("button", name="Next step").click()
        compare(page, expected.timeline_page(view, timeline, requests, step))
    whole = operator.timelines[REQUEST]
    under_way = msgspec.structs.replace(whole.recoveries[0], ended=0.0, parts={}, node="", silence=0.0, refilled=1)
    operator.timelines[REQUEST] = msgspec.structs.replace(whole, recoveries=[*whole.recoveries, under_way])
    timeline = api(visitor, f"requests/{REQUEST}/timeline")
    compare(page, expected.timeline_page(view, timeline, requests, 2))
    page.get_by_role("link", name="chatcmpl-9").click()
    compare(page, expected.timeline_page(view, api(visitor, "requests/chatcmpl-9/timeline"), requests))


def test_every_figure_of_the_keys(visitor: Visitor, tmp_path: Path) -> None:
    store, now = KeyStore(tmp_path), time()
    _, token = store.create("admin", now, role=KeyRole.OPERATOR)
    used, _ = store.create("alice", now, KeyLimits(1200, 345_678, 4), now + 90 * 86400, Priority.FLEX)
    one, _ = store.create("bob", now, KeyLimits(concurrency=7))
    store.add({used.id: Use(1234, 5_678_901, 23_456, now - 77), one.id: Use(1, 2, 3, now - 5)})
    visitor.expected.append("401")
    until(lambda: httpx.get(f"{visitor.url}/operator/me", trust_env=False).status_code == 401)
    page = visitor.open("cluster")
    page.get_by_label("Key", exact=True).fill(token)
    page.get_by_role("button", name="Use this key").click()
    page.locator("tr[data-machine]").first.wait_for()
    page.goto(f"{visitor.url}/console/#/keys")
    compare(page, expected.keys_page(api(visitor, "cluster", key=token), api(visitor, "keys", key=token)["keys"]))
    assert mislabelled(page) == []


def test_every_figure_of_the_models(visitor: Visitor) -> None:
    page = visitor.open("models")
    view, listed = api(visitor, "cluster"), api(visitor, "models")
    before = expected.models_page(view, listed)
    compare(page, before)
    aliases = before.index(f"{MODEL.name}, aliases: gpt-4o, best-1")
    page.get_by_role("button", name=f"Unload {MODEL.name}").click()
    dialog = [*expected.unloading(MODEL.name, view)]
    assert dialog[1:] == ["requests: 3 requests run and 1 waits: they end with an error."]
    compare(page, [*before[: aliases + 1], *dialog, *before[aliases + 1 :]])


def test_every_figure_of_an_invitation(visitor: Visitor, operator: FakeOperator) -> None:
    operator.invitation = msgspec.structs.replace(operator.invitation, expires=time() + 545)
    view, events = api(visitor, "cluster"), api(visitor, "events")["events"]
    page = visitor.open("join")
    compare(page, expected.join_page(view, events, None, time()))
    now = time()
    page.clock.set_fixed_time(now)
    page.get_by_role("button", name="Make a code").click()
    page.locator(".qr").wait_for()
    page.get_by_text("If shoal is not installed there").click()
    compare(page, expected.join_page(view, events, api(visitor, "invitation", "POST"), now))


def answered(response: Response) -> list[Any]:
    """The chunks of a streamed answer."""
    lines = response.text().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ") and "[DONE]" not in line]


def test_every_figure_of_an_answer(visitor: Visitor) -> None:
    page = visitor.open("chat")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Most tokens").fill("7")
    page.get_by_label("Ask for the probabilities").check()
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name="Message").fill(QUESTION)
    with page.expect_response("**/v1/chat/completions") as asked:
        page.keyboard.press("Enter")
    page.locator(".answer-figures").wait_for()
    chunks = answered(asked.value)
    scored = [token for chunk in chunks for choice in chunk["choices"] for token in (choice.get("logprobs") or {}).get("content") or ()]
    (finish,) = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    (told,) = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert told["completion_tokens"] == 7 == len(scored) and finish == "length"
    assert told["prompt_tokens_details"]["cached_tokens"] == 16
    (kept,) = chats(page)
    measured = kept["messages"][1]["figures"]
    beside = [*expected.shell(api(visitor, "cluster")), f"label: {QUESTION}"]
    under = expected.usage(told, finish, measured["rate"], measured["first"])
    compare(page, [*beside, under])
    page.get_by_role("button", name="Probabilities").click()
    page.locator(".tokens").focus()
    for chosen in range(2):
        page.keyboard.press("ArrowRight")
        compare(page, [*beside, *expected.probabilities(scored, chosen), under])
    page.get_by_role("button", name="Chats").click()
    listed = [f"updated: {moment(kept['updated'])}"]
    page.get_by_role("button", name="Probabilities").click()
    until(lambda: [line for line in figures(page) if line.startswith("updated")] == listed)


def test_an_error_is_shown_with_its_figures(visitor: Visitor) -> None:
    visitor.expected.append("400")
    page = visitor.open("chat")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("77")
    page.get_by_role("textbox", name="Message").fill("Hello")
    with page.expect_response("**/v1/chat/completions") as asked:
        page.keyboard.press("Enter")
    message = asked.value.json()["error"]["message"]
    assert any(map(str.isdigit, message))
    compare(page, [*expected.shell(api(visitor, "cluster")), f"failed: {message}"])


def test_every_figure_of_how_to_connect(visitor: Visitor) -> None:
    page = visitor.open("connect")
    url = f"the base URL: {visitor.url}/v1"
    others = f"url: Anthropic's and Ollama's are at {visitor.url}. No key is needed; clients that want one take any."
    compare(page, [*expected.shell(api(visitor, "cluster")), url, others])


@pytest.mark.parametrize("screen", ["cluster", "join", "models"])
def test_a_phone_has_the_labels_of_the_columns(visitor: Visitor, screen: str) -> None:
    page = visitor.open(screen)
    page.locator(".cards tbody td").first.wait_for()
    assert mislabelled(page) == []


def mislabelled(page: Page) -> list[str]:
    """Cells whose label on a phone, where a row is a card, is not the name of their column."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".cards tbody td")].filter(cell => {
            const column = cell.closest("table").tHead.rows[0].cells[cell.cellIndex].textContent;
            return cell.dataset.label !== (column === "actions" ? "" : column);
        }).map(cell => cell.outerHTML)"""
    )


ADDED = {
    "beside everything": "document.querySelector('main h1').append(' 12.5 GiB')",
    "in a cell": "document.querySelector('tr[data-machine] td:last-child').append('3 × as fast')",
    "in a marked figure": "document.querySelector('[data-figure=waiting] dt').append(' of 9')",
    "as a title": "document.querySelector('main h1').title = '7 machines'",
    "in place of another": "document.querySelector('tr[data-stage] td:nth-child(3)').textContent = '999 ms'",
    "from another row": "document.querySelectorAll('tr[data-machine]')[1].cells[3].textContent = document.querySelector('tr[data-machine]').cells[3].textContent",
}


@pytest.mark.parametrize("where", ADDED)
def test_a_figure_that_nobody_compares_does_not_go_unnoticed(visitor: Visitor, where: str) -> None:
    page = visitor.open()
    wanted = expected.cluster_page(api(visitor, "cluster"), api(visitor, "experts")["rows"])
    compare(page, wanted)
    page.evaluate(ADDED[where])
    assert figures(page) != wanted
