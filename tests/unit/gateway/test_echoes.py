"""What clients send back of answers, and what they say of reasoning: it reaches the chat template where that knows it, and is no fault where not."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response

from shoal.config import ApiSettings
from shoal.gateway.endpoints.responses.items import summary
from shoal.text.reasoning import THINK
from shoal.text.tools import HERMES
from tests.support.app import app_of
from tests.support.engine import FakeEngine, says
from tests.support.http import CHAT, fetch, refused
from tests.support.templates import GRADED, THINKS

RESPONSES = "/v1/responses"
PLAIN = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}"
"""Shows all that a message has."""

ECHO: dict[str, Any] = {
    "role": "assistant",
    "content": "A",
    "reasoning_content": "hm",
    "provider_specific_fields": {"citations": None},
    "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "x"}],
    "reasoning_details": [{"type": "reasoning.text", "text": "hm"}],
    "cache_control": {"type": "ephemeral"},
    "annotations": [{"type": "url_citation", "url_citation": {"url": "x"}}],
    "refusal": None,
    "audio": None,
    "function_call": None,
    "tool_calls": None,
    "parsed": None,
    "images": [],
    "index": 0,
}
CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}", "parsed_arguments": None}, "custom": None}
    ],
}
USER = {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]}


def chat(template: str | None, *messages: dict[str, Any], **fields: Any) -> str:
    """The prompt that came of it."""
    engine = FakeEngine(says("Hello"), template=template, tools=None if template else HERMES)
    answer = fetch(app_of(engine), "POST", CHAT, json={"messages": messages or [USER], **fields})
    assert answer.status_code == 200, answer.text
    return engine.tokenizer.decode(engine.asked.prompt)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (THINKS, "user: Hi\nassistant: <think>hm</think>A\n"),
        (GRADED, "user: Hi\nassistant: <|channel|>hm|A\n"),
        (PLAIN, '{"role": "user", "content": "Hi"}\n{"role": "assistant", "content": "A"}\n'),
    ],
)
def test_what_comes_back_reaches_templates_that_know_it(template: str, prompt: str) -> None:
    assert chat(template, USER, ECHO) == prompt
    named_otherwise = {**{k: v for k, v in ECHO.items() if k != "reasoning_content"}, "reasoning": "hm"}
    assert chat(template, USER, named_otherwise) == prompt


def test_calls_come_back_with_their_place() -> None:
    assert '"name": "f"' in chat(None, USER, CALLED, {"role": "tool", "tool_call_id": "c", "content": "1", "name": None})


@pytest.mark.parametrize(
    ("field", "value"),
    [("audio", {"id": "audio_1"}), ("function_call", {"name": "f", "arguments": "{}"}), ("images", ["x"]), ("weight", 1)],
)
def test_what_would_say_something_is_still_refused(field: str, value: Any) -> None:
    answer = fetch(app_of(FakeEngine()), "POST", CHAT, json={"messages": [{**ECHO, field: value}]})
    assert answer.status_code == 400 and field in answer.json()["error"]["param"]


# How much to think


@pytest.mark.parametrize(
    ("effort", "graded", "thinks"),
    [
        (None, "", True),
        ("none", "low", False),
        ("minimal", "low", False),
        ("low", "low", True),
        ("medium", "medium", True),
        ("high", "high", True),
        ("xhigh", "high", True),
        ("max", "high", True),
    ],
)
def test_the_effort_is_said_as_the_template_knows_it(effort: str | None, graded: str, thinks: bool) -> None:
    assert chat(GRADED, reasoning_effort=effort) == f"user: Hi\n{graded}"
    assert chat(THINKS, reasoning_effort=effort) == "user: Hi\n" + ("" if thinks else "(no thinking)")
    assert chat(PLAIN, reasoning_effort=effort) == '{"role": "user", "content": "Hi"}\n'
    engine = FakeEngine(template=THINKS)
    answer = fetch(app_of(engine), "POST", RESPONSES, json={"input": "Hi", "reasoning": {"effort": effort, "summary": "auto"}}).json()
    assert engine.tokenizer.decode(engine.asked.prompt).endswith("(no thinking)") != thinks
    assert answer["reasoning"] == {"effort": effort, "summary": "auto"}


def test_variables_by_name_go_before_the_effort() -> None:
    assert chat(THINKS, chat_template_kwargs={"enable_thinking": False, "other": 1}, reasoning_effort="high").endswith("(no thinking)")
    assert chat("{{ tone }} {{ messages[0].content }}", chat_template_kwargs={"tone": "kind"}) == "kind Hi"
    engine = FakeEngine(template=THINKS)
    body = {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}}
    tokens = fetch(app_of(engine), "POST", "/tokenize", json=body).json()["tokens"]
    assert engine.tokenizer.decode(tokens).endswith("(no thinking)")


@pytest.mark.parametrize(
    "given", [{"messages": []}, {"add_generation_prompt": False}, {"tone": "a<end>b"}, {"tone": ["x" * 20_000]}, {"tone": {"<end>": 1}}]
)
def test_variables_cannot_say_what_is_said_elsewhere(given: dict[str, Any]) -> None:
    body = {"messages": [USER], "chat_template_kwargs": given}
    refused(fetch(app_of(FakeEngine(template="{{ tone }}")), "POST", CHAT, json=body), 400, "chat_template_kwargs")


# Items of responses


def respond(template: str | None, input: list[Any]) -> str:
    engine = FakeEngine(template=template, tools=None if template else HERMES)
    answer = fetch(app_of(engine), "POST", RESPONSES, json={"input": input})
    assert answer.status_code == 200, answer.text
    return engine.tokenizer.decode(engine.asked.prompt)


REASONED: dict[str, Any] = {"id": "rs_1", "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
SAID: dict[str, Any] = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "phase": None,
    "content": [{"type": "output_text", "text": "A", "annotations": [], "logprobs": []}],
}
ASKED = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    "beside", [{}, {"encrypted_content": "gAAAA", "status": None}, {"summary": [{"type": "summary_text", "text": "So."}]}]
)
def test_reasoning_items_reach_templates_that_know_them(beside: dict[str, Any]) -> None:
    item = {**REASONED, **beside}
    assert respond(THINKS, [ASKED, item, SAID]) == "user: Hi\nassistant: <think>hm</think>A\n"
    assert respond(PLAIN, [ASKED, item, SAID]).endswith('{"role": "assistant", "content": "A"}\n')
    assert respond(THINKS, [ASKED, SAID, item, ASKED]).endswith("assistant: A\nuser: Hi\n")


def test_what_is_only_encrypted_says_nothing() -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    assert respond(THINKS, [ASKED, item, SAID]) == "user: Hi\nassistant: A\n"


def test_reasoning_before_a_call_belongs_to_it() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "namespace": None, "caller": None, "id": None}
    result = {"type": "function_call_output", "call_id": "c", "output": "1"}
    engine = FakeEngine(tools=HERMES)
    answer = fetch(app_of(engine), "POST", RESPONSES, json={"input": [ASKED, REASONED, call, result]})
    assert answer.status_code == 200, answer.text


def test_all_that_the_openai_package_writes_of_a_response_comes_back(tmp_path: Path) -> None:
    engine = FakeEngine(says("Hello"))
    app = app_of(engine, ApiSettings(data=str(tmp_path)))
    first = Response.model_validate(fetch(app, "POST", RESPONSES, json={"input": [ASKED]}).json())
    items = [ASKED, *(item.model_dump(mode="json") for item in first.output), ASKED]
    assert fetch(app, "POST", RESPONSES, json={"input": items}).status_code == 200
    assert engine.tokenizer.decode(engine.streams[-1].request.prompt) == "user: Hi\nassistant: Hello\nuser: Hi\n"


# Compaction


def test_a_conversation_becomes_the_user_s_messages_and_a_summary(tmp_path: Path) -> None:
    engine = FakeEngine(says(" They greeted. "), tools=HERMES)
    app = app_of(engine, ApiSettings(data=str(tmp_path)))
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"x": 1}'}
    result = {"type": "function_call_output", "call_id": "c", "output": "42"}
    made = fetch(
        app, "POST", f"{RESPONSES}/compact", json={"model": "fake", "input": [ASKED, SAID, call, result], "instructions": "Be kind."}
    )
    assert made.status_code == 200, made.text
    read = engine.tokenizer.decode(engine.asked.prompt)
    assert read.startswith("system: Be kind.\nuser: Hi\nassistant: A\nI called f with {'x': 1}.\nuser: The result: 42\nuser: Sum up")
    body = made.json()
    assert (body["object"], body["usage"]["output_tokens"]) == ("response.compaction", len(" They greeted. ") + 1)
    user, item = body["output"]
    assert (user["role"], user["content"][0]["text"], item["type"]) == ("user", "Hi", "compaction")
    after = fetch(app, "POST", RESPONSES, json={"input": [*body["output"], {"role": "user", "content": "And now?"}]})
    assert after.status_code == 200, after.text
    prompt = engine.tokenizer.decode(engine.streams[-1].request.prompt)
    assert prompt == "user: Hi\nassistant: What we said and did so far, in short:\n\nThey greeted.\nuser: And now?\n"
    again = fetch(app, "POST", f"{RESPONSES}/compact", json={"previous_response_id": after.json()["id"]}).json()
    assert [each["type"] for each in again["output"]] == ["message", "message", "compaction"]


def test_what_the_model_thinks_of_a_conversation_is_no_part_of_its_summary() -> None:
    engine = FakeEngine(says("<think>Who are they?</think>They greeted."), reasoning=THINK)
    body = fetch(app_of(engine), "POST", f"{RESPONSES}/compact", json={"input": [ASKED, SAID]}).json()
    assert summary(body["output"][1]["encrypted_content"]) == "They greeted."
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == len("<think>Who are they?</think>")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", None),
        ({"input": []}, "input", None),
        ({"input": "Hi", "stream": True}, "stream", "unsupported_parameter"),
        ({"input": "x" * 2000}, "input", "context_length_exceeded"),
        ({"previous_response_id": "resp_none"}, "previous_response_id", "previous_response_not_found"),
    ],
)
def test_what_cannot_be_summed_up(body: dict[str, Any], param: str, code: str | None) -> None:
    refused(fetch(app_of(FakeEngine()), "POST", f"{RESPONSES}/compact", json=body), 400, param, code)


@pytest.mark.parametrize("content", ["gAAAAA", "shoal1.!!", "shoal1." + base64.urlsafe_b64encode(b"\xff").decode(), ""])
def test_a_compaction_of_elsewhere_is_refused(content: str) -> None:
    body = {"input": [{"type": "compaction", "encrypted_content": content}]}
    refused(fetch(app_of(FakeEngine()), "POST", RESPONSES, json=body), 400, "input")


def test_a_byte_order_mark_is_skipped() -> None:
    for path, body in (
        (CHAT, {"messages": [USER]}),
        (RESPONSES, {"input": "Hi"}),
        ("/tokenize", {"prompt": "Hi"}),
        ("/v1/embeddings", {"input": "Hi"}),
    ):
        raw = b"\xef\xbb\xbf" + json.dumps(body).encode()
        assert fetch(app_of(FakeEngine()), "POST", path, content=raw, headers={"Content-Type": "application/json"}).status_code == 200
