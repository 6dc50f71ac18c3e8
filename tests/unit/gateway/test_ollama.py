"""Ollama's API: chat, generate, embeddings, its lists, and errors in its shape. Also by the ollama SDK."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import time
from typing import Any

import httpx2 as httpx
import ollama
import pytest

from shoal.config import ApiSettings
from shoal.errors import NotReady, QueueFull, StageLost
from shoal.gateway.app import create_app
from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.endpoints.kinds import recalled
from shoal.gateway.endpoints.ollama.job import chat_job
from shoal.gateway.endpoints.ollama.wire import ChatRequest
from shoal.text.reasoning import THINK
from shoal.text.tools import HERMES, ToolFormat
from tests.support.engine import END, FakeEngine, Script, says, spoken
from tests.support.http import fetch, serving

CHAT, GENERATE = "/api/chat", "/api/generate"
HI: list[Any] = [{"role": "user", "content": "Hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city", "parameters": CITY}}
PARIS = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
LYON = PARIS.replace("Paris", "Lyon")
DURATIONS = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}


def engine(script: Script | None = None, format: ToolFormat | None = HERMES, **options: Any) -> FakeEngine:
    return FakeEngine(script, tools=format, **options)


def ask(asked: FakeEngine, path: str = CHAT, **fields: Any) -> httpx.Response:
    body = {"model": "fake", **({"messages": HI} if path == CHAT else {"prompt": "Hi"} if path == GENERATE else {}), **fields}
    return fetch(create_app(asked), "POST", path, json=body)


def prompt(asked: FakeEngine) -> str:
    return bytes(asked.asked.prompt).decode()


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson", answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    return answer.json()["error"]


def timed(end: dict[str, Any]) -> dict[str, Any]:
    """Without the durations, which have to be there and fit each other."""
    assert all(isinstance(end[name], int) and end[name] >= 0 for name in DURATIONS)
    assert end["total_duration"] == end["prompt_eval_duration"] + end["eval_duration"] > 0
    return {name: value for name, value in end.items() if name not in DURATIONS}


# Chat and generate


def test_a_chat_that_is_not_streamed() -> None:
    got = timed(ask(engine(says("Hello")), stream=False).json())
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
    *said, end = lines(ask(engine(says("aé"))))
    assert [line["message"] for line in said] == [{"role": "assistant", "content": text} for text in ("a", "é")]
    assert [line["done"] for line in (*said, end)] == [False, False, True]
    assert end["message"] == {"role": "assistant", "content": ""} and timed(end)["eval_count"] == 4


def test_generate() -> None:
    asked = engine(says("Hello"))
    got = timed(ask(asked, GENERATE, system="Be brief.", stream=False).json())
    assert prompt(asked) == "system: Be brief.\nuser: Hi\n"
    assert (got["response"], got["done_reason"], got["context"]) == ("Hello", "stop", [*asked.asked.prompt, *b"Hello", END])
    *said, end = lines(ask(engine(says("Hello")), GENERATE))
    assert "".join(line["response"] for line in said) == "Hello" and end["response"] == "" and end["done"]


def test_a_context_is_gone_on_from() -> None:
    context = ask(engine(says("Hello")), GENERATE, stream=False).json()["context"]
    assert context == [*b"user: Hi\nHello", END]
    asked = engine()
    assert ask(asked, GENERATE, prompt="More", context=context, stream=False).status_code == 200
    assert asked.asked.prompt == [*context, *b"user: More\n"]


def test_a_long_context_is_a_list_of_tokens() -> None:
    asked = engine(longest=200_000)
    assert ask(asked, GENERATE, context=[97] * 120_000, stream=False).status_code == 200
    assert len(asked.asked.prompt) == 120_000 + len("user: Hi\n")


def test_a_raw_prompt_is_all_of_it() -> None:
    asked = engine()
    got = ask(asked, GENERATE, prompt="Once", raw=True, stream=False).json()
    assert prompt(asked) == "Once" and "context" not in got


@pytest.mark.parametrize("fields", [{"prompt": ""}, {"prompt": None}, {"keep_alive": "5m", "prompt": ""}])
def test_nothing_asked_is_a_wish_to_load(fields: dict[str, Any]) -> None:
    asked = engine()
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
    asked = engine()
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
    asked = engine(says("Hello one"))
    got = ask(asked, options=options, stream=False).json()
    assert (got["message"]["content"], got["done_reason"], asked.asked.max_tokens) == (said, reason, most)


@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_formats(path: str) -> None:
    def grammar(format: Any) -> str:
        asked = engine()
        assert ask(asked, path, format=format).status_code == 200
        return asked.asked.sampling.grammar

    assert grammar("") == grammar(None) == "" != grammar("json")
    assert "city" in grammar(CITY)


def test_logprobs() -> None:
    got = ask(engine(says("a")), stream=False, logprobs=True, top_logprobs=2).json()["logprobs"]
    assert got == [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "b", "logprob": -1.5, "bytes": [98]}],
        }
    ]
    assert [line.get("logprobs", [{}])[0].get("token") for line in lines(ask(engine(says("ab")), GENERATE, logprobs=True))] == [
        "a",
        "b",
        None,
    ]


def test_an_answer_goes_on_from_what_it_is_said_to_begin_with() -> None:
    asked = engine()
    assert ask(asked, messages=[*HI, {"role": "assistant", "content": "Well, "}]).status_code == 200
    assert prompt(asked) == "user: Hi\nWell, "


# Tools and thoughts


@pytest.mark.parametrize("stream", [False, True])
def test_calls_come_whole(stream: bool) -> None:
    answer = ask(engine(says(f"Hm.\n{PARIS}\n{LYON}")), tools=[WEATHER], stream=stream)
    told = lines(answer) if stream else [answer.json()]
    calls = [call for line in told for call in line["message"].get("tool_calls", ())]
    assert [call["function"] for call in calls] == [
        {"index": i, "name": "get_weather", "arguments": {"city": city}} for i, city in enumerate(("Paris", "Lyon"))
    ]
    assert len({call["id"] for call in calls}) == 2
    assert "".join(line["message"]["content"] for line in told) == "Hm." and told[-1]["done_reason"] == "stop"


def test_a_call_that_is_cut_is_none() -> None:
    got = ask(engine(says(PARIS)), tools=[WEATHER], options={"num_predict": 60}, stream=False).json()
    assert got["message"] == {"role": "assistant", "content": ""} and got["done_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_whose_arguments_are_no_json_has_none(stream: bool) -> None:
    said = PARIS.replace('"Paris"', "Paris")
    answer = ask(engine(says(said)), tools=[WEATHER], stream=stream)
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
    asked = engine()
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
    assert "does not support thinking" in refused(ask(engine(), think=True), 400)
    assert ask(engine(), think=False).status_code == 200


# Embeddings and lists


def test_embeddings() -> None:
    got = ask(engine(), "/api/embed", input=["Hello", "b"]).json()
    assert (got["model"], got["prompt_eval_count"], len(got["embeddings"])) == ("fake", 6, 2)
    assert got["total_duration"] > 0 and [round(x, 3) for x in got["embeddings"][1]] == [1, 0, 0, 0]
    assert ask(engine(), "/api/embed", input="b").json()["embeddings"] == [got["embeddings"][1]]
    assert ask(engine(), "/api/embed", input=[]).json()["embeddings"] == []
    assert ask(engine(), "/api/embeddings", prompt="b").json() == {"embedding": got["embeddings"][1]}


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/api/embed", {"input": "a"}, "accepted"),
        ("/api/embed", {"input": []}, "accepted"),
        ("/api/embed", {"input": 1}, "400"),
        ("/api/embed", {"input": "a", "options": {"odd": 1}}, "400"),
        ("/api/embed", {"input": "a", "model": "other"}, "404"),
        ("/api/embeddings", {"prompt": "a", "truncate": True}, "400"),
    ],
)
def test_embeddings_are_counted_refused_ones_too(path: str, fields: dict[str, Any], status: str) -> None:
    asked = engine()
    ask(asked, path, **fields)
    assert [(endpoint, outcome) for endpoint, outcome, _ in asked.observed] == [("ollama_embed", status)]


def test_a_text_that_is_too_long_is_cut_unless_it_must_not_be() -> None:
    assert ask(engine(), "/api/embed", input="x" * 2000).json()["prompt_eval_count"] == 1000
    assert "tokens" in refused(ask(engine(), "/api/embed", input="x" * 2000, truncate=False), 400)


def test_the_model_in_its_lists() -> None:
    app = create_app(engine())
    (tag,) = fetch(app, "GET", "/api/tags").json()["models"]
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "135.00M",
        "quantization_level": "Q4_K",
    }
    assert (tag["name"], tag["model"], tag["size"], tag["details"]) == ("fake:latest", "fake:latest", 98_000_000, details)
    (running,) = fetch(app, "GET", "/api/ps").json()["models"]
    assert (running["digest"], running["context_length"], running["size_vram"]) == (tag["digest"], 1000, 0)
    shown = fetch(app, "POST", "/api/show", json={"model": "fake:latest"}).json()
    assert shown["details"] == details and shown["capabilities"] == ["completion", "tools", "embedding"]
    info = shown["model_info"]
    assert (info["general.architecture"], info["llama.context_length"], info["llama.embedding_length"]) == ("llama", 1000, 4)
    assert info["general.parameter_count"] == 135_000_000
    assert "thinking" in fetch(create_app(FakeEngine(reasoning=THINK)), "POST", "/api/show", json={"name": "fake"}).json()["capabilities"]


def test_whoever_looks_for_a_server_finds_one() -> None:
    app = create_app(engine())
    assert fetch(app, "HEAD", "/").status_code == 200
    assert fetch(app, "GET", "/").text == "shoal is running"
    assert [int(part) for part in fetch(app, "GET", "/api/version").json()["version"].split(".")] >= [0, 6, 4]


# Errors


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x", "images": ["AAAA"]}]}, "messages.0.images"),
        (CHAT, {"messages": [{"role": "tool", "content": "x", "tool_name": "f"}]}, "messages.0: no tool call"),
        (CHAT, {"options": {"nonsense": 1}}, "options: unknown parameter 'nonsense'"),
        (CHAT, {"options": {"mirostat": 2}}, "options: 'mirostat' is not supported"),
        (CHAT, {"options": {"num_predict": 0}}, "options.num_predict must be at least 1"),
        (CHAT, {"options": {"temperature": 9}}, "temperature must lie in"),
        (CHAT, {"truncate": True}, "'truncate' is not supported"),
        (CHAT, {"nonsense": 1}, "unknown parameter 'nonsense'"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 2000}]}, "the prompt has"),
        (GENERATE, {"suffix": "x"}, "'suffix' is not supported"),
        (GENERATE, {"template": "{{ .Prompt }}"}, "'template' is not supported"),
        (GENERATE, {"images": ["AAAA"]}, "'images' is not supported"),
        (GENERATE, {"context": [9999]}, "context has a token outside"),
        (GENERATE, {"context": [97] * 995}, "the prompt has"),
        (GENERATE, {"raw": True, "system": "x"}, "a raw prompt"),
        ("/api/embed", {"input": "x", "dimensions": 2}, "4 dimensions"),
    ],
)
def test_what_is_not_served_is_refused(path: str, fields: dict[str, Any], said: str) -> None:
    assert said in refused(ask(engine(), path, **fields), 400)


@pytest.mark.parametrize("served", ["fake", "fake:latest", "fake:q4"])
@pytest.mark.parametrize("asks", ["fake", "fake:latest", "fake:q4"])
def test_a_name_without_a_tag_is_one_with_the_tag_latest(served: str, asks: str) -> None:
    asked: Any = engine()
    asked.name = served
    same = served.removesuffix(":latest") == asks.removesuffix(":latest")
    answer = ask(asked, model=asks, stream=False)
    assert (answer.status_code, answer.json().get("model", asks)) == (200 if same else 404, asks)
    for field in ("model", "name"):
        assert fetch(create_app(asked), "POST", "/api/show", json={field: asks}).status_code == (200 if same else 404)


def test_errors_have_ollama_s_shape() -> None:
    app = create_app(engine())
    assert "known here are fake" in refused(ask(engine(), model="llama3"), 404)
    assert ask(engine(), model="fake:latest", stream=False).json()["model"] == "fake:latest"
    for method, what in (("POST", "pull"), ("POST", "push"), ("POST", "create"), ("POST", "copy"), ("DELETE", "delete")):
        assert "one model" in refused(fetch(app, method, f"/api/{what}", **({"json": {"model": "x"}} if method == "POST" else {})), 400)
    refused(fetch(app, "GET", "/api/nothing"), 404)
    refused(fetch(app, "GET", CHAT), 405)
    for refusal, status in ((NotReady("the model is being loaded"), 503), (QueueFull(3, 3), 429)):
        asked = engine()
        asked.refusal = refusal
        answer = ask(asked)
        refused(answer, status)
        assert int(answer.headers["retry-after"]) > 0


def test_a_stream_that_breaks_off_says_so() -> None:
    told = lines(ask(engine(lambda r: [*spoken(r, "Hel")[:3], StageLost("a node was lost")])))
    assert told[-1] == {"error": "a node was lost"} and not told[-2]["done"]


def test_keys(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    token = store.create("first", time())[1]
    store.close()
    app = create_app(FakeEngine(), ApiSettings(data=str(tmp_path)))
    assert "API key" in refused(fetch(app, "GET", "/api/tags"), 401)
    assert "API key" in refused(fetch(app, "POST", CHAT, json={"messages": HI}), 401)
    assert fetch(app, "GET", "/api/tags", headers={"authorization": f"Bearer {token}"}).status_code == 200
    assert fetch(app, "HEAD", "/").status_code == 200


def test_requests_are_counted_as_accepted_or_refused() -> None:
    asked = engine()
    app = create_app(asked)
    fetch(app, "POST", CHAT, json={"messages": HI})
    fetch(app, "POST", GENERATE, json={"prompt": "Hi", "nonsense": 1})
    fetch(app, "POST", "/api/embed", json={"input": "Hi"})
    assert asked.observed == [("ollama_chat", "accepted", 9), ("ollama_generate", "400", 0), ("ollama_embed", "accepted", 2)]


def test_an_answer_is_written_the_same_after_a_restart() -> None:
    body = ChatRequest.model_validate({"messages": HI, "tools": [WEATHER], "logprobs": True, "options": {"stop": "x"}})
    job = chat_job(body, engine(reasoning=THINK), "mine", "fake:latest")
    assert job.stops == ("x",) and job.named and job.model == "fake:latest"
    assert recalled(job.note, job.requests) == job


# The SDK


def sdk(asked: FakeEngine, work: Callable[[ollama.AsyncClient], Awaitable[None]]) -> None:
    async def go() -> None:
        async with serving(create_app(asked)) as port:
            client = ollama.AsyncClient(host=f"http://127.0.0.1:{port}", trust_env=False)
            await work(client)
            await client._client.aclose()

    asyncio.run(go())


def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name
    """
    return "sun" + city


@pytest.mark.slow
def test_the_sdk_reads_answers_and_streams() -> None:
    async def work(client: ollama.AsyncClient) -> None:
        whole = await client.chat("fake", HI, tools=[get_weather])
        (call,) = whole.message.tool_calls or ()
        assert (whole.message.content, call.function.name, call.function.arguments) == ("Hm.", "get_weather", {"city": "Paris"})
        assert whole.done and whole.done_reason == "stop" and (whole.total_duration or 0) > 0
        parts = [part async for part in await client.chat("fake", HI, tools=[get_weather], stream=True)]
        assert "".join(part.message.content or "" for part in parts) == "Hm." and parts[-1].done
        back = [*HI, whole.message, {"role": "tool", "content": "sun", "tool_name": "get_weather"}]
        assert (await client.chat("fake", back, tools=[get_weather])).done
        text = await client.generate("fake", "Hi", options={"num_predict": 3}, format="json")
        assert text.response == "Hm." and text.eval_count == 3
        assert [part.response async for part in await client.generate("fake", "Hi", stream=True, options={"num_predict": 2})] == [
            "H",
            "m",
            "",
        ]
        embedded = await client.embed("fake", ["a", "b"])
        assert len(embedded.embeddings) == 2 and len(embedded.embeddings[0]) == 4
        assert len((await client.embeddings("fake", "a")).embedding) == 4
        assert [model.model for model in (await client.list()).models] == ["fake:latest"]
        shown = await client.show("fake")
        assert shown.modelinfo is not None and shown.modelinfo["llama.block_count"] == 2 and "tools" in (shown.capabilities or ())
        assert [model.context_length for model in (await client.ps()).models] == [1000]

    sdk(engine(says(f"Hm.\n{PARIS}")), work)


@pytest.mark.slow
def test_the_sdk_knows_the_errors() -> None:
    async def work(client: ollama.AsyncClient) -> None:
        with pytest.raises(ollama.ResponseError, match="known here are fake") as found:
            await client.chat("nobody", HI)
        assert found.value.status_code == 404
        with pytest.raises(ollama.ResponseError, match="one model"):
            await client.pull("fake")
        with pytest.raises(ollama.ResponseError, match="a node was lost"):
            async for _ in await client.chat("fake", HI, stream=True):
                pass

    sdk(engine(lambda r: [*spoken(r, "Hel")[:3], StageLost("a node was lost")]), work)
