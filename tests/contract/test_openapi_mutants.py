"""Bodies that are good but for a field or two: what is behind validation answers as the document says, and never fails."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.config import ApiSettings
from shoal.text.tools import HERMES
from tests.support import health_checks
from tests.support.app import app_of
from tests.support.document import CHECKS, document
from tests.support.engine import FakeEngine, says

pytestmark = pytest.mark.slow

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "array", "items": {"$ref": "#/$defs/day"}}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"day": {"enum": ["mon", "tue", 3, None]}},
}
FUNCTION = {"name": "weather", "description": "Of a city.", "parameters": SCHEMA, "strict": True}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
SAMPLED = {
    "model": "fake",
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 3,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "logit_bias": {"65": 2.5, "7": -100},
    "service_tier": "flex",
    "user": "me",
}
CHAT: dict[str, Any] = {
    **SAMPLED,
    "messages": [
        {"role": "developer", "content": "Be brief.", "name": "d"},
        {"role": "user", "content": [{"type": "text", "text": "Where?"}, {"type": "text", "text": " And when?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ],
    "n": 2,
    "stop": ["\n\n", "END"],
    "max_completion_tokens": 20,
    "logprobs": True,
    "top_logprobs": 2,
}
CHAT_TOOLS = {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "auto", "parallel_tool_calls": True}
CHAT_CHOICE = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]},
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "description": "d", "schema": SCHEMA, "strict": True}}
COMPLETION: dict[str, Any] = {**SAMPLED, "max_tokens": 8, "n": 1, "best_of": 2, "logprobs": 2, "echo": True, "stop": "."}
RESPONSE: dict[str, Any] = {
    "model": "fake",
    "instructions": "Be brief.",
    "temperature": 0.3,
    "max_output_tokens": 9,
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Where?"}]},
        {"type": "message", "role": "assistant", "content": "In Rome.", "status": "completed", "id": "m"},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}", "id": "f"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "sunny"}]},
        {"role": "user", "content": "And now?"},
    ],
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": {"type": "function", "name": "weather"},
    "parallel_tool_calls": False,
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "metadata": {"a": "b"},
    "truncation": "disabled",
}
RESPONSE_FORMAT = {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA, "strict": True}, "verbosity": "medium"}
GOOD: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {**CHAT, **CHAT_TOOLS},
        {**CHAT, **CHAT_TOOLS, "tool_choice": CHAT_CHOICE, "stream": True, "stream_options": {"include_usage": True}},
        {**CHAT, "messages": CHAT["messages"][:2], "response_format": JSON_SCHEMA},
        {**CHAT, "messages": CHAT["messages"][:2], "response_format": {"type": "json_object"}, "n": 1},
    ],
    "/v1/completions": [
        {**COMPLETION, "prompt": ["One, ", "two, "]},
        {**COMPLETION, "prompt": [[72, 105], [7]], "max_tokens": 0},
        {**COMPLETION, "prompt": "One, ", "best_of": None, "n": 2, "stream": True, "stream_options": {"include_usage": True}},
    ],
    "/v1/responses": [
        RESPONSE,
        {**RESPONSE, "tool_choice": "required", "stream": True},
        {"input": "Hi", "tools": [{"type": "function", "name": "f", "parameters": {"x-limit": 5, "default": {"a": 1}}}]},
        {"input": "Hi", "text": RESPONSE_FORMAT, "store": False, "include": ["message.output_text.logprobs"]},
    ],
    "/v1/responses/input_tokens": [RESPONSE],
    "/v1/embeddings": [
        {"model": "fake", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 4, "user": "me"},
        {"input": [[1, 2], [3]], "encoding_format": "float"},
    ],
    "/v1/tokenize": [
        {"prompt": "Hi", "add_special_tokens": True, "return_token_strs": True},
        {"messages": CHAT["messages"], "tools": CHAT_TOOLS["tools"], "add_generation_prompt": False},
    ],
    "/v1/detokenize": [{"model": "fake", "tokens": [72, 105, 256]}],
    "/v1/batches": [{"input_file_id": "FILE", "endpoint": "/v1/completions", "completion_window": "24h", "metadata": {"a": "b"}}],
}
ENDPOINTS = list(GOOD)

NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 129, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.0, -0.0, 1.0, 0.5, 1e-310, 1e308, -2.5, 1e16])
TEXTS = st.sampled_from(
    ["", "a", "\x00", "\u2028", "😀", "é" * 300, "<end>", "<tool_call>", "auto", "required", "none", "{}", "[]", "x" * 5000]
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
KEYWORDS = st.sampled_from(
    ["type", "$ref", "pattern", "anyOf", "enum", "const", "minimum", "maxItems", "properties", "items", "not", "format", "minLength"]
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | TEXTS, inner, max_size=3), max_leaves=6
)

Place = tuple[Any, str | int]
"""A container, and the key of something in it."""


def places(value: Any) -> Iterator[Place]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def mutate(body: dict[str, Any], data: st.DataObject) -> None:
    """One field becomes another: removed, replaced, repeated, joined by a stranger, or what some other field is."""
    everywhere = list(places(body))
    if not everywhere:
        return
    container, key = everywhere[data.draw(st.integers(0, len(everywhere) - 1), "at")]
    match data.draw(st.sampled_from(["replace", "scalar", "remove", "repeat", "add", "graft"]), "how"):
        case "replace":
            container[key] = data.draw(VALUES)
        case "scalar":
            container[key] = data.draw(SCALARS)
        case "remove":
            del container[key]
        case "repeat" if isinstance(container, list):
            container *= data.draw(st.sampled_from([2, 3, 70]))
        case "add" if isinstance(container, dict):
            container[data.draw(KEYWORDS | TEXTS)] = data.draw(VALUES)
        case _:
            other, there = everywhere[data.draw(st.integers(0, len(everywhere) - 1), "from")]
            container[key] = copy.deepcopy(other[there])


def check_events(text: str) -> None:
    """Each event is JSON, and the stream comes to its end."""
    told = [part.partition("data: ")[2] for part in text.strip().split("\n\n")]
    for each in told:
        assert each == "[DONE]" or isinstance(json.loads(each), dict)
    last = {} if told[-1] == "[DONE]" else json.loads(told[-1])
    assert told[-1] == "[DONE]" or last["type"] in ("response.completed", "response.incomplete"), last


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The document of an application that has everything, and whose model says a call now and then."""
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    engine = FakeEngine(says("Hé😀llo", call, ""), tools=HERMES)
    return document(app_of(engine, ApiSettings(data=str(tmp_path_factory.mktemp("data")), responses=50, batch_queue=10_000)))


@pytest.fixture(scope="module")
def file(api: Any) -> str:
    """The id of one that was uploaded."""
    form = {"file": b"{}", "purpose": "batch"}
    return str(api["/v1/files"]["POST"].Case(body=form, media_type="multipart/form-data").call().json()["id"])


def ask(api: Any, path: str, body: dict[str, Any], file: str) -> Any:
    if body.get("input_file_id") == "FILE":
        body["input_file_id"] = file
    answer = api[path]["POST"].Case(body=body, media_type="application/json").call_and_validate(checks=CHECKS)
    if answer.status_code == 200 and body.get("stream"):
        check_events(answer.text)
    return answer


@pytest.mark.parametrize("path", ENDPOINTS)
def test_the_good_bodies_are_good(api: Any, path: str, file: str) -> None:
    for body in GOOD[path]:
        answer = ask(api, path, copy.deepcopy(body), file)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ENDPOINTS)
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=health_checks.EVERY)
def test_a_body_that_is_nearly_good_is_answered_or_refused_as_the_document_says(
    api: Any, path: str, file: str, data: st.DataObject
) -> None:
    body = copy.deepcopy(data.draw(st.sampled_from(GOOD[path])))
    for _ in range(data.draw(st.integers(1, 2))):
        mutate(body, data)
    assert ask(api, path, body, file).status_code in (200, 400, 404, 413, 429)
