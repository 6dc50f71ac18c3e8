"""Answers, whole and streamed, held strictly against the types of the openai package: every field there, of its type, and no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from openai.types import Batch, Completion, CreateEmbeddingResponse, FileDeleted, FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.compacted_response import CompactedResponse
from openai.types.responses.response_input_message_item import ResponseInputMessageItem
from openai.types.responses.response_item_list import ResponseItemList
from pydantic import BaseModel, TypeAdapter

from shoal.config import ApiSettings
from shoal.errors import StageLost
from shoal.gateway.app import create_app
from shoal.gateway.chat.answer import ChatAnswer
from shoal.gateway.responses.answer import CompactedAnswer, ResponseAnswer
from shoal.request import Request
from shoal.text.tools import HERMES
from tests.support.engine import FakeEngine, Item, Script, says, spoken
from tests.support.http import CHAT, COMPLETIONS, events, fetch

RESPONSES = "/v1/responses"
HI = [{"role": "user", "content": "Hi"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
FUNCTION = {"name": "weather", "description": "Of a city", "parameters": PARAMETERS}
TOOL, FLAT = {"type": "function", "function": FUNCTION}, {"type": "function", **FUNCTION, "strict": True}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
SCHEMA = {"name": "city", "schema": PARAMETERS, "strict": True}

OURS = {"presence_penalty", "frequency_penalty", "store"}
"""What a response has beyond the package's type: OpenAI's server sends it, and the Open Responses specification requires it."""
OF_EVENTS = {*OURS, "name", "bytes", "status"}
"""And its events: a call's name at its end, which earlier versions of the package require, tokens' bytes in deltas, a custom call's status."""
REQUIRED = {
    *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id", "instructions"),
    *("output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p", "presence_penalty"),
    *("frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage", "max_output_tokens", "max_tool_calls", "store"),
    *("background", "service_tier", "metadata", "safety_identifier", "prompt_cache_key"),
}
"""Of a response, by that specification."""


def unknown(value: Any, at: str = "") -> Iterator[str]:
    """Where a value has fields that its type does not."""
    if isinstance(value, BaseModel):
        yield from (f"{at}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from unknown(getattr(value, name), f"{at}.{name}")
    elif isinstance(value, list | tuple):
        for each in value:  # pyright: ignore[reportUnknownVariableType]
            yield from unknown(each, at)


def strictly(kind: Any, value: Any, *known: str) -> Any:
    """The value as the package's type. known: fields that it need not know."""
    parsed = TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    assert [name for name in unknown(parsed) if name.rpartition(".")[2] not in known] == []
    return parsed


def asked(path: str, body: dict[str, Any], script: Script | None = None) -> httpx.Response:
    answer = fetch(create_app(FakeEngine(script, tools=HERMES)), "POST", path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


def loses(request: Request) -> list[Item]:
    return [*spoken(request, "Hello")[:3], StageLost("node-1 is gone")]


CHATS: list[tuple[dict[str, Any], str]] = [
    ({}, "Hello"),
    ({"n": 3, "seed": 1, "temperature": 0.5}, "Hello"),
    ({"logprobs": True, "top_logprobs": 5}, "h\u00e9 \U0001f600"),
    ({"max_tokens": 2, "service_tier": "batch"}, "Hello"),
    ({"tools": [TOOL]}, f"So:{CALL}"),
    ({"tools": [TOOL], "tool_choice": "required", "logprobs": True}, CALL),
    ({"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, '{"city": "Paris"}'),
    ({"reasoning_effort": "low", "store": True, "metadata": {"a": "b"}}, "Hello"),
]


@pytest.mark.parametrize(("fields", "text"), CHATS)
def test_chat(fields: dict[str, Any], text: str) -> None:
    raw = asked(CHAT, {"messages": HI, **fields}, says(text)).json()
    ChatAnswer.model_validate(raw)  # and so the OpenAPI document tells it
    whole = strictly(ChatCompletion, raw)
    body = {"messages": HI, "stream": True, "stream_options": {"include_usage": True}, **fields}
    chunks = [strictly(ChatCompletionChunk, event) for event in events(asked(CHAT, body, says(text)))]
    assert chunks[-1].usage == whole.usage and whole.usage is not None
    for choice in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(c.delta.content or "" for c in mine) == (choice.message.content or "")
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]


@pytest.mark.parametrize(
    "fields", [{}, {"n": 2, "best_of": 2}, {"logprobs": 5, "echo": True}, {"max_tokens": 0, "echo": True, "logprobs": 0}, {"max_tokens": 2}]
)
def test_completions(fields: dict[str, Any]) -> None:
    whole = asked(COMPLETIONS, {"prompt": "Hi", **fields}).json()
    for choice in whole["choices"] if fields.get("echo") else ():
        assert [choice["logprobs"][name].pop(0) for name in ("token_logprobs", "top_logprobs")] == [None, None]  # nothing is before it
    strictly(Completion, whole, "service_tier")
    streamed = events(asked(COMPLETIONS, {"prompt": "Hi", "stream": True, **fields}))
    for event in streamed[:-1]:
        assert all(choice["finish_reason"] is None for choice in event["choices"]) or event["choices"][0]["finish_reason"] in (
            "stop",
            "length",
        )


CREATED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "Hello", "completed"),
    ({"user": "me", "instructions": "Be brief.", "metadata": {"a": "b"}, "safety_identifier": "x"}, "Hello", "completed"),
    ({"max_output_tokens": 2, "store": False, "service_tier": "batch"}, "Hello", "incomplete"),
    ({"include": ["message.output_text.logprobs"], "top_logprobs": 3}, "Hello", "completed"),
    ({"include": ["reasoning.encrypted_content"], "reasoning": {"effort": "high", "summary": "auto"}}, "Hello", "completed"),
    ({"tools": [FLAT]}, f"So:{CALL}", "completed"),
    ({"tools": [FLAT], "tool_choice": {"type": "function", "name": "weather"}, "parallel_tool_calls": False}, CALL, "completed"),
    ({"text": {"format": {"type": "json_schema", **SCHEMA}}}, '{"city": "Paris"}', "completed"),
    ({"presence_penalty": 0.5, "frequency_penalty": -0.5}, "Hello", "completed"),
]


@pytest.mark.parametrize(("fields", "text", "status"), CREATED)
def test_responses(fields: dict[str, Any], text: str, status: str) -> None:
    raw = asked(RESPONSES, {"input": "Hi", **fields}, says(text)).json()
    ResponseAnswer.model_validate(raw)
    whole = strictly(Response, raw, *OURS)
    assert raw.keys() >= REQUIRED and raw["usage"] is not None and raw.get("user") == fields.get("user") and raw.get("user", "") is not None
    assert (whole.status, whole.completed_at is not None) == (status, status == "completed")
    assert (raw["presence_penalty"], raw["frequency_penalty"]) == (fields.get("presence_penalty", 0), fields.get("frequency_penalty", 0))
    told = parsed_events(asked(RESPONSES, {"input": "Hi", "stream": True, **fields}, says(text)))
    in_order(told)
    assert told[-1].type == f"response.{status}" and told[-1].response.output_text == whole.output_text


def test_a_response_that_fails() -> None:
    told = parsed_events(asked(RESPONSES, {"input": "Hi", "stream": True}, loses))
    assert [event.type for event in told[-2:]] == ["error", "response.failed"]
    assert told[-1].response.error.message and told[-1].response.completed_at is None


def parsed_events(answer: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    for line in lines:
        response = json.loads(line).get("response")
        assert response is None or (response.keys() >= REQUIRED and response["usage"] is not None and response.get("user", "") is not None)
    return [strictly(ResponseStreamEvent, json.loads(line), *OF_EVENTS) for line in lines]


def in_order(told: list[Any]) -> None:
    """Every part opens within what holds it, grows, is told as a whole, and closes, before the next begins."""
    assert [event.sequence_number for event in told] == list(range(len(told)))
    assert [event.type for event in told[:2]] == ["response.created", "response.in_progress"]
    open_item: Any = None
    open_part = False
    grown = ""
    items = 0
    for event in told[2:-1]:
        match event.type.removeprefix("response."):
            case "output_item.added":
                assert open_item is None and event.output_index == items and event.item.status == "in_progress"
                open_item, grown, items = event.item, "", items + 1
            case "content_part.added":
                assert not open_part and event.item_id == open_item.id and event.part.text == ""
                open_part = True
            case "output_text.delta":
                assert open_part and event.item_id == open_item.id
                grown += event.delta
            case "function_call_arguments.delta" | "custom_tool_call_input.delta":
                assert not open_part and event.item_id == open_item.id and event.output_index == items - 1
                grown += event.delta
            case "output_text.done":
                assert open_part and event.text == grown
            case "content_part.done":
                assert open_part and event.part.text == grown
                open_part = False
            case "function_call_arguments.done":
                assert (event.arguments, event.name) == (grown, open_item.name)
            case "custom_tool_call_input.done":
                assert event.input == grown
            case "output_item.done":
                assert not open_part and event.item.id == open_item.id and event.output_index == items - 1
                open_item = None
            case other:
                pytest.fail(f"{other} in the middle")
    assert open_item is None and len(told[-1].response.output) == items


def test_what_is_kept_and_the_rest(tmp_path: Path) -> None:
    app = create_app(FakeEngine(), ApiSettings(data=str(tmp_path)))
    made = fetch(app, "POST", RESPONSES, json={"input": [{"role": "user", "content": "Hi"}]}).json()
    strictly(Response, fetch(app, "GET", f"{RESPONSES}/{made['id']}").json(), *OURS)
    strictly(ResponseItemList, fetch(app, "GET", f"{RESPONSES}/{made['id']}/input_items").json())
    strictly(Model, fetch(app, "GET", "/v1/models/fake").json(), "max_model_len", "root", "parent", "permission")
    strictly(CreateEmbeddingResponse, fetch(app, "POST", "/v1/embeddings", json={"input": "Hi"}).json())
    file = fetch(app, "POST", "/v1/files", data={"purpose": "batch"}, files={"file": b"{}"}).json()
    strictly(FileObject, file)
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    strictly(Batch, fetch(app, "POST", "/v1/batches", json=body).json())
    fetch(app, "POST", f"/v1/batches/{fetch(app, 'GET', '/v1/batches').json()['data'][0]['id']}/cancel")
    other = fetch(app, "POST", "/v1/files", data={"purpose": "batch"}, files={"file": b"{}"}).json()
    strictly(FileDeleted, fetch(app, "DELETE", f"/v1/files/{other['id']}").json())
    compacted = fetch(app, "POST", f"{RESPONSES}/compact", json={"model": "fake", "input": "Hi"}).json()
    CompactedAnswer.model_validate(compacted)
    strictly(ResponseInputMessageItem, compacted["output"].pop(0))  # the package's type of the list knows no user's messages
    strictly(CompactedResponse, compacted)
