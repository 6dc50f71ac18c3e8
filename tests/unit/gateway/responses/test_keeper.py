"""What is kept of a response: while it runs, after a restart, and for whom."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses.response_item_list import ResponseItemList

from shoal.config import ApiSettings
from shoal.errors import CapacityError, QueueFull
from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.endpoints.responses import store
from shoal.gateway.endpoints.responses.route import page
from shoal.gateway.endpoints.responses.store import Bounds, ResponseStore
from shoal.gateway.http.in_process import InProcessClient
from tests.support.app import app_of
from tests.support.engine import FakeEngine, Resumed, ScriptedStream, says, spoken
from tests.support.http import Leaver, eventually
from tests.support.responses import PATH, ResponsesApi, kinds, parsed, text


def test_a_response_is_there_until_it_is_deleted(api: Callable[..., ResponsesApi]):
    one = api()
    made = one.create(include=["message.output_text.logprobs"])
    where = f"{PATH}/{made['id']}"
    assert one.fetch("GET", where).json() == made
    assert one.fetch("DELETE", where).json() == {"id": made["id"], "object": "response", "deleted": True}
    for method, path in (("GET", where), ("DELETE", where), ("GET", f"{where}/input_items"), ("POST", f"{where}/cancel")):
        assert made["id"] in one.refused(404, method, path)["message"]


def test_input_items_are_listed_newest_first(api: Callable[..., ResponsesApi]):
    one = api()
    made = one.create([{"role": "user", "content": str(i)} for i in range(3)])
    where = f"{PATH}/{made['id']}/input_items"
    listed = one.fetch("GET", where, params={"limit": 2}).json()
    ResponseItemList.model_validate(listed)
    assert [item["content"][0]["text"] for item in listed["data"]] == ["2", "1"] and listed["has_more"]
    rest = one.fetch("GET", where, params={"after": listed["last_id"]}).json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["0"] and not rest["has_more"]
    assert one.refused(400, "GET", where, params={"after": "nothing"})["param"] == "after"


@given(count=st.integers(0, 30), limit=st.integers(1, 10), order=st.sampled_from(["asc", "desc"]))
def test_pages_joined_are_the_list(count: int, limit: int, order: str):
    items = [{"id": f"i{n}"} for n in range(count)]
    seen: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        one = page(items, limit, order, after)
        seen += one["data"]
        after = one["last_id"]
        if not one["has_more"]:
            break
    assert seen == (items if order == "asc" else items[::-1])


def test_a_response_that_runs_can_be_retrieved_and_streamed(api: Callable[..., ResponsesApi]):
    one = api(lambda request: spoken(request, "Hello")[:2], hang=True)

    async def visit() -> None:
        leaver = Leaver({"input": "Hi", "stream": True}, 6, headers={"X-Request-Id": "mine"})
        await leaver.visit(one.app, PATH)

    one.run(visit())  # named: it goes on
    assert one.status("mine") == "in_progress"
    error = one.refused(400, json={"input": "Hi", "previous_response_id": "mine"})
    assert "in progress" in error["message"]
    assert one.refused(400, "POST", f"{PATH}/mine/cancel")["param"] == "id"

    async def come_back() -> bytes:
        seen: list[bytes] = []
        left = asyncio.Event()

        async def send(message: Any) -> None:
            seen.append(message.get("body", b""))
            if b'"delta":"e"' in seen[-1]:
                left.set()

        async def receive() -> Any:
            await left.wait()
            return {"type": "http.disconnect"}

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
        }
        where = {"path": f"{PATH}/mine", "raw_path": b"", "root_path": "", "query_string": b"stream=true&starting_after=3", "headers": []}
        await one.app({**scope, **where}, receive, send)
        return b"".join(seen)

    again = one.run(come_back()).decode()
    assert [int(line.removeprefix("id: ")) for line in again.splitlines() if line.startswith("id: ")] == [4, 5]


def test_the_rest_of_a_stream_comes_after_any_of_its_events(api: Callable[..., ResponsesApi]):
    one, mine = api(says("Hello")), {"X-Request-Id": "mine"}
    all = parsed(one.fetch("POST", PATH, json={"input": "Hi", "stream": True}, headers=mine))
    for number in range(len(all)):
        rest = one.fetch("GET", f"{PATH}/mine", params={"stream": "true", "starting_after": number})
        assert parsed(rest) == all[number + 1 :]
        assert parsed(one.fetch("GET", "/v1/streams/mine", headers={"Last-Event-ID": str(number)})) == all[number + 1 :]
    assert parsed(one.fetch("GET", f"{PATH}/mine", params={"stream": "true"})) == all


def test_a_response_goes_on_when_the_server_is_started_anew(
    api: Callable[..., ResponsesApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = api(lambda request: spoken(request, "Hello")[:2], hang=True)
    first.run(Leaver({"input": "Hi", "stream": True, "metadata": {"k": "v"}}, 6, headers={"X-Request-Id": "mine"}).visit(first.app, PATH))
    note, requests = first.engine.kept["mine"]
    monkeypatch.setattr(store, "_lives", lambda runner: False)  # the process that it began in
    assert first.run(asyncio.to_thread(ResponseStore(tmp_path, Bounds(9, 1 << 20, 1e9)).get, "mine")).response["status"] == "failed"

    async def later(words: str, hang: bool) -> tuple[dict[str, Any], str]:
        engine = FakeEngine()
        engine.before = [Resumed("mine", note, requests, [ScriptedStream(requests[0], spoken(requests[0], "Hello")[: len(words)], hang)])]
        transport = httpx.ASGITransport(app_of(engine, ApiSettings(data=str(tmp_path))))
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
            path = f"{PATH}/mine"
            events = "" if hang else (await client.get(path, params={"stream": "true", "starting_after": 3})).text
            return (await client.get(path)).json(), events

    assert first.run(later("Hel", hang=True))[0]["status"] == "in_progress"
    response, events = first.run(later("Hello!", hang=False))
    assert (text(response), response["status"], response["metadata"]) == ("Hello", "completed", {"k": "v"})
    assert [line for line in events.splitlines() if line.startswith("id: ")][:2] == ["id: 4", "id: 5"]


def test_every_process_knows_that_a_response_runs_whose_first_process_is_gone(
    api: Callable[..., ResponsesApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "_this_process", lambda: "1 first")
    first = api(lambda request: spoken(request, "Hello")[:2], hang=True)
    first.run(Leaver({"input": "Hi", "stream": True}, 6, headers={"X-Request-Id": "mine"}).visit(first.app, PATH))
    note, requests = first.engine.kept["mine"]
    monkeypatch.setattr(store, "_this_process", lambda: "2 second")
    monkeypatch.setattr(store, "_lives", lambda runner: runner == "2 second")
    third = ResponseStore(tmp_path, Bounds(9, 1 << 20, 1e9))

    async def second() -> None:
        engine = FakeEngine()
        engine.before = [Resumed("mine", note, requests, [ScriptedStream(requests[0], spoken(requests[0], "Hel")[:3], True)])]
        app = app_of(engine, ApiSettings(data=str(tmp_path)))
        await eventually(lambda: third.get("mine").response["status"] == "in_progress")
        (await app.state.service.answers.find("mine")).close()

    assert third.get("mine").response["status"] == "failed"
    first.run(second())


def test_a_request_that_is_cancelled_while_it_begins_leaves_nothing(api: Callable[..., ResponsesApi], monkeypatch: pytest.MonkeyPatch):
    entered, go_on = threading.Event(), threading.Event()
    begin, stores = ResponseStore.begin, list[ResponseStore]()

    def slowly(store: ResponseStore, *arguments: Any) -> None:
        stores.append(store)
        entered.set()
        assert go_on.wait(10)
        begin(store, *arguments)

    async def work() -> None:
        asking = asyncio.ensure_future(InProcessClient(one.app).post(PATH, b'{"input": "Hi"}'))
        await asyncio.to_thread(entered.wait, 10)
        asking.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await asking

    monkeypatch.setattr(ResponseStore, "begin", slowly)
    one = api()
    one.run(work())
    with stores[0]._transaction() as connection:
        assert connection.execute("SELECT id FROM responses").fetchall() == []
    assert one.engine.streams == []


def test_where_nothing_is_kept_nothing_is_read_or_written(tmp_path: Path):
    one = ResponsesApi(FakeEngine(), tmp_path, responses=0)
    response = one.fetch("POST", PATH, json={"input": "Hi"}).json()
    assert response["store"] is False
    one.refused(404, "GET", f"{PATH}/{response['id']}")
    one.refused(404, "DELETE", f"{PATH}/{response['id']}")
    assert one.refused(400, json={"input": "Hi", "previous_response_id": response["id"]})["code"] == "previous_response_not_found"
    assert not (tmp_path / "responses.sqlite").exists()
    one.close()


def test_a_response_whose_client_left_is_as_if_it_had_never_been(api: Callable[..., ResponsesApi]):
    one = api(lambda request: spoken(request, "Hello")[:2], hang=True)
    leaver = Leaver({"input": "Hi", "stream": True}, 4)
    one.run(leaver.visit(one.app, PATH))
    (id,) = {
        json.loads(line[6:])["response"]["id"]
        for m in leaver.sent
        for line in m.get("body", b"").decode().splitlines()
        if '"response":' in line
    }

    while one.fetch("GET", f"{PATH}/{id}").status_code != 404:
        one.run(asyncio.sleep(0.01))
    assert one.engine.streams[0].closed


def test_a_response_that_was_refused_leaves_its_id_free(api: Callable[..., ResponsesApi]):
    one, mine = api(), {"X-Request-Id": "mine"}
    one.engine.refusal = QueueFull(1, 1)
    assert one.refused(429, json={"input": "Hi"}, headers=mine)["code"] == "queue_full"
    one.refused(404, "GET", f"{PATH}/mine")
    one.engine.refusal = None
    assert one.fetch("POST", PATH, json={"input": "Hi"}, headers=mine).status_code == 200


def test_a_response_may_be_deleted_while_it_runs(api: Callable[..., ResponsesApi]):
    one = api(lambda request: spoken(request, "Hello")[:2], hang=True)
    one.run(Leaver({"input": "Hi", "stream": True}, 4, headers={"X-Request-Id": "mine"}).visit(one.app, PATH))
    assert one.fetch("DELETE", f"{PATH}/mine").status_code == 200
    one.refused(404, "GET", f"{PATH}/mine")


def test_where_nothing_can_be_kept_the_client_is_told(api: Callable[..., ResponsesApi], tmp_path: Path):
    one = api()
    (tmp_path / "responses.sqlite").write_bytes(b"no database" * 1000)
    error = one.refused(503, json={"input": "Hi"})
    assert "store: false" in error["message"]
    assert one.create(store=False)["status"] == "completed"


def test_nobody_else_finds_a_response(api: Callable[..., ResponsesApi], tmp_path: Path):
    keys = KeyStore(tmp_path)
    alice, bob = ({"Authorization": f"Bearer {keys.create(name, time())[1]}"} for name in ("alice", "bob"))
    one = api(says("Hello"))
    one.headers = alice
    made = one.create()
    one.create("And?", previous_response_id=made["id"])
    one.headers = bob
    where = f"{PATH}/{made['id']}"
    for method, path in (("GET", where), ("DELETE", where), ("GET", f"{where}/input_items"), ("GET", f"{where}?stream=true")):
        one.refused(404, method, path)
    assert one.refused(400, json={"input": "Hi", "previous_response_id": made["id"]})["code"] == "previous_response_not_found"
    assert one.refused(400, json={"input": [{"type": "item_reference", "id": made["output"][0]["id"]}]})["param"] == "input"
    one.headers = alice
    assert one.status(made["id"]) == "completed"


def test_the_tokens_of_a_request_are_counted_without_running_it(api: Callable[..., ResponsesApi], tmp_path: Path):
    one = api()
    told = one.fetch("POST", f"{PATH}/input_tokens", json={"input": "Hi", "instructions": "Be brief"}).json()
    assert told == {"object": "response.input_tokens", "input_tokens": len("system: Be brief\nuser: Hi\n")}
    assert one.engine.streams == [] and list(tmp_path.glob("responses*")) == []


def test_a_response_that_cannot_be_kept_is_still_told(api: Callable[..., ResponsesApi], monkeypatch: pytest.MonkeyPatch):
    def full(self: ResponseStore, response: dict[str, Any]) -> None:
        raise CapacityError("the disk is full")

    monkeypatch.setattr(ResponseStore, "end", full)
    one = api(says("Hello"))
    assert text(one.create()) == "Hello"
    assert kinds(one.stream())[-1] == "completed"
