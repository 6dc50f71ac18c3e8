"""A message and its stream: text, uses of tools, thoughts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2 as httpx
import msgspec
import pytest

from shoal.request import Request, TokenChunk
from shoal.text.reasoning import THINK
from tests.support.anthropic_api import HI, MESSAGES, WEATHER, ask, streamed
from tests.support.app import app_of
from tests.support.engine import FakeEngine, Item, Resumed, ScriptedStream, able, prompt, says, spoken
from tests.support.http import eventually
from tests.support.tools import CITY
from tests.support.weather import LYON, PARIS

# What a message is


def test_a_message() -> None:
    asked = able(says("Hello"))
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
    events = streamed(ask(able(says("aé")), stream=True))
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
    answer = ask(able(says(said)), stream=stream, **fields)
    end = streamed(answer)[-2]["delta"] if stream else answer.json()
    assert (end["stop_reason"], end["stop_sequence"]) == (reason, stop)


def test_cached_tokens_are_counted_beside_the_others() -> None:
    def script(request: Request) -> list[Item]:
        first, *rest = spoken(request, "Hello")
        assert isinstance(first, TokenChunk)
        return [msgspec.structs.replace(first, cached=4), *rest]

    usage = ask(able(script)).json()["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (len("user: Hi\n") - 4, 4)
    assert streamed(ask(able(script), stream=True))[-2]["usage"]["cache_read_input_tokens"] == 4


# Tools


def test_uses_of_tools_are_blocks() -> None:
    got = ask(able(says(f"Let me see.\n{PARIS}\n{LYON}")), tools=[WEATHER], max_tokens=300).json()
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
    events = streamed(ask(able(says(f"Hm.\n{PARIS}\n{LYON}")), tools=[WEATHER], max_tokens=300, stream=True))
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
    got = ask(able(says(f"Hm.\n{PARIS}")), tools=[WEATHER], max_tokens=60).json()
    assert got["content"] == [{"type": "text", "text": "Hm."}] and got["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("arguments", ['{"city": Paris}', "{}}", '{"city": "a\tb"}'])
def test_a_call_whose_arguments_are_no_json_has_none(stream: bool, arguments: str) -> None:
    said = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
    answer = ask(able(says(said)), tools=[WEATHER], stream=stream)
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
    asked = able()
    chosen: dict[str, Any] = {} if choice is None else {"tool_choice": choice}
    assert ask(asked, tools=[WEATHER], **chosen).status_code == 200
    assert ("get_weather" in prompt(asked), bool(asked.asked.sampling.grammar)) == (told, grammar)


def test_each_choice_has_its_grammar() -> None:
    def grammar(**fields: Any) -> str:
        asked = able()
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
    asked = able()
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


# Errors


def test_a_stream_is_taken_up_after_a_restart() -> None:
    before = able(says(f"Hm.\n{PARIS}"))
    whole = ask(before, tools=[WEATHER], stream=True, headers={"X-Request-Id": "mine"})
    note, requests = b"", []
    hung = able(says(f"Hm.\n{PARIS}"), hang=True)

    async def begun() -> None:
        app = app_of(hung)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shoal") as client:
            asking = asyncio.create_task(
                client.post(MESSAGES, json={"messages": HI, "max_tokens": 100, "tools": [WEATHER]}, headers={"X-Request-Id": "mine"})
            )
            await eventually(lambda: "mine" in hung.kept)
            nonlocal note, requests
            note, requests = hung.kept["mine"]
            asking.cancel()

    asyncio.run(begun())
    after = able()
    after.before = [Resumed("mine", note, requests, [ScriptedStream(r, spoken(r, f"Hm.\n{PARIS}"), False) for r in requests])]

    async def read_on() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app_of(after)), base_url="http://shoal") as client:
            return (await client.get("/v1/streams/mine", headers={"Last-Event-ID": "3"})).text

    rest = asyncio.run(read_on())
    assert rest and whole.text.endswith(rest) and rest.startswith("id: 4\n")
