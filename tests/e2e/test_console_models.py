"""The console in a browser, against a real cluster: a second model is loaded in it, talked to and unloaded while the first one serves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from shoal.folders import cache_dir
from tests.support import console_figures as expected
from tests.support.browser import Visitor, require
from tests.support.cluster import MODEL, Cluster, cluster, until
from tests.support.console_figures import figures
from tests.support.stores import ollama_store

pytestmark = [pytest.mark.slow, pytest.mark.real]

SECOND, ALIAS, QUESTION = "smol:135m", "gpt-4o-mini", "Name three rivers in Europe."


@pytest.fixture
def made(smollm2: Path, tmp_path: Path) -> Iterator[Cluster]:
    """One model on two nodes of `shoal up`; another is on the machine."""
    require()
    store = ollama_store(tmp_path / "ollama", {SECOND: smollm2.read_bytes()})
    with cluster(tmp_path) as made:
        own = {"SHOAL_HOME": str(tmp_path / "state"), "SHOAL_CACHE": str(cache_dir()), "OLLAMA_MODELS": str(store)}
        made.up("--model", MODEL, "--nodes", "2", "--memory", "4GiB", "--context", "1024", **own)
        made.until_ready()
        yield made


def api(made: Cluster, path: str) -> Any:
    answer = made.http.get(f"/operator/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def talk(page: Page) -> str:
    page.get_by_role("textbox", name="Message").fill(QUESTION)
    page.keyboard.press("Enter")
    page.locator(".answer-figures").last.wait_for()
    return page.locator(".answer .markdown").last.text_content() or ""


def compared(page: Page, made: Cluster, wanted: list[str], story: str) -> None:
    until(lambda: figures(page) == wanted, lambda: f"{story}:\n{figures(page)}\nis not\n{wanted}\n{made.story()}")


def test_a_second_model_is_loaded_talked_to_and_unloaded(browser: Browser, made: Cluster) -> None:
    visitor = Visitor(browser, made.url)
    visitor.expected.append("404")  # of the pipeline that goes while it is looked at
    page = visitor.open("models")
    expect(page.locator("[data-loaded]")).to_have_count(1)
    page.get_by_role("button", name=f"Load {SECOND}", exact=True).click()
    page.get_by_role("dialog").get_by_label("Copies").fill("1")
    page.get_by_role("dialog").get_by_role("button", name="Load it").click()
    until(lambda: len(api(made, "models")["loaded"]) == 2, made.story)
    name = api(made, "models")["loaded"][1]["name"]
    row = page.locator(f'[data-loaded="{name}"]')
    until(lambda: "serving" in (row.text_content() or ""), made.story)
    expect(page.get_by_role("button", name=f"Load {SECOND}", exact=True)).to_have_count(0)

    card = page.get_by_role("region", name="Aliases")
    card.get_by_label("Alias", exact=True).fill(ALIAS)
    card.get_by_label("Stands for").select_option(name)
    card.get_by_role("button", name="Add").click()
    expect(row).to_contain_text(ALIAS)
    compared(page, made, expected.models_page(api(made, "cluster"), api(made, "models")), "the page of the models")
    card.get_by_label("Alias", exact=True).fill(name)  # errors are the API's
    visitor.expected.append("409")
    card.get_by_role("button", name="Add").click()
    refused = made.http.post("/operator/models", json={"alias": name, "to": name}).json()["error"]["message"]
    expect(card.get_by_role("alert")).to_have_text(refused)

    page.goto(f"{made.url}/console/#/chat")
    page.get_by_label("Model", exact=True).select_option(ALIAS)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("12")
    page.get_by_role("button", name="Settings").click()
    with page.expect_request("**/v1/chat/completions") as asked:
        assert talk(page)
    assert json.loads(asked.value.post_data or "")["model"] == ALIAS
    made.until_idle()
    assert made.total("generated_tokens_total", model=name) == 12 and made.total("generated_tokens_total") == 12

    page.goto(f"{made.url}/console/#/cluster")
    page.get_by_role("link", name=f"{name}/1").click()
    expect(page.locator('[data-figure="model"]')).to_contain_text(f"of {name},")
    page.reload()
    expect(page.locator('[data-figure="model"]')).to_contain_text(f"of {name},")

    def shown() -> list[str]:
        return expected.cluster_page(api(made, f"cluster?pipeline={name}/1"), {})

    until(lambda: figures(page) == shown(), lambda: f"{figures(page)}\nis not\n{shown()}")

    other = visitor.open("models")
    other.get_by_role("button", name=f"Unload {name}", exact=True).click()
    expect(other.get_by_role("dialog")).to_contain_text("No request runs.")
    other.get_by_role("dialog").get_by_role("button", name="Unload it").click()
    expect(other.locator("[data-loaded]")).to_have_count(1)
    expect(page.locator('[data-figure="gone"]')).to_contain_text(f"{name}/1 is gone")
    expect(page.locator('[data-figure="model"]')).to_contain_text(f"of {MODEL},")
    expect(page.get_by_role("navigation", name="Pipelines")).to_have_count(0)
    page.goto(f"{made.url}/console/#/chat")
    page.get_by_role("button", name="New chat").click()
    assert talk(page)
    visitor.check()
