"""What is refused of tools and messages in chat, and by which name."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import InvalidRequest
from shoal.gateway.answers.conversation import MAX_MESSAGES
from shoal.gateway.endpoints.chat.job import chat_job
from shoal.gateway.endpoints.chat.wire import ChatRequest
from shoal.gateway.schema.wire import parse
from shoal.text.answer_grammar import MAX_TOOLS
from shoal.text.tools import HERMES, LLAMA3, MISTRAL, ToolFormat
from tests.support.engine import FakeEngine, able
from tests.support.http import HI, refused
from tests.support.letters import accepts
from tests.support.tools import CALLED, CITY, NOW, RESULT, ask

# What is refused


def test_tools_of_a_model_without_are_refused_and_why() -> None:
    assert "--chat-template" in refused(ask(FakeEngine()), 400, "tools", "unsupported_parameter")


def test_calls_in_messages_for_a_model_without_tools_are_refused() -> None:
    assert "no tools" in refused(ask(FakeEngine(), [*HI, CALLED, RESULT], tools=None), 400, "messages.1")


def function(**fields: Any) -> list[Any]:
    return [{"type": "function", "function": fields}]


WRONG_TOOLS: list[tuple[dict[str, Any], str]] = [
    ({"tools": function(name="")}, "tools.0.function.name"),
    ({"tools": function(name="a b")}, "tools.0.function.name"),
    ({"tools": function(name="f" * 65)}, "tools.0.function.name"),
    ({"tools": function(name="f", parameters=5)}, "tools.0.function.parameters"),
    ({"tools": function(name="f", parameters={"type": "string"})}, "tools.0.function.parameters"),
    ({"tools": function(name="f", parameters={"type": "object", "properties": {"x": {"type": "nothing"}}})}, "tools"),
    ({"tools": [NOW, NOW]}, "tools.1.function.name"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tools": [{"type": "web_search", "function": {"name": "x"}}]}, "tools.0.type"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0.custom.name"),
    ({"tools": [*function(name="f"), 5]}, "tools.1"),
    ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(MAX_TOOLS + 1)]}, "tools"),
    ({"tools": None, "tool_choice": "required"}, "tool_choice"),
    ({"tools": None, "tool_choice": NOW}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}, "tool_choice.allowed_tools.tools"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG_TOOLS)
def test_wrong_tools_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    engine = able()
    refused(ask(engine, **fields), 400, param)
    assert not engine.streams


ANSWER = {**CITY, "additionalProperties": False}


@pytest.mark.parametrize("format", [HERMES, MISTRAL])
def test_an_answer_of_a_schema_or_a_call_is_possible_and_nothing_else(format: ToolFormat) -> None:
    engine = able(format=format)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": ANSWER, "strict": True}}
    ask(engine, response_format=schema, tools=[NOW])
    call = f"{format.opening}{format.begin}now{format.middle}{{}}{format.end}{format.closing}"
    texts = [call, '{"city": "Rome"}', "It rains.", '{"city": 1}', "Look: " + call]
    assert [accepts(engine.asked.sampling.grammar, text) for text in texts] == [True, True, False, False, False]


def test_where_calls_are_bare_json_an_answer_in_json_is_refused() -> None:
    refused(ask(able(format=LLAMA3), response_format={"type": "json_object"}), 400, "response_format")
    assert ask(able(format=LLAMA3), response_format={"type": "json_object"}, tool_choice="required").status_code == 200


@pytest.mark.parametrize("number", [10**30, -(10**30), 1e300])
def test_numbers_of_any_size_may_be_in_a_schema(number: float) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "number", "maximum": number, "minimum": number - 1}}}
    assert ask(able(), tools=function(name="f", parameters=parameters)).status_code in (200, 400)


def test_a_strict_function_whose_schema_cannot_be_held_is_refused() -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    refused(ask(able(), tools=function(name="f", strict=True, parameters=parameters)), 400, "tools")
    assert ask(able(), tools=function(name="f", strict=False, parameters=parameters)).status_code == 200


def call(**fields: Any) -> dict[str, Any]:
    made = {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}, **fields}
    return {"role": "assistant", "tool_calls": [made]}


WRONG_MESSAGES: list[tuple[Any, str, str | None]] = [
    ({"role": "assistant"}, "messages.1.content", None),
    ({"role": "assistant", "tool_calls": []}, "messages.1.content", None),
    ({"role": "user"}, "messages.1.content", None),
    ({"role": "user", "content": "x", "tool_calls": CALLED["tool_calls"]}, "messages.1.tool_calls", None),
    ({"role": "user", "content": "x", "tool_call_id": "a"}, "messages.1.tool_call_id", None),
    ({"role": "user", "content": "x", "refusal": "no"}, "messages.1.refusal", None),
    ({"role": "tool", "content": "x"}, "messages.1.tool_call_id", None),
    ({"role": "tool", "content": "x", "tool_call_id": "unheard of"}, "messages.1.tool_call_id", None),
    ({"role": "function", "name": "f", "content": "x"}, "messages.1.role", "unsupported_parameter"),
    ({"role": "wizard", "content": "x"}, "messages.1.role", None),
    ({"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}, "messages.1.function_call", "unsupported_parameter"),
    ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "messages.1.audio", None),
    ({"role": "assistant", "content": "x", "thoughts": "y"}, "messages.1.thoughts", "unknown_parameter"),
    (call(function={"name": "f", "arguments": "{"}), "messages.1.tool_calls.0.function.arguments", None),
    (call(function={"name": "f", "arguments": "[]"}), "messages.1.tool_calls.0.function.arguments", None),
    (call(function={"name": "f", "arguments": "[" * 5000}), "messages.1.tool_calls.0.function.arguments", None),
    (call(function={"name": "f", "arguments": {}}), "messages.1.tool_calls.0.function.arguments", None),
    (call(function={"name": "f f", "arguments": "{}"}), "messages.1.tool_calls.0.function.name", None),
    (call(id=""), "messages.1.tool_calls.0.id", None),
    (call(type="web_search"), "messages.1.tool_calls.0.type", None),
    (call(type="custom"), "messages.1.tool_calls.0.custom", None),
]


@pytest.mark.parametrize(("message", "param", "code"), WRONG_MESSAGES)
def test_wrong_messages_are_refused_by_name(message: Any, param: str, code: str | None) -> None:
    engine = able()
    refused(ask(engine, [*HI, message]), 400, param, code)
    assert not engine.streams


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_audio", "input_audio": {}}, {"type": "file", "file": {}}]
)
def test_parts_that_are_no_text_are_refused_and_why(part: dict[str, Any]) -> None:
    answer = ask(able(), [{"role": "user", "content": [{"type": "text", "text": "Look:"}, part]}])
    message = refused(answer, 400, "messages.0.content.1.type", "unsupported_parameter")
    assert part["type"] in message and "reads text" in message


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "text"}, "messages.0.content.0"),
        ({"type": "text", "text": "a", "refusal": "b"}, "messages.0.content.0"),
        ({"type": "refusal", "refusal": "no"}, "messages.0.content.0.type"),
        ({"text": "a"}, "messages.0.content.0.type"),
        ("a", "messages.0.content.0"),
    ],
)
def test_parts_that_do_not_hold_together_are_refused(part: Any, param: str) -> None:
    refused(ask(able(), [{"role": "user", "content": [part]}]), 400, param)


def test_too_many_messages_are_refused() -> None:
    refused(ask(able(longest=100_000), HI * (MAX_MESSAGES + 1)), 400, "messages")


# Long prompts


def test_a_prompt_that_is_too_long_is_refused_with_its_length() -> None:
    message = refused(
        ask(able(longest=40), [{"role": "user", "content": "x" * 40}], tools=None), 400, "messages", "context_length_exceeded"
    )
    assert "47 tokens" in message


def test_a_prompt_that_is_far_too_long_is_refused_without_tokenising_it() -> None:
    engine = able(longest=1000)
    refused(ask(engine, [{"role": "user", "content": "x" * 1_000_000}]), 400, "messages", "context_length_exceeded")
    assert engine.tokenizer.encoded == 0


def test_the_reason_to_refuse_is_an_error_of_the_request() -> None:
    with pytest.raises(InvalidRequest, match="not one of the tools"):
        chat_job(parse(ChatRequest, {"messages": HI, "tools": [NOW], "tool_choice": WEATHER_CHOICE}), able())


WEATHER_CHOICE = {"type": "function", "function": {"name": "weather"}}
