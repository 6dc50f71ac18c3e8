"""The console in a browser, with several pipelines and models that are made up: what is shown, loaded, unloaded, named and talked to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect

from shoal.gateway.auth.key_store import KeyStore
from shoal.observed.event import EventKind
from shoal.observed.models import LoadedModel
from tests.support.browser import PHONE, Visitor, chats, focused, overflow, tab_to, violations
from tests.support.cluster import until
from tests.support.operator import MODEL, SMALL, FakeOperator, fleet, furnished
from tests.support.served_console import served_console
from tests.support.several import Called

pytestmark = [pytest.mark.slow, pytest.mark.real]

FIRST, COPY, OTHER = f"{MODEL.name}/1", f"{MODEL.name}/2", f"{SMALL.name}/1"


@pytest.fixture
def operator() -> FakeOperator:
    return fleet()


@pytest.fixture
def engines() -> list[Called]:
    return [Called(MODEL.name, longest=100_000), Called(SMALL.name, longest=100_000)]


@pytest.fixture
def visitor(browser: Browser, operator: FakeOperator, engines: list[Called], tmp_path: Path) -> Iterator[Visitor]:
    with served_console(tmp_path, operator, *engines, aliases={"gpt-4o": SMALL.name}) as url:
        made = Visitor(browser, url)
        yield made
        for context in browser.contexts:
            context.close()
    made.check()


def shows(page: Page, pipeline: str, model: str, layers: int) -> None:
    """The page is of that pipeline, in all of its parts."""
    expect(page.locator('nav [aria-current="true"]')).to_have_text(pipeline)
    expect(page.locator('[data-figure="model"]')).to_contain_text(f"{layers} of {model},")
    expect(page.locator(".state-line")).to_contain_text(pipeline)


def leave_only(operator: FakeOperator, *names: str) -> None:
    """The others end."""
    views = [view for view in (operator.view, *operator.others) if view.pipeline in names]
    listed = [one for one in operator.view.pipelines if one.name in names]
    operator.view, *operator.others = (msgspec.structs.replace(view, pipelines=listed) for view in views)


# The cluster


def test_a_pipeline_is_chosen_and_its_address_can_be_passed_on(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open()
    shows(page, FIRST, MODEL.name, MODEL.layers)
    expect(page.locator("tr[data-pipeline]")).to_have_count(3)
    expect(page.locator(f'tr[data-pipeline="{OTHER}"]')).to_contain_text("attic, studio")
    page.get_by_role("link", name=OTHER).click()
    shows(page, OTHER, SMALL.name, SMALL.layers)
    assert page.url.endswith(f"#/cluster/{SMALL.name}%2F1")
    expect(page.get_by_role("status")).to_have_text(f"{OTHER} is shown")
    expect(page.locator("tr[data-stage]")).to_have_count(2)
    expect(page.locator('[data-figure="waiting"] b')).to_have_text("2")
    expect(page.get_by_role("img", name="Rows by layer and expert")).to_have_count(0)
    page.reload()
    shows(page, OTHER, SMALL.name, SMALL.layers)
    linked = visitor.open(f"cluster/{COPY}")  # as somebody may have typed it
    shows(linked, COPY, MODEL.name, MODEL.layers)
    expect(linked.locator(".notice")).to_contain_text("2 of 3 nodes have loaded")
    page.go_back()
    shows(page, FIRST, MODEL.name, MODEL.layers)


def test_the_stream_is_that_of_the_chosen_pipeline_on_other_pages_too(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open(f"cluster/{OTHER}")
    shows(page, OTHER, SMALL.name, SMALL.layers)
    operator.others = [msgspec.structs.replace(view, measured=77.7) if view.pipeline == OTHER else view for view in operator.others]
    expect(page.locator('[data-figure="measured"] b')).to_have_text("77.7")
    page.get_by_role("link", name="Events").click()
    operator.happen(EventKind.JOINED, "cellar joined", "cellar")
    expect(page.locator("[data-event]").first).to_contain_text("cellar joined")
    expect(page.locator(".state-line")).to_contain_text(OTHER)
    page.get_by_role("link", name="Cluster").click()
    shows(page, OTHER, SMALL.name, SMALL.layers)


def test_a_pipeline_that_goes_leads_to_the_first_with_a_word(visitor: Visitor, operator: FakeOperator) -> None:
    visitor.expected.append("404")
    page = visitor.open(f"cluster/{OTHER}")
    shows(page, OTHER, SMALL.name, SMALL.layers)
    leave_only(operator, FIRST, COPY)
    expect(page.locator('[data-figure="gone"]')).to_have_text(
        f"{OTHER} is gone: its model was unloaded, or has fewer copies now. This is {FIRST}."
    )
    shows(page, FIRST, MODEL.name, MODEL.layers)
    expect(page.get_by_role("status")).to_have_text(f"{OTHER} is gone; {FIRST} is shown")
    assert page.url.endswith("#/cluster")
    # The first one goes, too: nobody had chosen it, and the next one is shown.
    leave_only(operator, COPY)
    expect(page.locator('[data-figure="gone"]')).to_have_text(
        f"{FIRST} is gone: its model was unloaded, or has fewer copies now. This is {COPY}."
    )
    expect(page.get_by_role("navigation", name="Pipelines")).to_have_count(0)
    page.get_by_role("button", name="Close").click()
    expect(page.locator('[data-figure="gone"]')).to_have_count(0)


def test_a_link_to_a_pipeline_that_never_was_leads_to_the_first(visitor: Visitor) -> None:
    visitor.expected.append("404")
    page = visitor.open("cluster/nothing/9")
    shows(page, FIRST, MODEL.name, MODEL.layers)
    expect(page.locator('[data-figure="gone"]')).to_contain_text("nothing/9 is gone")
    page.get_by_role("link", name=COPY).click()
    shows(page, COPY, MODEL.name, MODEL.layers)
    expect(page.locator('[data-figure="gone"]')).to_have_count(0)


def test_a_head_without_models_says_so_until_one_comes(visitor: Visitor, operator: FakeOperator) -> None:
    visitor.expected.append("404")
    page = visitor.open()
    shows(page, FIRST, MODEL.name, MODEL.layers)
    first, operator.others = operator.view, []
    operator.view = msgspec.structs.replace(first, pipelines=[])
    expect(page.locator("main")).to_contain_text("No model is loaded")
    expect(page.locator(".state-line")).to_have_text("no model is loaded")
    page.get_by_role("link", name="Load one").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Models")
    page.get_by_role("link", name="Cluster").click()
    operator.view = msgspec.structs.replace(first, pipelines=first.pipelines[:1])
    expect(page.locator("tr[data-machine]")).to_have_count(3)


def test_with_one_pipeline_nothing_is_there_to_choose(visitor: Visitor, operator: FakeOperator) -> None:
    leave_only(operator, FIRST)
    page = visitor.open()
    page.locator("tr[data-machine]").first.wait_for()
    expect(page.get_by_role("navigation", name="Pipelines")).to_have_count(0)
    expect(page.locator(".state-line")).to_have_text(f"serving{MODEL.name}")


def test_a_machine_with_a_part_in_another_pipeline_is_not_said_to_be_idle(visitor: Visitor) -> None:
    page = visitor.open(f"cluster/{OTHER}")
    shows(page, OTHER, SMALL.name, SMALL.layers)
    page.get_by_label("Actions for kitchen").select_option("drain")
    expect(page.get_by_role("dialog")).to_contain_text("Its part moves to other machines")
    expect(page.get_by_role("dialog")).to_contain_text("predicted afterwards")
    expect(page.get_by_role("dialog")).to_contain_text(f"Of {FIRST}:")


# Models


def test_a_model_is_loaded_with_copies_and_unloaded(visitor: Visitor, operator: FakeOperator) -> None:
    operator.listed = furnished().listed
    page = visitor.open("models")
    expect(page.locator(f'[data-loaded="{MODEL.name}"]')).to_contain_text("serving1 of 132,768Q4_Kchat, tools, json")
    page.get_by_role("button", name=f"Load {SMALL.name}", exact=True).click()
    dialog = page.get_by_role("dialog", name=f"Load {SMALL.name}", exact=True)
    operator.refusal = "only 2 nodes have room for it: 3 copies need 3"
    visitor.expected.append("409")
    dialog.get_by_label("Copies").fill("3")
    dialog.get_by_role("button", name="Load it").click()
    expect(dialog.get_by_role("alert")).to_have_text(operator.refusal)
    operator.refusal = ""
    dialog.get_by_label("Copies").fill("")
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("status")).to_contain_text(f"{SMALL.name} is being loaded")
    assert operator.asked == [(SMALL.name, "load", 3), (SMALL.name, "load", 0)]
    operator.listed = msgspec.structs.replace(operator.listed, loading=[SMALL.name])
    expect(page.get_by_label("Being loaded")).to_contain_text(f"{SMALL.name} is being fetched and read")
    coming = LoadedModel(
        SMALL.name, SMALL.reference, "2 of 3 nodes have loaded their layers", 1, 0, "llama", "Q4_0", 8192, 134_515_008, ["chat"]
    )
    operator.listed = msgspec.structs.replace(operator.listed, loading=[], loaded=[*operator.listed.loaded, coming])
    row = page.locator(f'[data-loaded="{SMALL.name}"]')
    expect(row).to_contain_text("2 of 3 nodes have loaded")
    expect(row).to_contain_text("0 of 1")
    expect(page.get_by_role("button", name=f"Load {SMALL.name}", exact=True)).to_have_count(0)
    there = msgspec.structs.replace(coming, state="", serving=1)
    operator.listed = msgspec.structs.replace(operator.listed, loaded=[*operator.listed.loaded[:-1], there])
    expect(row).to_contain_text("serving1 of 1")
    page.get_by_role("button", name=f"Copies of {SMALL.name}").click()
    dialog = page.get_by_role("dialog", name=f"Copies of {SMALL.name}")
    expect(dialog.get_by_label("Copies")).to_have_value("1")
    expect(dialog.get_by_role("button", name="Have so many")).to_be_disabled()
    dialog.get_by_label("Copies").fill("2")
    dialog.get_by_role("button", name="Have so many").click()
    expect(dialog).to_have_count(0)
    assert operator.asked.pop() == (SMALL.name, "load", 2)
    row.get_by_role("link").click()
    shows(page, OTHER, SMALL.name, SMALL.layers)
    page.go_back()
    page.get_by_role("button", name=f"Unload {SMALL.name}").click()
    dialog = page.get_by_role("dialog", name=f"Unload {SMALL.name}")
    expect(dialog).to_contain_text("5 requests run and 2 wait: they end with an error.")
    page.keyboard.press("Escape")
    assert len(operator.asked) == 2 and focused(page) == f"Unload {SMALL.name}"
    page.keyboard.press("Enter")
    dialog.get_by_role("button", name="Unload it").click()
    expect(dialog).to_have_count(0)
    assert operator.asked[2:] == [(SMALL.name, "unload")]
    operator.listed = msgspec.structs.replace(
        operator.listed, loaded=operator.listed.loaded[:-1], failed={SMALL.name: "it could not be loaded: its file is cut short"}
    )
    expect(row).to_have_count(0)
    expect(page.get_by_label("Being loaded")).to_contain_text("its file is cut short")


def test_aliases_are_added_and_removed_and_refused_in_the_apis_words(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open("models")
    card = page.get_by_role("region", name="Aliases")
    card.get_by_label("Alias", exact=True).fill("gpt-4o-mini")
    assert card.get_by_label("Stands for").locator("option").all_text_contents() == [MODEL.name, SMALL.name, "gpt-4o"]
    card.get_by_label("Stands for").select_option(SMALL.name)
    operator.refusal = "aliases lead in a circle: a → b → a; let one of them stand for a model"
    visitor.expected.append("409")
    card.get_by_role("button", name="Add").click()
    expect(card.get_by_role("alert")).to_have_text(operator.refusal)
    expect(card.get_by_label("Alias", exact=True)).to_have_value("gpt-4o-mini")
    operator.refusal = ""
    card.get_by_label("Alias", exact=True).press("Enter")
    expect(card.get_by_label("Alias", exact=True)).to_have_value("")
    expect(card.get_by_role("alert")).to_have_text("")
    operator.listed = msgspec.structs.replace(operator.listed, aliases={"gpt-4o-mini": SMALL.name})
    page.reload()
    expect(page.locator('[data-alias="gpt-4o-mini"]')).to_contain_text(f"stands for {SMALL.name}")
    page.get_by_role("button", name="Remove gpt-4o-mini").click()
    asked = [("gpt-4o-mini", "alias", SMALL.name)] * 2 + [("gpt-4o-mini", "alias", "")]
    until(lambda: operator.asked == asked, lambda: str(operator.asked))


def test_a_user_sees_models_and_aliases_and_changes_nothing(visitor: Visitor, operator: FakeOperator, tmp_path: Path) -> None:
    visitor.expected.append("401")
    operator.listed = msgspec.structs.replace(operator.listed, aliases={"mini": MODEL.name})
    _, token = KeyStore(tmp_path).create("alice", 0.0)
    page = visitor.open("models")
    page.reload()
    page.get_by_label("Key", exact=True).fill(token)
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator('[data-alias="mini"]')).to_be_visible()
    expect(page.locator(f'[data-loaded="{MODEL.name}"]')).to_contain_text("mini")
    assert page.locator("main button").all_text_contents() == []


# A chat


def talk(page: Page) -> str:
    """What is answered: the name of the model that does."""
    page.get_by_role("textbox", name="Message").fill("Who are you?")
    page.keyboard.press("Enter")
    page.locator(".answer-figures").last.wait_for()
    return page.locator(".answer .markdown").last.text_content() or ""


def test_each_chat_talks_to_the_model_that_was_chosen_for_it(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open("chat")
    choice = page.get_by_label("Model", exact=True)
    names = [f"{MODEL.name}, the first", MODEL.name, SMALL.name, f"gpt-4o ({SMALL.name})"]
    expect(choice.locator("option")).to_have_text(names)
    expect(page.locator(".empty")).to_contain_text(f"Ask {MODEL.name} something")
    assert talk(page) == MODEL.name
    page.get_by_role("button", name="New chat").click()
    choice.select_option("gpt-4o")
    expect(page.locator(".empty")).to_contain_text("Ask gpt-4o something")
    assert talk(page) == SMALL.name
    assert {chat["settings"]["model"] for chat in chats(page)} == {"", "gpt-4o"}
    page.reload()
    page.get_by_role("button", name="Chats").click()
    kept = page.locator(".chats .name")
    for at, value, answer in ((0, "gpt-4o", SMALL.name), (1, "", MODEL.name)):
        kept.nth(at).click()
        expect(choice).to_have_value(value)
        expect(page.locator(".answer .markdown")).to_have_text(answer)
        page.get_by_role("button", name="Chats").click()
    kept.nth(1).click()
    choice.select_option(SMALL.name)
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".answer .markdown")).to_have_text(SMALL.name)


def test_a_model_that_is_gone_stays_chosen_in_its_chats_but_not_in_new_ones(visitor: Visitor, engines: list[Called]) -> None:
    page = visitor.open("chat")
    choice = page.get_by_label("Model", exact=True)
    choice.select_option(SMALL.name)
    assert talk(page) == SMALL.name
    alone = {"object": "list", "data": [{"id": MODEL.name, "root": MODEL.name}]}
    page.route("**/v1/models", lambda route: route.fulfill(json=alone))
    expect(choice.locator("option:checked")).to_have_text(f"{SMALL.name}, which is not served")
    page.get_by_role("button", name="New chat").click()
    expect(choice).to_have_count(0)
    assert talk(page) == MODEL.name


def test_the_lines_for_clients_name_the_model_that_was_chosen(visitor: Visitor) -> None:
    page = visitor.open("connect")
    lines = page.get_by_label("the lines for curl", exact=True)
    expect(lines).to_contain_text(f'"model":"{MODEL.name}"')
    page.get_by_label("Model", exact=True).select_option("gpt-4o")
    expect(lines).to_contain_text('"model":"gpt-4o"')


# Everybody can use it.


def test_axe_and_a_phone_find_nothing_wrong(visitor: Visitor, operator: FakeOperator) -> None:
    visitor.expected.append("404")
    operator.listed = msgspec.structs.replace(
        operator.listed,
        aliases={"gpt-4o": SMALL.name},
        loading=["tiny"],
        failed={"huge-405b": "it could not be loaded: 211 GiB are missing"},
    )
    for size in ((1280, 860), PHONE):
        page = visitor.open(f"cluster/{OTHER}", size=size)
        shows(page, OTHER, SMALL.name, SMALL.layers)
        for screen in ("cluster", "cluster/nothing", "models", "chat", "connect"):
            page.goto(f"{visitor.url}/console/#/{screen}")
            page.locator("main h1").wait_for()
            awaited = {"models": "[data-loaded]", "chat": ".chat-model", "connect": "select.client", "cluster/nothing": ".notice"}
            page.locator(awaited.get(screen, "tr[data-pipeline]")).first.wait_for()
            assert violations(page) == [] and overflow(page) == [], screen
        page.goto(f"{visitor.url}/console/#/models")
        page.get_by_role("button", name=f"Unload {MODEL.name}", exact=True).click()
        page.get_by_role("dialog").get_by_text("requests run").wait_for()
        assert violations(page) == []


def test_a_keyboard_is_enough_to_choose_a_pipeline_and_to_load_and_unload(visitor: Visitor, operator: FakeOperator) -> None:
    page = visitor.open()
    shows(page, FIRST, MODEL.name, MODEL.layers)
    tab_to(page, OTHER)
    page.keyboard.press("Enter")
    shows(page, OTHER, SMALL.name, SMALL.layers)
    assert focused(page) == OTHER  # the next Tab is to the next pipeline's, or to the machines
    page.goto(f"{visitor.url}/console/#/models")
    page.locator("[data-loaded]").first.wait_for()
    tab_to(page, f"Unload {MODEL.name}")
    page.keyboard.press("Enter")
    tab_to(page, "Unload it")
    page.keyboard.press("Enter")
    until(lambda: operator.asked == [(MODEL.name, "unload")], lambda: str(operator.asked))
    tab_to(page, f"Load {SMALL.name}")
    page.keyboard.press("Enter")
    tab_to(page, "Load it")
    page.keyboard.press("Enter")
    until(lambda: operator.asked[1:] == [(SMALL.name, "load", 0)], lambda: str(operator.asked))
