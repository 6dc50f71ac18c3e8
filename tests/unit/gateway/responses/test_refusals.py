"""What the Responses API refuses, and by which name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.responses import PATH, WEATHER, ResponsesApi


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
def test_what_cannot_be_served_is_refused_by_name(api: Callable[..., ResponsesApi], fields: dict[str, Any], param: str, code: str | None):
    one = api()
    error = one.refused(400, json={"input": "Hi", **fields})
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert one.engine.streams == []


def test_what_asks_for_nothing_is_accepted(api: Callable[..., ResponsesApi]):
    inert = {"background": False, "reasoning": {"effort": None}, "truncation": "disabled", "tools": [], "include": [], "n": 1}
    assert api().create(**inert, stream_options=None, top_logprobs=0, text={}, parallel_tool_calls=True)["status"] == "completed"


def test_a_prompt_that_is_too_long_is_refused_as_input(api: Callable[..., ResponsesApi]):
    error = api(longest=20).refused(400, json={"input": "x" * 30})
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")


def test_another_model_is_refused(api: Callable[..., ResponsesApi]):
    assert api().refused(404, json={"input": "Hi", "model": "other"})["code"] == "model_not_found"


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"order": "up"}])
def test_a_query_that_makes_no_sense_is_refused_by_name(api: Callable[..., ResponsesApi], query: dict[str, str]):
    one = api()
    error = one.refused(400, "GET", f"{PATH}/{one.create()['id']}/input_items", params=query)
    assert error["param"] == next(iter(query)) and error["type"] == "invalid_request_error"


def test_only_what_a_response_has_can_be_included_when_it_is_retrieved(api: Callable[..., ResponsesApi]):
    one = api()
    where = f"{PATH}/{one.create()['id']}"
    assert one.refused(400, "GET", where, params={"include": "file_search_call.results"})["param"] == "include"
