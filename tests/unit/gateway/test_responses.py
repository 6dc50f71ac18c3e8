"""/v1/responses over an engine that says what it is told to: objects, events, errors, and conversations that go on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from time import time
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_item_list import ResponseItemList
from pydantic import TypeAdapter

from shoal.config import ApiSettings
from shoal.errors import CapacityError, QueueFull, StageLost
from shoal.gateway.app import create_app
from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.endpoints.responses import store
from shoal.gateway.endpoints.responses.route import page
from shoal.gateway.endpoints.responses.store import Bounds, ResponseStore
from shoal.gateway.http.in_process import InProcessClient
from shoal.text.tools import HERMES
from tests.support.engine import ByteTokenizer, FakeEngine, Resumed, Script, ScriptedStream, says, spoken
from tests.support.http import Leaver, eventually

PATH = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


class Api:
    """Requests to one application in one event loop."""

    def __init__(self, engine: FakeEngine, folder: Path, **settings: Any) -> None:
        self.engine = engine
        self.app: FastAPI = create_app(engine, ApiSettings(data=str(folder), **settings))
        self._runner = asyncio.Runner()
        self.close = self._runner.close
        self.headers: dict[str, str] = {}

    def run(self, work: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(10):
                return await work

        return self._runner.run(bounded())

    def fetch(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
                return await client.request(method, path, **{**options, "headers": {**self.headers, **options.get("headers", {})}})

        return self.run(go())

    def create(self, input: Any = "Hi", **fields: Any) -> dict[str, Any]:
        """A response, as the SDK understands it."""
        answer = self.fetch("POST", PATH, json={"input": input, **fields})
        assert answer.status_code == 200, answer.text
        Response.model_validate(answer.json(), strict=False)
        return answer.json()

    def stream(self, input: Any = "Hi", **fields: Any) -> list[dict[str, Any]]:
        return parsed(self.fetch("POST", PATH, json={"input": input, "stream": True, **fields}))

    def refused(self, status: int, method: str = "POST", path: str = PATH, **options: Any) -> dict[str, Any]:
        answer = self.fetch(method, path, **options)
        assert answer.status_code == status, answer.text
        return answer.json()["error"]

    def status(self, id: str) -> str:
        return self.fetch("GET", f"{PATH}/{id}").json()["status"]

    def prompt(self) -> str:
        """What the engine was asked last."""
        return ByteTokenizer().decode(self.engine.streams[-1].request.prompt)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Callable[..., Api]]:
    made: list[Api] = []

    def make(script: Script | None = None, *, tools: bool = False, **options: Any) -> Api:
        engine = FakeEngine(script, **options)
        if tools:
            engine.tokenizer = ByteTokenizer(HERMES)
        made.append(Api(engine, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.close()


def parsed(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events, each of which the SDK knows; their names, ids and numbers agree."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    out: list[dict[str, Any]] = []
    for block in answer.text.split("\n\n"):
        if block:
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            event = json.loads(fields["data"])
            assert fields["event"] == event["type"]
            assert fields.get("id", str(event["sequence_number"])) == str(event["sequence_number"])
            assert type(EVENT.validate_python(event)).__name__ != "BaseModel"
            out.append(event)
    numbers = [event["sequence_number"] for event in out]
    assert numbers == list(range(numbers[0], numbers[0] + len(out))) if out else True
    return out


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Their types without `response.`, a run of deltas as one."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for at, name in enumerate(names) if not (name.endswith("delta") and at and names[at - 1] == name)]


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output as a client puts it together from what is added and the deltas."""
    out: list[dict[str, Any]] = []
    for event in events:
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert event["output_index"] == len(out)
                out.append(json.loads(json.dumps(event["item"])))
            case "content_part.added":
                out[event["output_index"]]["content"].append(dict(event["part"]))
            case "output_text.delta":
                part = out[event["output_index"]]["content"][event["content_index"]]
                part["text"] += event["delta"]
                part["logprobs"] = [*part["logprobs"], *event["logprobs"]]
            case "function_call_arguments.delta":
                out[event["output_index"]]["arguments"] += event["delta"]
            case "output_item.done":
                out[event["output_index"]]["status"] = event["item"]["status"]
                assert out[event["output_index"]] == event["item"]
            case _:
                pass
    return out


def text(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


MESSAGE = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done", "output_item.done"]
CALLED = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]


# One response


def test_a_response_is_the_object_that_the_sdk_knows(api: Callable[..., Api]):
    made = api(says("Hello")).create(metadata={"k": "v"}, temperature=0.5, max_output_tokens=9, user="me")
    assert made["id"].startswith("resp_") and made["object"] == "response" and made["model"] == "fake"
    assert made["status"] == "completed" and made["error"] is None and made["incomplete_details"] is None
    assert (made["metadata"], made["temperature"], made["top_p"]) == ({"k": "v"}, 0.5, 1.0)
    assert (made["max_output_tokens"], made["store"], made["user"]) == (9, True, "me")
    (item,) = made["output"]
    assert item == {
        "id": item["id"],
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
    }
    assert made["usage"]["input_tokens"] == len("user: Hi\n") and made["usage"]["output_tokens"] == 6
    assert Response.model_validate(made).output_text == "Hello"


def test_an_answer_cut_by_max_output_tokens_is_incomplete(api: Callable[..., Api]):
    made = api(says("Hello there")).create(max_output_tokens=5)
    assert (made["status"], made["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert made["output"][0]["status"] == "incomplete" and text(made) == "Hello"


def test_instructions_come_first_as_system(api: Callable[..., Api]):
    one = api()
    one.create([{"role": "user", "content": "Hi"}], instructions="Be brief")
    assert one.prompt() == "system: Be brief\nuser: Hi\n"


@pytest.mark.parametrize(
    ("item", "line"),
    [
        ({"role": "user", "content": "A"}, "user: A\n"),
        ({"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "A"}]}, "system: A\n"),
        ({"role": "user", "content": [{"type": "input_text", "text": "A"}, {"type": "input_text", "text": "B"}]}, "user: AB\n"),
        (
            {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "phase": "final_answer"}
            | {"content": [{"type": "output_text", "text": "A", "annotations": [], "logprobs": []}]},
            "assistant: A\n",
        ),
    ],
)
def test_messages_are_understood_in_all_their_forms(api: Callable[..., Api], item: dict[str, Any], line: str):
    one = api()
    one.create([item, {"role": "user", "content": "Hi"}])
    assert one.prompt() == line + "user: Hi\n"


def test_logprobs_come_where_they_are_included(api: Callable[..., Api]):
    one, asked = api(says("Hi")), {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    scored = one.create(**asked)["output"][0]["content"][0]["logprobs"]
    assert [(entry["token"], entry["bytes"], len(entry["top_logprobs"])) for entry in scored] == [("H", [72], 2), ("i", [105], 2)]
    events = one.stream(**asked)
    told = [entry["token"] for event in events if event["type"] == "response.output_text.delta" for entry in event["logprobs"]]
    assert told == ["H", "i"]


# Events


def test_a_stream_tells_how_the_response_grows(api: Callable[..., Api]):
    events = api(says("Hello")).stream()
    assert kinds(events) == ["created", "in_progress", *MESSAGE, "completed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    created, last = events[0]["response"], events[-1]["response"]
    assert (created["status"], created["output"], created["completed_at"]) == ("in_progress", [], None)
    assert (created["usage"]["input_tokens"], created["usage"]["output_tokens"]) == (9, 0)
    assert last["status"] == "completed" and rebuilt(events) == last["output"] and text(last) == "Hello"


def test_a_stream_that_is_cut_ends_with_incomplete(api: Callable[..., Api]):
    events = api(says("Hello there")).stream(max_output_tokens=5)
    assert kinds(events)[-1] == "incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-2]["item"]["status"] == "incomplete"


def test_an_answer_of_nothing_is_an_empty_message(api: Callable[..., Api]):
    events = api(says("")).stream()
    assert kinds(events) == ["created", "in_progress", *(kind for kind in MESSAGE if not kind.endswith("delta")), "completed"]
    assert text(events[-1]["response"]) == ""


def test_a_stream_that_breaks_off_says_so_and_ends_with_failed(api: Callable[..., Api]):
    one = api(lambda request: [*spoken(request, "Hel")[:3], StageLost("stage 1: gone")])
    events = one.stream()
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert (events[-2]["message"], events[-2]["code"]) == ("stage 1: gone", "unavailable")
    failed = events[-1]["response"]
    assert (failed["status"], failed["error"]) == ("failed", {"code": "server_error", "message": "stage 1: gone"})
    kept = one.fetch("GET", f"{PATH}/{failed['id']}").json()
    assert (kept["status"], kept["error"], kept["output"]) == ("failed", failed["error"], [])


def test_a_whole_response_that_fails_is_an_error_and_not_gone_on_from(api: Callable[..., Api]):
    one = api(lambda request: [StageLost("stage 1: gone")])
    answer = one.fetch("POST", PATH, json={"input": "Hi"}, headers={"X-Request-Id": "mine"})
    assert answer.status_code == 503
    assert one.status("mine") == "failed"
    error = one.refused(400, json={"input": "Hi", "previous_response_id": "mine"})
    assert error["param"] == "previous_response_id" and "is failed" in error["message"]


@pytest.mark.slow
@settings(deadline=None)
@given(data=st.data())
def test_the_events_of_any_answer_build_the_response(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    said = data.draw(st.text(st.characters(codec="utf-8"), max_size=12)) + data.draw(
        st.sampled_from(["", CALL, f"{CALL}\n{CALL}", CALL[:-9]])
    )
    engine = FakeEngine(says(said))
    engine.tokenizer = ByteTokenizer(HERMES)
    one = Api(engine, tmp_path_factory.mktemp("data"))
    try:
        fields = {"tools": [WEATHER], "store": False, "max_output_tokens": data.draw(st.integers(1, 120))}
        events = one.stream(**fields)
        whole = one.create(**fields)
    finally:
        one.close()
    last = events[-1]["response"]
    assert rebuilt(events) == last["output"] and last["output"]

    def nameless(response: dict[str, Any]) -> list[dict[str, Any]]:
        return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in response["output"]]

    assert (nameless(whole), whole["status"], whole["usage"]) == (nameless(last), last["status"], last["usage"])


# Tools and structured output


def test_a_call_is_an_item_whose_arguments_are_streamed(api: Callable[..., Api]):
    events = api(says("Let me see. " + CALL), tools=True).stream("Weather?", tools=[WEATHER])
    assert kinds(events) == ["created", "in_progress", *MESSAGE, *CALLED, "completed"]
    message, call = events[-1]["response"]["output"]
    assert message["content"][0]["text"] == "Let me see."
    assert (call["type"], call["name"], json.loads(call["arguments"])) == ("function_call", "weather", {"city": "Paris"})
    assert rebuilt(events) == [message, call]
    done = next(event for event in events if event["type"] == "response.function_call_arguments.done")
    assert (done["name"], done["arguments"], done["item_id"]) == ("weather", call["arguments"], call["id"])


def test_several_calls_have_ids_of_their_own(api: Callable[..., Api]):
    made = api(says(f"{CALL}\n{CALL}"), tools=True).create("Weather?", tools=[WEATHER])
    first, second = made["output"]
    assert first["call_id"] != second["call_id"] and first["id"] != second["id"]


def test_a_result_of_a_call_goes_on_from_it(api: Callable[..., Api]):
    one = api(says(CALL), tools=True)
    made = one.create("Weather?", tools=[WEATHER])
    result = {"type": "function_call_output", "call_id": made["output"][0]["call_id"], "output": "sunny"}
    one.create([result], tools=[WEATHER], previous_response_id=made["id"])
    stored = one.prompt()
    one.create([{"role": "user", "content": "Weather?"}, *made["output"], result], tools=[WEATHER], store=False)
    assert one.prompt() == stored
    assert '"city": "Paris"' in stored and "tool: sunny (weather, " in stored


def test_what_is_asked_of_the_answer_becomes_its_grammar(api: Callable[..., Api]):
    one = api(says("{}"), tools=True)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    asked = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    made = one.create(text={"format": asked})
    assert '"integer"' in one.engine.streams[-1].request.sampling.grammar.replace("\\", "")
    assert made["text"]["format"] == asked
    one.create(text={"format": {"type": "json_object"}})
    assert one.engine.streams[-1].request.sampling.grammar
    one.create(text={"format": {"type": "text"}})
    assert not one.engine.streams[-1].request.sampling.grammar


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_tool_choice_makes_a_call_certain(api: Callable[..., Api], choice: Any):
    one = api(says(CALL), tools=True)
    made = one.create("Weather?", tools=[WEATHER], tool_choice=choice)
    assert made["tool_choice"] == choice and made["tools"][0]["name"] == "weather"
    assert "TEXT" not in one.engine.streams[-1].request.sampling.grammar


def test_no_tool_is_called_where_none_may_be(api: Callable[..., Api]):
    one = api(says(CALL), tools=True)
    made = one.create("Weather?", tools=[WEATHER], tool_choice="none")
    assert text(made) == CALL and "weather" not in one.prompt()


# Conversations


def test_a_conversation_goes_on_from_what_was_kept(api: Callable[..., Api]):
    one = api(says("Hello"))
    first = one.create("Hi", instructions="Be brief")
    second = one.create("And?", previous_response_id=first["id"])
    assert one.prompt() == "user: Hi\nassistant: Hello\nuser: And?\n"  # instructions hold for one response
    assert second["previous_response_id"] == first["id"]
    one.stream("More", previous_response_id=second["id"], instructions="Now in French")
    lines = ["system: Now in French", "user: Hi", "assistant: Hello", "user: And?", "assistant: Hello", "user: More"]
    assert one.prompt().splitlines() == lines


def test_an_answer_that_was_cut_can_be_gone_on_from(api: Callable[..., Api]):
    one = api(says("Hello"))
    cut = one.create("Hi", max_output_tokens=3)
    one.create("Go on", previous_response_id=cut["id"])
    assert one.prompt() == "user: Hi\nassistant: Hel\nuser: Go on\n"


def test_a_stream_is_kept_before_its_end_is_told(api: Callable[..., Api]):
    one = api(says("Hello"))
    id = one.stream()[-1]["response"]["id"]
    assert text(one.fetch("GET", f"{PATH}/{id}").json()) == "Hello"


def test_conversations_outlive_the_server(api: Callable[..., Api]):
    made = api(says("Hello")).create("Hi")
    later = api()
    later.create("And?", previous_response_id=made["id"])
    assert later.prompt() == "user: Hi\nassistant: Hello\nuser: And?\n"


def test_what_is_not_to_be_stored_is_not(api: Callable[..., Api], tmp_path: Path):
    one = api()
    made = one.create(store=False)
    assert not made["store"] and list(tmp_path.glob("responses*")) == []
    one.refused(404, "GET", f"{PATH}/{made['id']}")
    error = one.refused(400, json={"input": "Hi", "previous_response_id": made["id"]})
    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")


def test_where_none_are_kept_a_response_says_so(tmp_path: Path):
    one = Api(FakeEngine(), tmp_path, responses=0)
    try:
        assert one.create(store=True)["store"] is False
        assert list(tmp_path.glob("responses*")) == []
    finally:
        one.close()


def test_a_conversation_whose_beginning_was_deleted_says_so(api: Callable[..., Api]):
    one = api()
    first = one.create("Hi")
    second = one.create("And?", previous_response_id=first["id"])
    one.fetch("DELETE", f"{PATH}/{first['id']}")
    error = one.refused(400, json={"input": "More", "previous_response_id": second["id"]})
    assert error["code"] == "previous_response_not_found" and first["id"] in error["message"]


def test_an_item_may_be_referred_to(api: Callable[..., Api]):
    one = api(says("Hello"))
    made = one.create("Hi")
    one.create(
        [{"role": "user", "content": "Hi"}, {"type": "item_reference", "id": made["output"][0]["id"]}, {"role": "user", "content": "?"}]
    )
    assert one.prompt() == "user: Hi\nassistant: Hello\nuser: ?\n"
    assert "msg_nonsense_0" in one.refused(400, json={"input": [{"type": "item_reference", "id": "msg_nonsense_0"}]})["message"]


def test_a_chosen_id_is_the_responses_and_not_given_twice(api: Callable[..., Api]):
    one, mine = api(), {"X-Request-Id": "mine:1"}
    assert one.fetch("POST", PATH, json={"input": "Hi"}, headers=mine).json()["id"] == "mine:1"
    one.run(asyncio.sleep(0))
    assert one.refused(409, json={"input": "Hi"}, headers=mine)["code"] == "id_taken"
    made = one.create([{"type": "item_reference", "id": "msg_mine:1_0"}, {"role": "user", "content": "?"}])
    assert made["status"] == "completed"


# What is kept


def test_a_response_is_there_until_it_is_deleted(api: Callable[..., Api]):
    one = api()
    made = one.create(include=["message.output_text.logprobs"])
    where = f"{PATH}/{made['id']}"
    assert one.fetch("GET", where).json() == made
    assert one.fetch("DELETE", where).json() == {"id": made["id"], "object": "response", "deleted": True}
    for method, path in (("GET", where), ("DELETE", where), ("GET", f"{where}/input_items"), ("POST", f"{where}/cancel")):
        assert made["id"] in one.refused(404, method, path)["message"]


def test_input_items_are_listed_newest_first(api: Callable[..., Api]):
    one = api()
    made = one.create([{"role": "user", "content": str(i)} for i in range(3)])
    where = f"{PATH}/{made['id']}/input_items"
    listed = one.fetch("GET", where, params={"limit": 2}).json()
    ResponseItemList.model_validate(listed)
    assert [item["content"][0]["text"] for item in listed["data"]] == ["2", "1"] and listed["has_more"]
    rest = one.fetch("GET", where, params={"after": listed["last_id"]}).json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["0"] and not rest["has_more"]
    assert one.refused(400, "GET", where, params={"after": "nothing"})["param"] == "after"


@settings(deadline=None)
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


def test_a_response_that_runs_can_be_retrieved_and_streamed(api: Callable[..., Api]):
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


def test_the_rest_of_a_stream_comes_after_any_of_its_events(api: Callable[..., Api]):
    one, mine = api(says("Hello")), {"X-Request-Id": "mine"}
    all = parsed(one.fetch("POST", PATH, json={"input": "Hi", "stream": True}, headers=mine))
    for number in range(len(all)):
        rest = one.fetch("GET", f"{PATH}/mine", params={"stream": "true", "starting_after": number})
        assert parsed(rest) == all[number + 1 :]
        assert parsed(one.fetch("GET", "/v1/streams/mine", headers={"Last-Event-ID": str(number)})) == all[number + 1 :]
    assert parsed(one.fetch("GET", f"{PATH}/mine", params={"stream": "true"})) == all


def test_a_response_goes_on_when_the_server_is_started_anew(api: Callable[..., Api], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = api(lambda request: spoken(request, "Hello")[:2], hang=True)
    first.run(Leaver({"input": "Hi", "stream": True, "metadata": {"k": "v"}}, 6, headers={"X-Request-Id": "mine"}).visit(first.app, PATH))
    note, requests = first.engine.kept["mine"]
    monkeypatch.setattr(store, "_lives", lambda runner: False)  # the process that it began in
    assert first.run(asyncio.to_thread(ResponseStore(tmp_path, Bounds(9, 1 << 20, 1e9)).get, "mine")).response["status"] == "failed"

    async def later(words: str, hang: bool) -> tuple[dict[str, Any], str]:
        engine = FakeEngine()
        engine.before = [Resumed("mine", note, requests, [ScriptedStream(requests[0], spoken(requests[0], "Hello")[: len(words)], hang)])]
        transport = httpx.ASGITransport(create_app(engine, ApiSettings(data=str(tmp_path))))
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
            path = f"{PATH}/mine"
            events = "" if hang else (await client.get(path, params={"stream": "true", "starting_after": 3})).text
            return (await client.get(path)).json(), events

    assert first.run(later("Hel", hang=True))[0]["status"] == "in_progress"
    response, events = first.run(later("Hello!", hang=False))
    assert (text(response), response["status"], response["metadata"]) == ("Hello", "completed", {"k": "v"})
    assert [line for line in events.splitlines() if line.startswith("id: ")][:2] == ["id: 4", "id: 5"]


def test_every_process_knows_that_a_response_runs_whose_first_process_is_gone(
    api: Callable[..., Api], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        app = create_app(engine, ApiSettings(data=str(tmp_path)))
        await eventually(lambda: third.get("mine").response["status"] == "in_progress")
        (await app.state.service.answers.find("mine")).close()

    assert third.get("mine").response["status"] == "failed"
    first.run(second())


def test_a_request_that_is_cancelled_while_it_begins_leaves_nothing(api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch):
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
    one = Api(FakeEngine(), tmp_path, responses=0)
    response = one.fetch("POST", PATH, json={"input": "Hi"}).json()
    assert response["store"] is False
    one.refused(404, "GET", f"{PATH}/{response['id']}")
    one.refused(404, "DELETE", f"{PATH}/{response['id']}")
    assert one.refused(400, json={"input": "Hi", "previous_response_id": response["id"]})["code"] == "previous_response_not_found"
    assert not (tmp_path / "responses.sqlite").exists()
    one.close()


def test_a_response_whose_client_left_is_as_if_it_had_never_been(api: Callable[..., Api]):
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


def test_a_response_that_was_refused_leaves_its_id_free(api: Callable[..., Api]):
    one, mine = api(), {"X-Request-Id": "mine"}
    one.engine.refusal = QueueFull(1, 1)
    assert one.refused(429, json={"input": "Hi"}, headers=mine)["code"] == "queue_full"
    one.refused(404, "GET", f"{PATH}/mine")
    one.engine.refusal = None
    assert one.fetch("POST", PATH, json={"input": "Hi"}, headers=mine).status_code == 200


def test_a_response_may_be_deleted_while_it_runs(api: Callable[..., Api]):
    one = api(lambda request: spoken(request, "Hello")[:2], hang=True)
    one.run(Leaver({"input": "Hi", "stream": True}, 4, headers={"X-Request-Id": "mine"}).visit(one.app, PATH))
    assert one.fetch("DELETE", f"{PATH}/mine").status_code == 200
    one.refused(404, "GET", f"{PATH}/mine")


def test_where_nothing_can_be_kept_the_client_is_told(api: Callable[..., Api], tmp_path: Path):
    one = api()
    (tmp_path / "responses.sqlite").write_bytes(b"no database" * 1000)
    error = one.refused(503, json={"input": "Hi"})
    assert "store: false" in error["message"]
    assert one.create(store=False)["status"] == "completed"


def test_nobody_else_finds_a_response(api: Callable[..., Api], tmp_path: Path):
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


def test_the_tokens_of_a_request_are_counted_without_running_it(api: Callable[..., Api], tmp_path: Path):
    one = api()
    told = one.fetch("POST", f"{PATH}/input_tokens", json={"input": "Hi", "instructions": "Be brief"}).json()
    assert told == {"object": "response.input_tokens", "input_tokens": len("system: Be brief\nuser: Hi\n")}
    assert one.engine.streams == [] and list(tmp_path.glob("responses*")) == []


def test_a_response_that_cannot_be_kept_is_still_told(api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch):
    def full(self: ResponseStore, response: dict[str, Any]) -> None:
        raise CapacityError("the disk is full")

    monkeypatch.setattr(ResponseStore, "end", full)
    one = api(says("Hello"))
    assert text(one.create()) == "Hello"
    assert kinds(one.stream())[-1] == "completed"


# Refusals


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": []}, "input", None),
        ({"input": [{"type": "computer_call", "id": "x"}]}, "input.0", None),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", None),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0.type", None),
        ({"input": [{"role": "user", "content": "x", "weight": 1}]}, "input.0.weight", "unknown_parameter"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "no"}]}, "input", None),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input", None),
        ({"max_output_tokens": 0}, "max_output_tokens", None),
        ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", None),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", None),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", None),
        ({"include": ["file_search_call.results"]}, "include", "unsupported_parameter"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", None),
        ({"chat_template_kwargs": {"tone": "<end>"}}, "chat_template_kwargs", None),
        ({"input": [{"type": "compaction", "encrypted_content": "gAAAA"}]}, "input", None),
        ({"top_logprobs": 3}, "top_logprobs", None),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs", None),
        ({"metadata": {"k" * 65: "v"}}, "metadata", None),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", None),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", None),
        ({"tools": [WEATHER]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", None),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "nonsense"}}}}, "text.format", None),
        ({"text": {"verbosity": "low"}}, "text.verbosity", None),
        ({"previous_response_id": "resp_nothing"}, "previous_response_id", "previous_response_not_found"),
        ({"temperature": 9}, "temperature", None),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(api: Callable[..., Api], fields: dict[str, Any], param: str, code: str | None):
    one = api()
    error = one.refused(400, json={"input": "Hi", **fields})
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert one.engine.streams == []


def test_what_asks_for_nothing_is_accepted(api: Callable[..., Api]):
    inert = {"background": False, "reasoning": {"effort": None}, "truncation": "disabled", "tools": [], "include": [], "n": 1}
    assert api().create(**inert, stream_options=None, top_logprobs=0, text={}, parallel_tool_calls=True)["status"] == "completed"


def test_a_prompt_that_is_too_long_is_refused_as_input(api: Callable[..., Api]):
    error = api(longest=20).refused(400, json={"input": "x" * 30})
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")


def test_another_model_is_refused(api: Callable[..., Api]):
    assert api().refused(404, json={"input": "Hi", "model": "other"})["code"] == "model_not_found"


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"order": "up"}])
def test_a_query_that_makes_no_sense_is_refused_by_name(api: Callable[..., Api], query: dict[str, str]):
    one = api()
    error = one.refused(400, "GET", f"{PATH}/{one.create()['id']}/input_items", params=query)
    assert error["param"] == next(iter(query)) and error["type"] == "invalid_request_error"


def test_only_what_a_response_has_can_be_included_when_it_is_retrieved(api: Callable[..., Api]):
    one = api()
    where = f"{PATH}/{one.create()['id']}"
    assert one.refused(400, "GET", where, params={"include": "file_search_call.results"})["param"] == "include"
