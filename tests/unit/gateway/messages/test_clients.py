"""Anthropic's clients: their keys, the SDK, Claude Code."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import time
from typing import Any

import anthropic
import pytest

from shoal.config import ApiSettings
from shoal.errors import StageLost
from shoal.gateway.auth.key_store import KeyStore
from shoal.text.reasoning import THINK
from shoal.text.tools import HERMES
from tests.support.anthropic_api import HI, IMAGE, MESSAGES, WEATHER, refused, streamed
from tests.support.app import app_of
from tests.support.engine import FakeEngine, able, prompt, says, spoken
from tests.support.http import CHAT, fetch, serving
from tests.support.weather import PARIS

# Errors


def test_keys_come_as_anthropic_s_clients_send_them(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    token = store.create("first", time())[1]
    store.close()
    app = app_of(FakeEngine(), ApiSettings(data=str(tmp_path)))
    body = {"messages": HI, "max_tokens": 5}

    def status(path: str = MESSAGES, **headers: str) -> int:
        return fetch(app, "POST", path, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}).status_code

    assert status(x_api_key=token) == status(authorization=f"Bearer {token}") == status(CHAT, x_api_key=token) == 200
    assert status(x_api_key="sk-none") == status() == 401
    message = refused(fetch(app, "POST", MESSAGES, json=body), 401, "authentication_error")
    assert "x-api-key" in message


def test_models_for_anthropic_s_clients() -> None:
    app = app_of(able())
    version = {"anthropic-version": "2023-06-01"}
    page = fetch(app, "GET", "/v1/models", headers=version).json()
    info = {
        "type": "model",
        "id": "fake",
        "display_name": "fake",
        "created_at": "1970-01-01T00:00:07Z",
        "lifecycle": "active",
        "max_input_tokens": 1000,
        "max_tokens": 1000,
    }
    assert page == {"data": [info], "first_id": "fake", "last_id": "fake", "has_more": False}
    assert fetch(app, "GET", "/v1/models/fake", headers=version).json() == info
    refused(fetch(app, "GET", "/v1/models/none", headers=version), 404, "not_found_error")
    assert fetch(app, "GET", "/v1/models").json()["object"] == "list"
    assert fetch(app, "GET", "/v1/models/none").json()["error"]["code"] == "model_not_found"


# The SDK


def sdk(asked: FakeEngine, work: Callable[[anthropic.AsyncAnthropic], Awaitable[None]]) -> None:
    async def go() -> None:
        async with (
            serving(app_of(asked)) as port,
            anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{port}", api_key="none", max_retries=0) as client,
        ):
            await work(client)

    asyncio.run(go())


@pytest.mark.slow
def test_the_sdk_reads_messages_and_streams() -> None:
    async def work(client: anthropic.AsyncAnthropic) -> None:
        asked: dict[str, Any] = {"model": "fake", "max_tokens": 200, "messages": HI, "tools": [WEATHER]}
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            texts = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
        assert "".join(texts) == "Hm."
        for message in (whole, final):
            text, call = message.content
            assert text.type == "text" and text.text == "Hm."
            assert call.type == "tool_use" and call.input == {"city": "Paris"}
            assert message.stop_reason == "tool_use" and message.usage.output_tokens == whole.usage.output_tokens
        back: list[Any] = [
            *HI,
            whole.to_param(),
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": whole.content[1].id, "content": "sun"}]},
        ]
        assert (await client.messages.create(**{**asked, "messages": back})).type == "message"
        counted = await client.messages.count_tokens(model="fake", messages=HI)
        assert counted.input_tokens == len("user: Hi\n")
        assert [model.id async for model in client.models.list()] == ["fake"]

    sdk(able(says(f"Hm.\n{PARIS}")), work)


@pytest.mark.slow
def test_the_sdk_knows_the_errors() -> None:
    async def work(client: anthropic.AsyncAnthropic) -> None:
        with pytest.raises(anthropic.NotFoundError, match="known here are fake"):
            await client.messages.create(model="claude", max_tokens=5, messages=HI)
        with pytest.raises(anthropic.BadRequestError) as found:
            await client.messages.create(model="fake", max_tokens=5, messages=[{"role": "user", "content": [IMAGE]}])  # pyright: ignore[reportArgumentType]
        assert found.value.type == "invalid_request_error"
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.batches.list()

    sdk(able(), work)


@pytest.mark.slow
def test_the_sdk_knows_a_stream_that_breaks_off() -> None:
    async def work(client: anthropic.AsyncAnthropic) -> None:
        with pytest.raises(anthropic.APIStatusError, match="a node was lost"):
            async with client.messages.stream(model="fake", max_tokens=5, messages=HI) as stream:
                await stream.get_final_message()

    sdk(able(lambda r: [*spoken(r, "Hel")[:3], StageLost("a node was lost")]), work)


# Claude Code


CLAUDE_CODE = {
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27,mid-conversation-system-2026-04-07",
    "anthropic-dangerous-direct-browser-access": "true",
    "anthropic-version": "2023-06-01",
    "x-api-key": "none",
    "x-app": "cli",
    "x-stainless-retry-count": "0",
}


def from_claude_code(*later: dict[str, Any]) -> dict[str, Any]:
    """What Claude Code 2.1 sends, its texts cut short."""
    ephemeral = {"type": "ephemeral"}
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "additionalProperties": False}
    command = {"properties": {"command": {"type": "string"}, "timeout": {"type": "number"}}, "required": ["command"]}
    return {
        "model": "fake",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>\nToday is Monday.\n</system-reminder>\n\n"},
                    {"type": "text", "text": "List the files.", **({} if later else {"cache_control": ephemeral})},
                ],
            },
            {"role": "system", "content": "Available agent types: none"},
            *later,
        ],
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.b21; cc_entrypoint=sdk-cli;"},
            {"type": "text", "text": "You are a Claude agent.", "cache_control": ephemeral},
            {"type": "text", "text": "\nYou help with software.", "cache_control": ephemeral},
        ],
        "tools": [
            {"name": "Bash", "description": "Runs a command", "input_schema": {**schema, **command}},
            {"name": "TaskList", "description": "Lists tasks", "input_schema": {**schema, "properties": {}}},
        ],
        "metadata": {"user_id": '{"device_id":"c9","account_uuid":"","session_id":"45"}'},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
    }


def test_what_claude_code_sends() -> None:
    ls = '<tool_call>\n{"name": "Bash", "arguments": {"command": "ls"}}\n</tool_call>'
    asked = FakeEngine(says(f"<think>Hm.</think>I look.\n{ls}"), tools=HERMES, reasoning=THINK, longest=2000)
    first = streamed(fetch(app_of(asked), "POST", f"{MESSAGES}?beta=true", json=from_claude_code(), headers=CLAUDE_CODE))
    blocks = [event["content_block"] for event in first if event["type"] == "content_block_start"]
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use"]
    assert first[-2]["delta"]["stop_reason"] == "tool_use"
    later = [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": blocks[2]["id"], "name": "Bash", "input": {"command": "ls"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "tool_use_id": blocks[2]["id"],
                    "type": "tool_result",
                    "content": "README.md",
                    "is_error": False,
                    "cache_control": {"type": "ephemeral"},
                }
            ],
        },
    ]
    asked = FakeEngine(says("One."), tools=HERMES, reasoning=THINK, longest=2000)
    second = streamed(fetch(app_of(asked), "POST", f"{MESSAGES}?beta=true", json=from_claude_code(*later), headers=CLAUDE_CODE))
    assert second[-2]["delta"]["stop_reason"] == "end_turn"
    said = prompt(asked).splitlines()
    assert "system: You are a Claude agent." in said and "cc_version" not in prompt(asked)
    assert said[-3] == "assistant: I look." and json.loads(said[-2])["function"]["arguments"] == {"command": "ls"}
    assert said[-1].startswith("tool: README.md (Bash, ")


def test_claude_code_is_told_that_a_prompt_is_too_long_as_it_knows_it() -> None:
    answer = fetch(app_of(able(longest=100)), "POST", f"{MESSAGES}?beta=true", json=from_claude_code(), headers=CLAUDE_CODE)
    assert refused(answer, 400, "invalid_request_error").startswith("prompt is too long: ")
