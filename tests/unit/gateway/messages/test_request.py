"""What is asked of a message: its turns, its documents, what is refused, and how many tokens it has."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.anthropic_api import HI, IMAGE, MESSAGES, WEATHER, ask, refused
from tests.support.app import app_of
from tests.support.engine import able, prompt, says
from tests.support.http import fetch
from tests.support.tools import CITY

# What is asked


def test_turns_of_a_role_are_one_and_what_the_system_says_later_is_marked() -> None:
    asked = able()
    texts = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1;"},
        {"type": "text", "text": "A"},
        {"type": "text", "text": "B"},
    ]
    turns = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "there"}, {"role": "system", "content": "Be brief."}]
    assert ask(asked, turns, system=texts).status_code == 200
    assert prompt(asked) == "system: A\nB\nuser: Hi\nthere\n<system-reminder>\nBe brief.\n</system-reminder>\n"


def test_an_answer_goes_on_from_what_it_is_said_to_begin_with() -> None:
    asked = able(says('"a": 1}'))
    turns = [*HI, {"role": "assistant", "content": "Hm."}, *HI, {"role": "assistant", "content": "{"}]
    got = ask(asked, turns).json()
    assert prompt(asked) == "user: Hi\nassistant: Hm.\nuser: Hi\n{" and got["content"][0]["text"] == '"a": 1}'
    assert ask(able(), turns, path=f"{MESSAGES}/count_tokens").json() == {"input_tokens": len(asked.asked.prompt)}


@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/count_tokens"])
def test_a_refusal_does_not_count_the_template_s_turns(path: str) -> None:
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "1"}
    turns = [*HI, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    said = refused(ask(able(format=None), turns, path, system="Be kind."), 400, "invalid_request_error")
    assert said.startswith("messages: this model's chat template has no tools")


@pytest.mark.parametrize("headers", [{}, {"X-Request-Id": "mine"}, {"X-Request-Id": "no id!"}])
def test_every_answer_has_a_request_id(headers: dict[str, str]) -> None:
    bodies: list[dict[str, Any]] = [{}, {"tools": 1}, {"model": "other"}]
    ids = [
        ask(able(), path=path, headers=headers, **fields).headers["request-id"]
        for path in (MESSAGES, f"{MESSAGES}/count_tokens")
        for fields in bodies
    ]
    if headers.get("X-Request-Id") == "mine":
        assert set(ids) == {"mine"}
    else:
        assert len(set(ids)) == 6 and all(id[:4] in ("req_", "msg_") for id in ids)
    early = fetch(app_of(able()), "POST", MESSAGES, headers={"X-Priority": "odd"})
    assert early.status_code == 400 and early.headers["request-id"].startswith("req_")


def test_documents_of_text_are_read() -> None:
    asked = able()
    plain = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "plain"}}
    blocks = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "blocks"}]}}
    found = {"type": "search_result", "source": "http://a", "title": "F", "content": [{"type": "text", "text": "found"}]}
    assert ask(asked, [{"role": "user", "content": [plain, blocks, found]}]).status_code == 200
    assert prompt(asked) == "user: T\nplain\nblocks\nF\nhttp://a\nfound\n"


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_an_answer_of_a_schema(field: str) -> None:
    asked = able()
    format = {"type": "json_schema", "schema": CITY}
    given: dict[str, Any] = {field: {"effort": "low", "format": format} if field == "output_config" else format}
    assert ask(asked, **given).status_code == 200
    assert "city" in asked.asked.sampling.grammar


PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"messages": [{"role": "user", "content": [IMAGE]}]},
            "messages.0.content.0: blocks have one of the types text, document, search_result, tool_result",
        ),
        ({"messages": [{"role": "user", "content": [PDF]}]}, "messages.0.content.0.source: a document's source is 'text'"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, "messages.0.content.0.type: a message with"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
            "messages.0.content.0.tool_use_id: no tool_use",
        ),
        ({"messages": []}, "messages: "),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools.0.type: 'web_search_20250305' is a tool of Anthropic's own",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type: 'bash_20250124' is a tool of Anthropic's own"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name: a name has"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name: tool_choice must have a name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "no"}}, "tool_choice names 'no'"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": None}, "max_tokens: "),
        ({"stop_sequences": [""]}, "stop_sequences: a stop string"),
        ({"stop_sequences": ["a"] * 65}, "stop_sequences: at most 64"),
        ({"mcp_servers": [{"url": "x"}]}, "'mcp_servers' is not supported"),
        ({"nonsense": 1}, "unknown parameter 'nonsense'"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "the prompt has"),
    ],
)
def test_what_is_not_served_is_refused(fields: dict[str, Any], said: str) -> None:
    messages = fields.pop("messages", HI)
    message = refused(ask(able(), messages, **fields), 400, "invalid_request_error")
    assert said in message


# Tokens


def test_tokens_are_counted_as_a_message_would_have_them() -> None:
    asked = able()
    fields: dict[str, Any] = {"system": "Be brief.", "tools": [WEATHER], "thinking": {"type": "enabled", "budget_tokens": 1024}}
    assert ask(asked, **fields).status_code == 200
    counted = ask(able(), path=f"{MESSAGES}/count_tokens", **fields)
    assert counted.json() == {"input_tokens": len(asked.asked.prompt)}
    assert ask(able(), [{"role": "user", "content": "x" * 5000}], path=f"{MESSAGES}/count_tokens").json()["input_tokens"] == 5007
