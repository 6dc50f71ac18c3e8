"""Anthropic's API: messages, their streams, tokens, and errors in its shape. Also by the anthropic SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import time
from typing import Any

import anthropic
import httpx2 as httpx
import pytest

from shoal.config import ApiSettings
from shoal.errors import NotReady, QueueFull, StageLost
from shoal.gateway.app import create_app
from shoal.gateway.auth.key_store import KeyStore
from shoal.text.reasoning import THINK
from shoal.text.tools import HERMES, ToolFormat
from tests.support.engine import FakeEngine, Resumed, Script, ScriptedStream, says, spoken
from tests.support.http import CHAT, eventually, fetch, serving

MESSAGES = "/v1/messages"
HI: list[Any] = [{"role": "user", "content": "Hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "The weather of a city", "input_schema": CITY}
PARIS = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
LYON = PARIS.replace("Paris", "Lyon")


def engine(script: Script | None = None, format: ToolFormat | None = HERMES, **options: Any) -> FakeEngine:
    return FakeEngine(script, tools=format, **options)


def ask(
    asked: FakeEngine, messages: list[Any] = HI, path: str = MESSAGES, headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    body = {"messages": messages, **({"max_tokens": 100} if path == MESSAGES else {}), **fields}
    return fetch(create_app(asked), "POST", path, json=body, headers=headers)


def prompt(asked: FakeEngine) -> str:
    return bytes(asked.asked.prompt).decode()


def streamed(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events, each of which says its name twice."""
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    out: list[dict[str, Any]] = []
    for part in answer.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in part.split("\n"))
        out.append(json.loads(fields["data"]))
        assert fields["event"] == out[-1]["type"]
    return [event for event in out if event["type"] != "ping"]


def refused(answer: httpx.Response, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body == {"type": "error", "error": {"type": kind, "message": body["error"]["message"]}}
    return body["error"]["message"]


# What a message is


def test_a_message() -> None:
    asked = engine(says("Hello"))
    answer = ask(asked, model="fake", system="Be brief.", temperature=0.5, top_k=3, top_p=0.9, metadata={"user_id": "u"})
    got = answer.json()
    assert got.pop("id") == answer.headers["request-id"]
    assert got == {
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(prompt(asked)),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 6,
            "service_tier": "standard",
        },
    }
    assert prompt(asked) == "system: Be brief.\nuser: Hi\n"
    sampling = asked.asked.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, asked.asked.max_tokens) == (0.5, 3, 0.9, 100)


def test_a_stream() -> None:
    events = streamed(ask(engine(says("aé")), stream=True))
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, begun, *deltas, stop, delta, _ = events
    assert start["message"]["content"] == [] and start["message"]["stop_reason"] is None
    assert start["message"]["usage"]["input_tokens"] == len("user: Hi\n")
    assert begun == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert [event["delta"] for event in deltas] == [{"type": "text_delta", "text": "a"}, {"type": "text_delta", "text": "é"}]
    assert stop == {"type": "content_block_stop", "index": 0}
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None} and delta["usage"]["output_tokens"] == 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("said", "fields", "reason", "stop"),
    [
        ("Hello", {}, "end_turn", None),
        ("Hello", {"max_tokens": 3}, "max_tokens", None),
        ("one END two", {"stop_sequences": ["nothing", "END"]}, "stop_sequence", "END"),
        ("ab|c||d", {"stop_sequences": ["||", "|"]}, "stop_sequence", "|"),
        ("x" * 999, {"max_tokens": 32000}, "model_context_window_exceeded", None),
        (f"Let me see.\n{PARIS}", {"tools": [WEATHER]}, "tool_use", None),
    ],
)
def test_why_it_ends(stream: bool, said: str, fields: dict[str, Any], reason: str, stop: str | None) -> None:
    answer = ask(engine(says(said)), stream=stream, **fields)
    end = streamed(answer)[-2]["delta"] if stream else answer.json()
    assert (end["stop_reason"], end["stop_sequence"]) == (reason, stop)


def test_cached_tokens_are_counted_beside_the_others() -> None:
    def script(request: Any) -> Any:
        first, *rest = spoken(request, "Hello")
        import msgspec

        return [msgspec.structs.replace(first, cached=4), *rest]

    usage = ask(engine(script)).json()["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (len("user: Hi\n") - 4, 4)
    assert streamed(ask(engine(script), stream=True))[-2]["usage"]["cache_read_input_tokens"] == 4


# Tools


def test_uses_of_tools_are_blocks() -> None:
    got = ask(engine(says(f"Let me see.\n{PARIS}\n{LYON}")), tools=[WEATHER], max_tokens=300).json()
    text, first, second = got["content"]
    assert text == {"type": "text", "text": "Let me see."}
    assert (first["type"], first["name"], first["input"], second["input"]) == (
        "tool_use",
        "get_weather",
        {"city": "Paris"},
        {"city": "Lyon"},
    )
    assert first["id"] != second["id"] and first["id"].startswith("toolu_")


def test_uses_of_tools_come_in_pieces() -> None:
    events = streamed(ask(engine(says(f"Hm.\n{PARIS}\n{LYON}")), tools=[WEATHER], max_tokens=300, stream=True))
    blocks: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_delta":
            blocks[event["index"]] = blocks.get(event["index"], "") + (event["delta"].get("text") or event["delta"]["partial_json"])
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(start["type"], start.get("name"), start.get("input")) for start in starts] == [
        ("text", None, None),
        ("tool_use", "get_weather", {}),
        ("tool_use", "get_weather", {}),
    ]
    assert blocks[0] == "Hm." and [json.loads(blocks[i]) for i in (1, 2)] == [{"city": "Paris"}, {"city": "Lyon"}]
    assert [event["index"] for event in events if event["type"] == "content_block_stop"] == [0, 1, 2]


def test_a_call_that_is_cut_is_left_out_of_the_whole_answer() -> None:
    got = ask(engine(says(f"Hm.\n{PARIS}")), tools=[WEATHER], max_tokens=60).json()
    assert got["content"] == [{"type": "text", "text": "Hm."}] and got["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("arguments", ['{"city": Paris}', "{}}", '{"city": "a\tb"}'])
def test_a_call_whose_arguments_are_no_json_has_none(stream: bool, arguments: str) -> None:
    said = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
    answer = ask(engine(says(said)), tools=[WEATHER], stream=stream)
    assert answer.status_code == 200, answer.text
    if stream:
        assert streamed(answer)[-1]["type"] == "message_stop"
    else:
        assert [block["input"] for block in answer.json()["content"]] == [{}]


@pytest.mark.parametrize(
    ("choice", "told", "grammar"),
    [
        (None, True, True),
        ({"type": "auto"}, True, True),
        ({"type": "any"}, True, True),
        ({"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}, True, True),
        ({"type": "none"}, False, False),
    ],
)
def test_which_tools_may_be_used(choice: dict[str, Any] | None, told: bool, grammar: bool) -> None:
    asked = engine()
    assert ask(asked, tools=[WEATHER], **({} if choice is None else {"tool_choice": choice})).status_code == 200
    assert ("get_weather" in prompt(asked), bool(asked.asked.sampling.grammar)) == (told, grammar)


def test_each_choice_has_its_grammar() -> None:
    def grammar(**fields: Any) -> str:
        asked = engine()
        ask(asked, tools=[WEATHER], **fields)
        return asked.asked.sampling.grammar

    kinds = [
        {"type": "auto"},
        {"type": "auto", "disable_parallel_tool_use": True},
        {"type": "any"},
        {"type": "tool", "name": "get_weather"},
    ]
    assert len({grammar(tool_choice=kind) for kind in kinds}) == 4


def test_a_conversation_with_tools_as_the_template_knows_it() -> None:
    asked = engine()
    answer = ask(
        asked,
        [
            {"role": "user", "content": [{"type": "text", "text": "Weather?", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "Paris"}},
                    {"type": "tool_use", "id": "b", "name": "get_weather", "input": {"city": "Lyon"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "sun"}], "cache_control": None},
                    {"type": "tool_result", "tool_use_id": "b", "content": "no such city", "is_error": True},
                    {"type": "text", "text": "Well?"},
                ],
            },
        ],
        tools=[WEATHER],
    )
    assert answer.status_code == 200, answer.text
    tool, *lines = prompt(asked).splitlines()
    assert json.loads(tool)["function"]["parameters"] == CITY
    calls = [json.loads(line)["function"] for line in lines[2:4]]
    assert calls == [{"name": "get_weather", "arguments": {"city": city}} for city in ("Paris", "Lyon")]
    assert [line.split(" (")[0] for line in (*lines[:2], *lines[4:])] == [
        "user: Weather?",
        "assistant: I look.",
        "tool: sun",
        "tool: Error: no such city",
        "user: Well?",
    ]


def test_thoughts_are_blocks() -> None:
    said = "<think>Hm.</think>Hello"
    thought, text = ask(FakeEngine(says(said), reasoning=THINK), thinking={"type": "adaptive"}).json()["content"]
    assert (thought["type"], thought["thinking"], text["text"]) == ("thinking", "Hm.", "Hello") and thought["signature"]
    events = streamed(ask(FakeEngine(says(said), reasoning=THINK), stream=True))
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert starts == [{"type": "thinking", "thinking": "", "signature": ""}, {"type": "text", "text": ""}]
    of_thought = [event["delta"] for event in events if event["type"] == "content_block_delta" and event["index"] == 0]
    assert "".join(delta.get("thinking", "") for delta in of_thought) == "Hm."
    assert of_thought[-1] == {"type": "signature_delta", "signature": thought["signature"]}


# What is asked


def test_turns_of_a_role_are_one_and_what_the_system_says_later_is_marked() -> None:
    asked = engine()
    texts = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1;"},
        {"type": "text", "text": "A"},
        {"type": "text", "text": "B"},
    ]
    turns = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "there"}, {"role": "system", "content": "Be brief."}]
    assert ask(asked, turns, system=texts).status_code == 200
    assert prompt(asked) == "system: A\nB\nuser: Hi\nthere\n<system-reminder>\nBe brief.\n</system-reminder>\n"


def test_an_answer_goes_on_from_what_it_is_said_to_begin_with() -> None:
    asked = engine(says('"a": 1}'))
    turns = [*HI, {"role": "assistant", "content": "Hm."}, *HI, {"role": "assistant", "content": "{"}]
    got = ask(asked, turns).json()
    assert prompt(asked) == "user: Hi\nassistant: Hm.\nuser: Hi\n{" and got["content"][0]["text"] == '"a": 1}'
    assert ask(engine(), turns, path=f"{MESSAGES}/count_tokens").json() == {"input_tokens": len(asked.asked.prompt)}


@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/count_tokens"])
def test_a_refusal_does_not_count_the_template_s_turns(path: str) -> None:
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "1"}
    turns = [*HI, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    said = refused(ask(engine(format=None), turns, path, system="Be kind."), 400, "invalid_request_error")
    assert said.startswith("messages: this model's chat template has no tools")


@pytest.mark.parametrize("headers", [{}, {"X-Request-Id": "mine"}, {"X-Request-Id": "no id!"}])
def test_every_answer_has_a_request_id(headers: dict[str, str]) -> None:
    ids = [
        ask(engine(), path=path, headers=headers, **fields).headers["request-id"]
        for path in (MESSAGES, f"{MESSAGES}/count_tokens")
        for fields in ({}, {"tools": 1}, {"model": "other"})
    ]
    if headers.get("X-Request-Id") == "mine":
        assert set(ids) == {"mine"}
    else:
        assert len(set(ids)) == 6 and all(id[:4] in ("req_", "msg_") for id in ids)
    early = fetch(create_app(engine()), "POST", MESSAGES, headers={"X-Priority": "odd"})
    assert early.status_code == 400 and early.headers["request-id"].startswith("req_")


def test_documents_of_text_are_read() -> None:
    asked = engine()
    plain = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "plain"}}
    blocks = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "blocks"}]}}
    found = {"type": "search_result", "source": "http://a", "title": "F", "content": [{"type": "text", "text": "found"}]}
    assert ask(asked, [{"role": "user", "content": [plain, blocks, found]}]).status_code == 200
    assert prompt(asked) == "user: T\nplain\nblocks\nF\nhttp://a\nfound\n"


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_an_answer_of_a_schema(field: str) -> None:
    asked = engine()
    format = {"type": "json_schema", "schema": CITY}
    assert ask(asked, **{field: {"effort": "low", "format": format} if field == "output_config" else format}).status_code == 200
    assert "city" in asked.asked.sampling.grammar


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
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
    message = refused(ask(engine(), messages, **fields), 400, "invalid_request_error")
    assert said in message


# Tokens


def test_tokens_are_counted_as_a_message_would_have_them() -> None:
    asked = engine()
    fields: dict[str, Any] = {"system": "Be brief.", "tools": [WEATHER], "thinking": {"type": "enabled", "budget_tokens": 1024}}
    assert ask(asked, **fields).status_code == 200
    counted = ask(engine(), path=f"{MESSAGES}/count_tokens", **fields)
    assert counted.json() == {"input_tokens": len(asked.asked.prompt)}
    assert ask(engine(), [{"role": "user", "content": "x" * 5000}], path=f"{MESSAGES}/count_tokens").json()["input_tokens"] == 5007


# Errors


def test_errors_have_anthropic_s_shape() -> None:
    assert "known here are fake" in refused(ask(engine(), model="claude-opus"), 404, "not_found_error")
    assert "no such endpoint" in refused(fetch(create_app(engine()), "POST", f"{MESSAGES}/batches", json={}), 404, "not_found_error")
    refused(fetch(create_app(engine()), "GET", MESSAGES), 405, "invalid_request_error")
    refused(
        fetch(create_app(engine()), "POST", MESSAGES, content=b"{", headers={"content-type": "application/json"}),
        400,
        "invalid_request_error",
    )
    refused(
        fetch(create_app(engine()), "POST", MESSAGES, content=b"x", headers={"content-type": "text/plain"}), 415, "invalid_request_error"
    )
    refused(fetch(create_app(engine()), "POST", MESSAGES, content=b" " * (5 << 20)), 413, "request_too_large")


@pytest.mark.parametrize("refusal", [NotReady("the model is being loaded"), StageLost("a node was lost")])
def test_a_server_that_cannot_now_is_overloaded(refusal: Any) -> None:
    asked = engine()
    asked.refusal = refusal
    answer = ask(asked)
    refused(answer, 529, "overloaded_error")
    assert int(answer.headers["retry-after"]) > 0


def test_a_full_queue_is_a_limit_of_the_rate() -> None:
    asked = engine()
    asked.refusal = QueueFull(3, 3)
    refused(ask(asked), 429, "rate_limit_error")


def test_a_stream_that_breaks_off_says_so() -> None:
    events = streamed(ask(engine(lambda r: [*spoken(r, "Hel")[:3], StageLost("a node was lost")]), stream=True))
    assert events[-1] == {"type": "error", "error": {"type": "overloaded_error", "message": "a node was lost"}}


def test_a_bug_is_told_in_its_shape() -> None:
    class Broken(FakeEngine):
        def longest(self) -> int:
            raise ZeroDivisionError

    refused(ask(Broken()), 500, "api_error")


def test_keys_come_as_anthropic_s_clients_send_them(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    token = store.create("first", time())[1]
    store.close()
    app = create_app(FakeEngine(), ApiSettings(data=str(tmp_path)))
    body = {"messages": HI, "max_tokens": 5}

    def status(path: str = MESSAGES, **headers: str) -> int:
        return fetch(app, "POST", path, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}).status_code

    assert status(x_api_key=token) == status(authorization=f"Bearer {token}") == status(CHAT, x_api_key=token) == 200
    assert status(x_api_key="sk-none") == status() == 401
    message = refused(fetch(app, "POST", MESSAGES, json=body), 401, "authentication_error")
    assert "x-api-key" in message


def test_models_for_anthropic_s_clients() -> None:
    app = create_app(engine())
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


def test_a_stream_is_taken_up_after_a_restart() -> None:
    before = engine(says(f"Hm.\n{PARIS}"))
    whole = ask(before, tools=[WEATHER], stream=True, headers={"X-Request-Id": "mine"})
    note, requests = b"", []
    hung = engine(says(f"Hm.\n{PARIS}"), hang=True)

    async def begun() -> None:
        app = create_app(hung)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shoal") as client:
            asking = asyncio.create_task(
                client.post(MESSAGES, json={"messages": HI, "max_tokens": 100, "tools": [WEATHER]}, headers={"X-Request-Id": "mine"})
            )
            await eventually(lambda: "mine" in hung.kept)
            nonlocal note, requests
            note, requests = hung.kept["mine"]
            asking.cancel()

    asyncio.run(begun())
    after = engine()
    after.before = [Resumed("mine", note, requests, [ScriptedStream(r, spoken(r, f"Hm.\n{PARIS}"), False) for r in requests])]

    async def read_on() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(after)), base_url="http://shoal") as client:
            return (await client.get("/v1/streams/mine", headers={"Last-Event-ID": "3"})).text

    rest = asyncio.run(read_on())
    assert rest and whole.text.endswith(rest) and rest.startswith("id: 4\n")


# The SDK


def sdk(asked: FakeEngine, work: Callable[[anthropic.AsyncAnthropic], Awaitable[None]]) -> None:
    async def go() -> None:
        async with (
            serving(create_app(asked)) as port,
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
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": whole.content[1].id, "content": "sun"}]},  # type: ignore[union-attr]
        ]
        assert (await client.messages.create(**{**asked, "messages": back})).type == "message"
        counted = await client.messages.count_tokens(model="fake", messages=HI)
        assert counted.input_tokens == len("user: Hi\n")
        assert [model.id async for model in client.models.list()] == ["fake"]

    sdk(engine(says(f"Hm.\n{PARIS}")), work)


@pytest.mark.slow
def test_the_sdk_knows_the_errors() -> None:
    async def work(client: anthropic.AsyncAnthropic) -> None:
        with pytest.raises(anthropic.NotFoundError, match="known here are fake"):
            await client.messages.create(model="claude", max_tokens=5, messages=HI)
        with pytest.raises(anthropic.BadRequestError) as found:
            await client.messages.create(model="fake", max_tokens=5, messages=[{"role": "user", "content": [IMAGE]}])  # type: ignore[list-item]
        assert found.value.type == "invalid_request_error"
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.batches.list()

    sdk(engine(), work)


@pytest.mark.slow
def test_the_sdk_knows_a_stream_that_breaks_off() -> None:
    async def work(client: anthropic.AsyncAnthropic) -> None:
        with pytest.raises(anthropic.APIStatusError, match="a node was lost"):
            async with client.messages.stream(model="fake", max_tokens=5, messages=HI) as stream:
                await stream.get_final_message()

    sdk(engine(lambda r: [*spoken(r, "Hel")[:3], StageLost("a node was lost")]), work)


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
    first = streamed(fetch(create_app(asked), "POST", f"{MESSAGES}?beta=true", json=from_claude_code(), headers=CLAUDE_CODE))
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
    second = streamed(fetch(create_app(asked), "POST", f"{MESSAGES}?beta=true", json=from_claude_code(*later), headers=CLAUDE_CODE))
    assert second[-2]["delta"]["stop_reason"] == "end_turn"
    said = prompt(asked).splitlines()
    assert "system: You are a Claude agent." in said and "cc_version" not in prompt(asked)
    assert said[-3] == "assistant: I look." and json.loads(said[-2])["function"]["arguments"] == {"command": "ls"}
    assert said[-1].startswith("tool: README.md (Bash, ")


def test_claude_code_is_told_that_a_prompt_is_too_long_as_it_knows_it() -> None:
    answer = fetch(create_app(engine(longest=100)), "POST", f"{MESSAGES}?beta=true", json=from_claude_code(), headers=CLAUDE_CODE)
    assert refused(answer, 400, "invalid_request_error").startswith("prompt is too long: ")
