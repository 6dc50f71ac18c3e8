"""Chat and generate, whole and as lines: text, calls, thoughts."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from shoal.gateway.endpoints.kinds import recalled
from shoal.gateway.endpoints.ollama.job import chat_job
from shoal.gateway.endpoints.ollama.wire import ChatRequest
from shoal.text.reasoning import THINK
from tests.support.engine import END, FakeEngine, able, prompt, says
from tests.support.ollama_api import CHAT, GENERATE, HI, WEATHER, ask, lines, refused, timed
from tests.support.tools import CITY
from tests.support.weather import LYON, PARIS

# Chat and generate


def test_a_chat_that_is_not_streamed() -> None:
    got = timed(ask(able(says("Hello")), stream=False).json())
    assert re.fullmatch(r"20[0-9-]{8}T[0-9:]{8}Z", got.pop("created_at"))
    assert got == {
        "model": "fake",
        "message": {"role": "assistant", "content": "Hello"},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": len("user: Hi\n"),
        "eval_count": 6,
    }


def test_streams_are_the_default_and_of_lines() -> None:
    *said, end = lines(ask(able(says("aé"))))
    assert [line["message"] for line in said] == [{"role": "assistant", "content": text} for text in ("a", "é")]
    assert [line["done"] for line in (*said, end)] == [False, False, True]
    assert end["message"] == {"role": "assistant", "content": ""} and timed(end)["eval_count"] == 4


def test_generate() -> None:
    asked = able(says("Hello"))
    got = timed(ask(asked, GENERATE, system="Be brief.", stream=False).json())
    assert prompt(asked) == "system: Be brief.\nuser: Hi\n"
    assert (got["response"], got["done_reason"], got["context"]) == ("Hello", "stop", [*asked.asked.prompt, *b"Hello", END])
    *said, end = lines(ask(able(says("Hello")), GENERATE))
    assert "".join(line["response"] for line in said) == "Hello" and end["response"] == "" and end["done"]


def test_a_context_is_gone_on_from() -> None:
    context = ask(able(says("Hello")), GENERATE, stream=False).json()["context"]
    assert context == [*b"user: Hi\nHello", END]
    asked = able()
    assert ask(asked, GENERATE, prompt="More", context=context, stream=False).status_code == 200
    assert asked.asked.prompt == [*context, *b"user: More\n"]


def test_a_long_context_is_a_list_of_tokens() -> None:
    asked = able(longest=200_000)
    assert ask(asked, GENERATE, context=[97] * 120_000, stream=False).status_code == 200
    assert len(asked.asked.prompt) == 120_000 + len("user: Hi\n")


def test_a_raw_prompt_is_all_of_it() -> None:
    asked = able()
    got = ask(asked, GENERATE, prompt="Once", raw=True, stream=False).json()
    assert prompt(asked) == "Once" and "context" not in got


@pytest.mark.parametrize("fields", [{"prompt": ""}, {"prompt": None}, {"keep_alive": "5m", "prompt": ""}])
def test_nothing_asked_is_a_wish_to_load(fields: dict[str, Any]) -> None:
    asked = able()
    got = ask(asked, GENERATE, **fields).json()
    assert (got["response"], got["done"], got["done_reason"], asked.streams) == ("", True, "load", [])
    assert ask(asked, messages=[]).json()["done_reason"] == "load"
    assert "stays loaded" in refused(ask(asked, GENERATE, prompt="", keep_alive=0), 400)


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        ({}, {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.0}),
        (
            {"temperature": 0, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.2, "seed": 7},
            {"temperature": 0, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 7},
        ),
        ({"repeat_penalty": 1.2, "repeat_last_n": 0, "presence_penalty": 0.5}, {"repetition_penalty": 1.0, "presence_penalty": 0.5}),
        ({"num_ctx": 4096, "num_gpu": 99, "num_thread": 8, "use_mmap": True, "mirostat": 0, "typical_p": 1.0}, {"top_k": 40}),
    ],
)
def test_options(options: dict[str, Any], sampling: dict[str, Any]) -> None:
    asked = able()
    assert ask(asked, options=options).status_code == 200
    assert {name: getattr(asked.asked.sampling, name) for name in sampling} == sampling


@pytest.mark.parametrize(
    ("options", "said", "reason", "most"),
    [
        ({"num_predict": 3}, "Hel", "length", 3),
        ({"num_predict": -1}, "Hello one", "stop", 1000 - len("user: Hi\n")),
        ({"num_predict": 100_000}, "Hello one", "stop", 1000 - len("user: Hi\n")),
        ({"stop": ["one", "lo"]}, "Hel", "stop", 1000 - len("user: Hi\n")),
        ({"stop": "o"}, "Hell", "stop", 1000 - len("user: Hi\n")),
    ],
)
def test_where_it_ends(options: dict[str, Any], said: str, reason: str, most: int) -> None:
    asked = able(says("Hello one"))
    got = ask(asked, options=options, stream=False).json()
    assert (got["message"]["content"], got["done_reason"], asked.asked.max_tokens) == (said, reason, most)


@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_formats(path: str) -> None:
    def grammar(format: Any) -> str:
        asked = able()
        assert ask(asked, path, format=format).status_code == 200
        return asked.asked.sampling.grammar

    assert grammar("") == grammar(None) == "" != grammar("json")
    assert "city" in grammar(CITY)


def test_logprobs() -> None:
    got = ask(able(says("a")), stream=False, logprobs=True, top_logprobs=2).json()["logprobs"]
    assert got == [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "b", "logprob": -1.5, "bytes": [98]}],
        }
    ]
    assert [line.get("logprobs", [{}])[0].get("token") for line in lines(ask(able(says("ab")), GENERATE, logprobs=True))] == [
        "a",
        "b",
        None,
    ]


def test_an_answer_goes_on_from_what_it_is_said_to_begin_with() -> None:
    asked = able()
    assert ask(asked, messages=[*HI, {"role": "assistant", "content": "Well, "}]).status_code == 200
    assert prompt(asked) == "user: Hi\nWell, "


# Tools and thoughts


@pytest.mark.parametrize("stream", [False, True])
def test_calls_come_whole(stream: bool) -> None:
    answer = ask(able(says(f"Hm.\n{PARIS}\n{LYON}")), tools=[WEATHER], stream=stream)
    told = lines(answer) if stream else [answer.json()]
    calls = [call for line in told for call in line["message"].get("tool_calls", ())]
    assert [call["function"] for call in calls] == [
        {"index": i, "name": "get_weather", "arguments": {"city": city}} for i, city in enumerate(("Paris", "Lyon"))
    ]
    assert len({call["id"] for call in calls}) == 2
    assert "".join(line["message"]["content"] for line in told) == "Hm." and told[-1]["done_reason"] == "stop"


def test_a_call_that_is_cut_is_none() -> None:
    got = ask(able(says(PARIS)), tools=[WEATHER], options={"num_predict": 60}, stream=False).json()
    assert got["message"] == {"role": "assistant", "content": ""} and got["done_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_whose_arguments_are_no_json_has_none(stream: bool) -> None:
    said = PARIS.replace('"Paris"', "Paris")
    answer = ask(able(says(said)), tools=[WEATHER], stream=stream)
    assert answer.status_code == 200, answer.text
    told = lines(answer) if stream else [answer.json()]
    assert [call["function"]["arguments"] for line in told for call in line["message"].get("tool_calls", ())] == [{}]
    assert told[-1]["done"]


@pytest.mark.parametrize(
    "results",
    [
        [{"tool_name": "get_weather"}, {"tool_name": "get_weather"}],
        [{}, {}],
        [{"tool_call_id": "b"}, {"tool_call_id": "a"}],
    ],
)
def test_results_find_their_calls(results: list[dict[str, Any]]) -> None:
    asked = able()
    calls = [{"id": id, "function": {"name": "get_weather", "arguments": {"city": id}}} for id in ("a", "b")]
    messages = [*HI, {"role": "assistant", "content": "", "tool_calls": calls}]
    messages += [{"role": "tool", "content": str(i), **result} for i, result in enumerate(results)]
    assert ask(asked, messages=messages, tools=[WEATHER]).status_code == 200
    rows = prompt(asked).splitlines()
    ids = [json.loads(row)["id"] for row in rows if row.startswith('{"id"')]
    told = [row.split(", ")[1].rstrip(")") for row in rows if row.startswith("tool: ")]
    assert told == (ids[::-1] if results[0].get("tool_call_id") == "b" else ids)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_thoughts_have_a_field_of_their_own(path: str, stream: bool) -> None:
    answer = ask(FakeEngine(says("<think>Hm.</think>Hello"), reasoning=THINK), path, think=True, stream=stream)
    told = [line["message"] if path == CHAT else line for line in (lines(answer) if stream else [answer.json()])]
    assert "".join(line.get("thinking", "") for line in told) == "Hm."
    assert "".join(line["content" if path == CHAT else "response"] for line in told) == "Hello"


def test_a_model_that_does_not_think_says_so() -> None:
    assert "does not support thinking" in refused(ask(able(), think=True), 400)
    assert ask(able(), think=False).status_code == 200


# Errors


def test_an_answer_is_written_the_same_after_a_restart() -> None:
    body = ChatRequest.model_validate({"messages": HI, "tools": [WEATHER], "logprobs": True, "options": {"stop": "x"}})
    job = chat_job(body, able(reasoning=THINK), "mine", "fake:latest")
    assert job.stops == ("x",) and job.named and job.model == "fake:latest"
    assert recalled(job.note, job.requests) == job
