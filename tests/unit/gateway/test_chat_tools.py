"""Tools in chat: what reaches the template and the grammar, and calls whole and streamed."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from typing import Any

import httpx2 as httpx
import pytest

from shoal.gateway.answers.under_way import Answers
from shoal.gateway.endpoints.chat.job import chat_job
from shoal.gateway.endpoints.chat.wire import ChatRequest
from shoal.gateway.endpoints.kinds import recalled
from shoal.gateway.schema.wire import parse
from shoal.request import FinishReason, TokenChunk
from shoal.text.answer_grammar import JsonSchema
from shoal.text.tools import HERMES, LLAMA3, MISTRAL, ToolFormat, ToolFunction
from tests.support.app import alone, app_of
from tests.support.engine import FakeEngine, Resumed, ScriptedStream, able, prompt, says, spoken
from tests.support.http import CHAT, HI, events, fetch
from tests.support.letters import calls
from tests.support.tools import BOTH, CALLED, CITY, NOW, PARIS, RESULT, TOOLS, WEATHER, ask


def choice_of(answer: httpx.Response, index: int = 0) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][index]


def functions(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]


def gathered(answer: httpx.Response, index: int = 0) -> dict[str, Any]:
    """The message that a stream adds up to, and its finish reason, as clients do it."""
    message: dict[str, Any] = {"content": None, "tool_calls": []}
    for choice in [c for event in events(answer) for c in event["choices"] if c["index"] == index]:
        delta = choice["delta"]
        if delta.get("content") is not None:
            message["content"] = (message["content"] or "") + delta["content"]
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                assert call["type"] == "function"
                message["tool_calls"].append({"id": call["id"], "type": "function", "function": dict(call["function"])})
            else:
                assert call.keys() == {"index", "function"} and call["function"].keys() == {"arguments"}
                message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        message["finish_reason"] = choice["finish_reason"]
    return message


# Answers


def test_calls_are_told_from_content() -> None:
    choice = choice_of(ask(able(says("Let me see.\n" + BOTH))))
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Let me see.", "tool_calls")
    assert functions(choice["message"]) == [("weather", '{"city": "Pa\\"ris"}'), ("now", "{}")]
    assert all(call["type"] == "function" and call["id"].startswith("call_") for call in choice["message"]["tool_calls"])
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == 2


def test_without_content_there_is_null() -> None:
    assert choice_of(ask(able(says(PARIS))))["message"]["content"] is None


def test_an_answer_without_calls_is_text() -> None:
    choice = choice_of(ask(able(says("It rains. "))))
    assert choice["message"] == {"role": "assistant", "content": "It rains. ", "refusal": None}
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("format", "text"),
    [
        (HERMES, PARIS),
        (MISTRAL, '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Pa\\"ris"}}]'),
        (LLAMA3, '{"name": "weather", "parameters": {"city": "Pa\\"ris"}}'),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_every_format_is_read(format: ToolFormat, text: str, stream: bool) -> None:
    answer = ask(able(says(text), format), stream=stream)
    message = gathered(answer) if stream else choice_of(answer)["message"]
    assert functions(message) == [("weather", '{"city": "Pa\\"ris"}')]


@pytest.mark.parametrize("text", [PARIS, BOTH, "Well:  " + BOTH, "No calls <tool", "{}"])
def test_a_stream_adds_up_to_the_whole_answer(text: str) -> None:
    whole = choice_of(ask(able(says(text))))
    streamed = gathered(ask(able(says(text)), stream=True))
    assert streamed["content"] == whole["message"]["content"]
    assert functions(streamed) == functions({"tool_calls": [], **whole["message"]})
    assert streamed["finish_reason"] == whole["finish_reason"]


def test_a_call_streams_its_name_before_its_arguments() -> None:
    deltas = [e["choices"][0]["delta"] for e in events(ask(able(says(PARIS)), stream=True))]
    assert (deltas[0]["role"], deltas[0]["content"]) == ("assistant", None)
    first, *rest = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert (first["index"], first["function"]["name"]) == (0, "weather")
    assert len(rest) > 5
    assert not any("name" in call["function"] for call in rest)


def test_every_choice_has_its_own_calls() -> None:
    answer = ask(able(says(PARIS, "Hello", BOTH)), n=3)
    choices = answer.json()["choices"]
    assert [len(c["message"].get("tool_calls", ())) for c in choices] == [1, 0, 2]
    assert [c["finish_reason"] for c in choices] == ["tool_calls", "stop", "tool_calls"]
    ids = [call["id"] for c in choices for call in c["message"].get("tool_calls", ())]
    assert len(set(ids)) == 3
    stream = ask(able(says(PARIS, "Hello", BOTH)), n=3, stream=True)
    assert [len(gathered(stream, i)["tool_calls"]) for i in range(3)] == [1, 0, 2]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_says_length(stream: bool) -> None:
    answer = ask(able(says(PARIS)), max_tokens=PARIS.index("Pa"), stream=stream)
    message = gathered(answer) if stream else choice_of(answer)["message"]
    assert functions(message) == [("weather", '{"city": "')]
    assert (message if stream else choice_of(answer))["finish_reason"] == "length"


def test_a_call_that_a_stop_string_cuts_is_no_call_to_make() -> None:
    assert choice_of(ask(able(says(PARIS)), stop="ris"))["finish_reason"] == "stop"


def test_tokens_of_calls_have_log_probabilities() -> None:
    whole = choice_of(ask(able(says(PARIS)), logprobs=True))["logprobs"]["content"]
    stream = events(ask(able(says(PARIS)), logprobs=True, stream=True))
    streamed = [t for e in stream if (lp := e["choices"][0]["logprobs"]) for t in lp["content"]]
    assert "".join(t["token"] for t in whole) == PARIS
    assert streamed == whole


class Special(FakeEngine):
    """Its vocabulary has a special token where other ones have letters."""

    def __init__(self) -> None:
        def script(request: Any) -> list[Any]:
            rest = spoken(request, ' [{"name": "now", "arguments": {}}]')
            return [TokenChunk(request.id, 0, ord("~")), *rest]

        super().__init__(script, tools=MISTRAL)
        self.tokenizer.special = self.tokenizer.marks = {"<end>": 256, "[TOOL_CALLS]": ord("~"), "~": 5}
        self.tokenizer.text_bytes = lambda token, first: b"" if token == ord("~") else bytes([token])
        self.tokenizer.token_bytes = lambda token: b"[TOOL_CALLS]" if token == ord("~") else bytes([token])


@pytest.mark.parametrize("stream", [False, True])
def test_a_marker_that_is_a_special_token_is_seen(stream: bool) -> None:
    engine = Special()
    answer = ask(engine, stream=stream)
    assert functions(gathered(answer) if stream else choice_of(answer)["message"]) == [("now", "{}")]
    assert f"<[{ord('~')}]>" in engine.asked.sampling.grammar


def test_a_special_token_is_no_text_where_there_are_no_tools() -> None:
    assert choice_of(ask(Special(), tools=None))["message"]["content"] == ' [{"name": "now", "arguments": {}}]'


# Readings of one answer


def reread(text: str, last: str = "") -> list[str]:
    """The events after `last` of an answer that an engine before was about, and that this one takes up."""
    engine = able()
    job = chat_job(parse(ChatRequest, {"messages": HI, "tools": TOOLS, "stream": True}), engine, "mine")
    engine.before = [Resumed("mine", job.note, job.requests, [ScriptedStream(r, spoken(r, text), False) for r in job.requests])]

    async def go() -> str:
        transport = httpx.ASGITransport(app_of(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
            return (await client.get("/v1/streams/mine", headers={"Last-Event-ID": last})).text

    return [re.sub(r'"created":\d+', '"created":0', event) for event in asyncio.run(go()).split("\n\n")[:-1]]


def test_an_answer_read_again_after_a_restart_has_the_same_ids() -> None:
    first = reread(BOTH)
    assert sum('"id":"call_' in event for event in first) == 2
    assert reread(BOTH) == first


def test_a_reader_goes_on_in_the_middle_of_a_call() -> None:
    whole = reread(BOTH)
    ids = [event.split("\n")[0].removeprefix("id: ") for event in whole]
    assert len(set(ids)) == len(ids)
    for at in range(0, len(ids), 9):
        assert reread(BOTH, ids[at]) == whole[at + 1 :]


def test_a_piece_becomes_one_event_at_most() -> None:
    async def go() -> list[int]:
        engine = able(says("a " + BOTH))
        answer = await Answers(alone(engine), recalled).begin(
            chat_job(parse(ChatRequest, {"messages": HI, "tools": TOOLS}), engine), engine
        )
        pieces = [piece async for piece in answer.read()]
        writer = answer.writer()
        return [len(writer.piece(piece)) for piece in pieces]

    assert set(asyncio.run(go())) == {0, 1}


# What reaches the template and the grammar


def grammar_of(choice: str = "auto", parallel: bool = True, tools: tuple[str, ...] = ("weather", "now"), **options: Any) -> str:
    known = {"weather": ToolFunction("weather", CITY), "now": ToolFunction("now")}
    return calls(HERMES, [known[name] for name in tools], choice, parallel, **options)


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, grammar_of()),
        ({"tool_choice": "auto"}, grammar_of()),
        ({"tool_choice": "required"}, grammar_of("required")),
        ({"parallel_tool_calls": False}, grammar_of(parallel=False)),
        ({"tool_choice": "none"}, ""),
        ({"tool_choice": NOW}, grammar_of("required", False, ("now",))),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NOW]}}},
            grammar_of("required", True, ("now",)),
        ),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NOW]}}}, grammar_of(tools=("now",))),
        ({"response_format": {"type": "json_object"}}, grammar_of(answer=JsonSchema({"type": "object"}))),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}, "tool_choice": "required"},
            grammar_of("required", answer=JsonSchema(CITY)),
        ),
    ],
)
def test_the_choice_decides_the_grammar(fields: dict[str, Any], grammar: str) -> None:
    engine = able()
    assert ask(engine, **fields).status_code == 200
    assert engine.asked.sampling.grammar == grammar


def test_a_function_may_be_called_as_a_choice_is() -> None:
    engine = able()
    tools = [{"type": "function", "function": {"name": "auto"}}, NOW]
    assert ask(engine, tools=tools, tool_choice={"type": "function", "function": {"name": "auto"}}).status_code == 200
    assert engine.asked.sampling.grammar == calls(HERMES, [ToolFunction("auto")], "required", False)


def test_what_is_said_about_caching_of_tools_says_nothing_here() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    (plain,) = ({**TOOLS[0], **cached, "function": {**TOOLS[0]["function"], **cached}},)
    custom = {"type": "custom", "custom": {"name": "c"}, **cached}
    engine = FakeEngine(tools=HERMES)
    assert fetch(app_of(engine), "POST", CHAT, json={"messages": HI, "tools": [plain, custom]}).status_code == 200
    assert "ephemeral" not in engine.tokenizer.decode(engine.asked.prompt)


def test_tools_are_told_to_the_model_with_all_that_templates_use() -> None:
    engine = able()
    ask(engine, tools=[{**WEATHER, "function": {**WEATHER["function"], "strict": True}}, NOW])
    weather, now = map(json.loads, prompt(engine).splitlines()[:2])
    assert weather == WEATHER
    assert now == {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


def test_with_the_choice_none_the_model_is_not_told_of_tools_and_text_is_text() -> None:
    engine = able(says(PARIS))
    choice = choice_of(ask(engine, tool_choice="none"))
    assert "weather" not in prompt(engine)
    assert (choice["message"]["content"], choice["finish_reason"]) == (PARIS, "stop")


def test_calls_and_results_of_earlier_turns_reach_the_template() -> None:
    engine = able()
    ask(engine, [*HI, CALLED, RESULT])
    said = prompt(engine).splitlines()[2:]
    call = json.loads(said[2])
    assert call["function"] == {"name": "weather", "arguments": {"city": "Paris"}}
    assert (said[0], said[1], said[3]) == ("user: Hi", "assistant: ", f"tool: rain (weather, {call['id']})")
    assert len(call["id"]) == 9 and call["id"].isalnum()  # Mistral's templates want it so


def test_results_without_tools_in_the_request_are_possible() -> None:
    assert ask(able(), [*HI, CALLED, RESULT], tools=None).status_code == 200


def test_a_message_of_the_sdk_can_be_sent_back_as_it_is() -> None:
    message = choice_of(ask(able(says(BOTH))))["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "x"} for call in message["tool_calls"]]
    dumped = {**message, "annotations": None, "audio": None, "function_call": None}
    assert ask(able(), [*HI, dumped, *results]).status_code == 200


def test_what_the_assistant_refused_is_what_it_said() -> None:
    engine = able()
    parts = [{"type": "text", "text": "No"}, {"type": "refusal", "refusal": ", sorry"}]
    ask(engine, [*HI, {"role": "assistant", "content": None, "refusal": "no"}, {"role": "assistant", "content": parts}], tools=None)
    assert prompt(engine) == "user: Hi\nassistant: no\nassistant: No, sorry\n"


def test_arguments_may_be_left_empty() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "now", "arguments": ""}}
    engine = able()
    assert ask(engine, [*HI, {"role": "assistant", "tool_calls": [call]}]).status_code == 200
    assert '"arguments": {}' in prompt(engine)


# Long prompts


def test_a_job_is_the_same_after_it_was_kept() -> None:
    engine = able()
    job = chat_job(parse(ChatRequest, {"messages": HI, "tools": TOOLS}), engine)
    Answers(alone(engine), recalled)
    engine.before = [Resumed(job.id, job.note, job.requests, [ScriptedStream(r, spoken(r, PARIS), False) for r in job.requests])]

    async def go() -> Any:
        return (await Answers(alone(engine), recalled).find(job.id)).job

    assert asyncio.run(go()) == job


def test_ids_differ_between_answers_and_choices() -> None:
    answers = [ask(able(says(BOTH)), n=2).json() for _ in range(2)]
    ids = [c["id"] for a in answers for choice in a["choices"] for c in choice["message"]["tool_calls"]]
    assert len(set(ids)) == len(ids) == 8


def test_an_end_that_has_come_is_said_once() -> None:
    reasons = [e["choices"][0]["finish_reason"] for e in events(ask(able(says(PARIS)), stream=True))]
    assert [reason for reason, _ in itertools.groupby(reasons)] == [None, "tool_calls"]
    assert FinishReason.STOP not in reasons
