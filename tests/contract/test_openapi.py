"""The OpenAPI document is true: a fuzzer that is driven by it finds nothing else than what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from time import time
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode

from shoal.config import ApiSettings
from shoal.gateway.auth.key_store import KeyStore
from shoal.text.tools import HERMES
from tests.support import health_checks
from tests.support.app import app_of
from tests.support.batches import jsonl, line
from tests.support.document import CHECKS, document
from tests.support.engine import FakeEngine

pytestmark = pytest.mark.slow

FUZZ = settings(suppress_health_check=health_checks.EVERY)
OPEN = document(app_of(FakeEngine()))
FILE, BATCH, RESPONSE = "/v1/files/{id}", "/v1/batches/{id}", "/v1/responses/{id}"


def keeping(folder: Path) -> FastAPI:
    """The application that keeps files, batches and responses."""
    return app_of(FakeEngine(tools=HERMES), ApiSettings(data=str(folder)))


@pytest.fixture(scope="module")
def of_keeping(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return document(keeping(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a key, and its token."""
    store = KeyStore(tmp_path_factory.mktemp("keys"))
    yield store.path.parent, store.create("fuzzer", time())[1]
    store.close()


@pytest.fixture(scope="module")
def of_keyed(key: tuple[Path, str]) -> Any:
    return document(keeping(key[0]))


def fuzz_one(operation: Any, examples: int, check: Callable[[Any], None]) -> None:
    """With what the document allows and with what it does not."""

    @given(st.one_of([operation.as_strategy(generation_mode=mode) for mode in GenerationMode]))
    @settings(FUZZ, max_examples=examples)
    def check_all(case: Any) -> None:
        check(case)

    check_all()


def fuzz(schema: Any, examples: int, check: Callable[[Any], None]) -> None:
    """Every operation."""
    for found in schema.get_all_operations():
        fuzz_one(found.ok(), examples, check)


@pytest.mark.parametrize("operation", [pytest.param(found.ok(), id=found.ok().label) for found in OPEN.get_all_operations()])
def test_what_comes_back_is_what_the_document_says(operation: Any) -> None:
    fuzz_one(operation, 8, lambda case: case.call_and_validate(checks=CHECKS))


def test_so_it_is_where_things_are_kept(of_keeping: Any) -> None:
    kept = of_keeping.include(path_regex="^/v1/(files|batches|responses|streams)")
    fuzz(kept, 15, lambda case: case.call_and_validate(checks=CHECKS))


def test_so_it_is_where_a_key_is_needed(of_keyed: Any, key: tuple[Path, str]) -> None:
    fuzz(of_keyed, 2, lambda case: case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {key[1]}"}))


def test_whoever_has_no_key_is_told_so_where_one_is_needed(of_keyed: Any) -> None:
    def check(case: Any) -> None:
        answer = case.call_and_validate(checks=CHECKS, headers={"Authorization": "Bearer none"})
        open = case.operation.definition.raw.get("security") == []
        assert (answer.status_code == 401) != (open or answer.status_code == 400)

    fuzz(of_keyed, 1, check)


def test_every_endpoint_is_in_the_document(tmp_path: Path) -> None:
    app = keeping(tmp_path)
    routes = [route for route in iter_route_contexts(app.routes) if isinstance(route.original_route, APIRoute)]
    assert len(routes) > 20
    for route in routes:
        assert route.methods is not None
        for method in route.methods:
            operation = app.openapi()["paths"][route.path_format][method.lower()]
            answers = operation["responses"].get("200") or operation["responses"]["400"]  # what is always refused
            assert all(media.get("schema") or media.get("itemSchema") for media in answers["content"].values()), route.path


def test_what_is_there_is_shown_as_the_document_says(tmp_path: Path) -> None:
    """The fuzzer guesses no id."""
    told = document(keeping(tmp_path))

    def ask(method: str, path: str, id: str = "", **more: Any) -> Any:
        case = told[path][method].Case(path_parameters={"id": id} if id else {}, **more)
        answer = case.call_and_validate(checks=CHECKS)
        assert answer.status_code == 200, answer.text
        return answer

    def sent(path: str, body: dict[str, Any]) -> Any:
        return ask("POST", path, body=body, media_type="application/json")

    form = {"file": jsonl([line("a")]), "purpose": "batch"}
    file = ask("POST", "/v1/files", body=form, media_type="multipart/form-data").json()["id"]
    batch = sent("/v1/batches", {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h", "metadata": {"a": "b"}})
    items = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "3"}]},
    ]
    response = sent("/v1/responses", {"input": items}).json()["id"]

    for query in ({}, {"limit": 1, "order": "asc", "purpose": "batch"}):
        assert ask("GET", "/v1/files", query=query).json()["data"][0]["id"] == file
    assert ask("GET", FILE, file).json()["bytes"] == len(form["file"])
    assert ask("GET", f"{FILE}/content", file).content == form["file"]
    batch = batch.json()["id"]
    (listed,) = ask("GET", "/v1/batches").json()["data"]
    assert listed["id"] == ask("GET", BATCH, batch).json()["id"] == batch
    ended = told[f"{BATCH}/cancel"]["POST"].Case(path_parameters={"id": batch}).call_and_validate(checks=CHECKS)
    assert ended.status_code in (200, 409), ended.text  # it is at work, and may be quicker
    assert len(ask("GET", f"{RESPONSE}/input_items", response).json()["data"]) == len(items)
    assert ask("GET", RESPONSE, response).json()["output"][0]["content"][0]["text"] == "Hello"
    assert ask("DELETE", RESPONSE, response).json()["deleted"]


def test_while_the_document_is_made_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = Event(), Event()

    def slow(*given: Any) -> dict[str, Any]:
        asked.set()
        assert answered.wait(30)
        return {}

    monkeypatch.setattr("shoal.gateway.schema.contract._document", slow)
    app = app_of(FakeEngine())

    async def scenario() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shoal") as client:
            document = asyncio.ensure_future(client.get("/openapi.json"))
            await asyncio.to_thread(asked.wait, 30)
            assert (await client.get("/health/live")).status_code == 200
            answered.set()
            assert (await document).status_code == 200

    asyncio.run(scenario())


def test_a_key_is_optional_until_there_is_one(tmp_path: Path) -> None:
    app = keeping(tmp_path)
    assert app.openapi()["security"] == [{"key": []}, {"x-api-key": []}, {}]
    store = KeyStore(tmp_path)
    store.create("first", time())
    store.close()
    assert keeping(tmp_path).openapi()["security"] == [{"key": []}, {"x-api-key": []}]
    assert app.openapi()["paths"]["/health"]["get"]["security"] == []


def test_a_lie_would_be_noticed() -> None:
    """The checks are not blind: a document that promises something else is found out."""
    lying = app_of(FakeEngine())
    told = lying.openapi()
    told["components"]["schemas"]["Health"]["required"].append("never_there")
    told["components"]["schemas"]["Health"]["properties"]["never_there"] = {"type": "integer"}
    with pytest.raises(FailureGroup) as found:
        document(lying)["/health"]["GET"].Case().call_and_validate(checks=CHECKS)
    assert "never_there" in str(found.value.exceptions)


def test_what_the_document_does_not_know_would_be_noticed() -> None:
    lying = app_of(FakeEngine())
    health = lying.openapi()["components"]["schemas"]["Health"]
    del health["properties"]["reason"]
    health["required"].remove("reason")
    with pytest.raises(FailureGroup) as found:
        document(lying)["/health"]["GET"].Case().call_and_validate(checks=CHECKS)
    assert "reason" in str(found.value.exceptions)
