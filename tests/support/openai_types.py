"""Answers as the SDK's own types take them, strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx2 as httpx
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

OURS = {"presence_penalty", "frequency_penalty", "store"}
"""What a response has beyond the package's type: OpenAI's server sends it, and the Open Responses specification requires it."""


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """That of all events takes longer to make than all of them to read."""
    return TypeAdapter(kind)


def strictly(kind: Any, value: Any, *known: str) -> Any:
    """The value as the package's type. known: fields that it need not know."""
    parsed = _adapter(kind).validate_json(json.dumps(value), strict=True)
    assert [name for name in unknown(parsed) if name.rpartition(".")[2] not in known] == []
    return parsed


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
        for each in value:
            yield from unknown(each, at)
