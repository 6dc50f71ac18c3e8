"""Answers, whole and streamed, held strictly against the types of the openai package: every field there, of its type, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from openai.types import Batch, Completion, CreateEmbeddingResponse, FileDeleted, FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from openai.types.responses.compacted_response import CompactedResponse
from openai.types.responses.response_input_message_item import ResponseInputMessageItem
from openai.types.responses.response_item_list import ResponseItemList

from shoal.config import ApiSettings
from shoal.errors import StageLost
from shoal.gateway.endpoints.chat.answer import ChatAnswer
from shoal.gateway.endpoints.responses.answer import CompactedAnswer, ResponseAnswer
from shoal.request import Request
from shoal.text.tools import HERMES
from tests.support.app import app_of
from tests.support.engine import FakeEngine, Item, Script, says, spoken
from tests.support.http import CHAT, COMPLETIONS, events, fetch
from tests.support.openai_types import OURS, REQUIRED, in_order, parsed_events, strictly

RESPONSES = "/v1/responses"
HI = [{"role": "user", "content": "Hi"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
FUNCTION = {"name": "weather", "description": "Of a city", "parameters": PARAMETERS}
TOOL, FLAT = {"type": "function", "function": FUNCTION}, {"type": "function", **FUNCTION, "strict": True}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
SCHEMA = {"name": "city", "schema": PARAMETERS, "strict": True}


def asked(path: str, body: dict[str, Any], script: Script | None = None) -> httpx.Response:
    answer = fetch(app_of(FakeEngine(script, tools=HERMES)), "POST", path, json=body)
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


def test_what_is_kept_and_the_rest(tmp_path: Path) -> None:
    app = app_of(FakeEngine(), ApiSettings(data=str(tmp_path)))
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
