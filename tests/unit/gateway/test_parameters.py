"""Which parameters reach the engine, and which are refused by their names."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import pytest

from shoal.gateway.service import MAX_BODY
from shoal.request import MAX_CHOICES, Priority
from tests.support.app import app_of
from tests.support.engine import VOCABULARY, FakeEngine
from tests.support.http import CHAT, COMPLETIONS, HI, ask, complete, fetch, refused


def raw(body: bytes, path: str = CHAT) -> httpx.Response:
    return fetch(app_of(FakeEngine()), "POST", path, content=body)


# What reaches the engine


def test_parameters_reach_the_sampler() -> None:
    engine = FakeEngine()
    ask(engine, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=3, presence_penalty=1, logit_bias={"5": -2}, max_tokens=9)
    sampling = engine.asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (0.5, 0.9, 7, 0.1, 3)
    assert (sampling.presence_penalty, sampling.logit_bias, engine.asked.max_tokens) == (1.0, {5: -2.0}, 9)


def test_nulls_are_defaults() -> None:
    engine = FakeEngine()
    assert ask(engine, temperature=None, n=None, stop=None, stream=None, max_tokens=None).status_code == 200
    assert (engine.asked.sampling.temperature, engine.asked.n) == (1.0, 1)


def test_without_max_tokens_the_rest_of_the_context_is_used() -> None:
    engine = FakeEngine(longest=100)
    ask(engine)
    assert engine.asked.max_tokens == 100 - len(engine.asked.prompt)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(("wanted", "code"), [(0, None), (-1, None), (100, "context_length_exceeded"), (2**63, "context_length_exceeded")])
def test_a_limit_that_cannot_be_is_refused_by_the_name_that_it_was_given(field: str, wanted: int, code: str | None) -> None:
    assert field in refused(ask(FakeEngine(longest=100), **{field: wanted}), 400, field, code)


def test_requests_without_a_seed_differ() -> None:
    seeds: set[int] = set()
    for _ in range(3):
        engine = FakeEngine()
        ask(engine)
        seeds.add(engine.asked.sampling.seed)
    assert len(seeds) == 3


@pytest.mark.parametrize(
    "inert",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": True},
        {"response_format": {"type": "text"}},
        {"store": True},
        {"metadata": {"a": "b"}},
        {"user": "me"},
        {"reasoning_effort": "none"},
        {"reasoning_effort": "high"},
        {"prompt_cache_retention": "24h"},
        {"prompt_cache_options": {"mode": "implicit"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"verbosity": "medium"},
        {"modalities": ["text"]},
    ],
)
def test_parameters_that_ask_for_nothing_are_accepted(inert: dict[str, Any]) -> None:
    assert ask(FakeEngine(), **inert).status_code == 200


# What is refused


UNSUPPORTED = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "functions": [{}],
    "function_call": "auto",
    "modalities": ["audio"],
    "audio": {"voice": "x", "format": "mp3"},
    "prediction": {"type": "content", "content": "x"},
    "verbosity": "low",
    "web_search_options": {},
}


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_is_not_served_is_refused(field: str) -> None:
    refused(ask(FakeEngine(), **{field: UNSUPPORTED[field]}), 400, field, "unsupported_parameter")


def test_what_the_engine_is_asked_for_beside_sampling() -> None:
    engine = FakeEngine()
    ask(engine, ignore_eos=True, service_tier="flex")
    assert (engine.asked.stop_tokens, engine.asked.priority) == (frozenset(), Priority.FLEX)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_is_not_known_is_refused(path: str) -> None:
    body = {"messages": HI} if path == CHAT else {"prompt": "x"}
    answer = fetch(app_of(FakeEngine()), "POST", path, json={**body, "temprature": 1})
    refused(answer, 400, "temprature", "unknown_parameter")


WRONG: list[tuple[str, Any]] = [
    ("n", 0),
    ("n", MAX_CHOICES + 1),
    ("n", True),
    ("n", "2"),
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("temperature", -0.1),
    ("temperature", "hot"),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_k", -1),
    ("min_p", 2),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("repetition_penalty", 0),
    ("stop", ["a"] * 5),
    ("stop", ""),
    ("stop", 3),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {str(VOCABULARY): 1}),
    ("logit_bias", {"5": 101}),
    ("top_logprobs", 3),
    ("response_format", {"type": "json_schema"}),
    ("response_format", {"type": "text", "json_schema": {"name": "x"}}),
    ("tool_choice", "required"),
    ("tool_choice", "sometimes"),
    ("stream", 1),
    ("stream_options", {"include_usage": True}),
    ("messages", []),
    ("messages", "x"),
    ("model", 5),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_wrong_values_are_refused_by_name(field: str, value: Any) -> None:
    engine = FakeEngine()
    assert field in refused(ask(engine, **{field: value}), 400, field)
    assert not engine.streams


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**400])
def test_an_integer_that_fits_nowhere_is_refused_wherever_it_is(number: int) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"default": number}}}
    assert "64 bits" in refused(fetch(app_of(FakeEngine()), "POST", CHAT, json={"messages": HI, "tools": [tool]}), 400)


def test_what_is_no_number_is_refused_where_it_would_only_be_repeated() -> None:
    body = b'{"input": "x", "tool_choice": "none", "tools": [{"type": "function", "name": "f", "parameters": {"default": NaN}}]}'
    refused(fetch(app_of(FakeEngine()), "POST", "/v1/responses", content=body), 400, "tools")


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63)])
def test_the_largest_integers_are_seeds(number: int) -> None:
    engine = FakeEngine()
    assert fetch(app_of(engine), "POST", CHAT, json={"messages": HI, "seed": number}).status_code == 200
    assert engine.asked.sampling.seed == number % 2**64


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty"])
def test_numbers_that_are_none_are_refused(field: str, number: bytes) -> None:
    body = b'{"messages": [{"role": "user", "content": "x"}], "%s": %s}' % (field.encode(), number)
    refused(raw(body), 400, field)


@pytest.mark.parametrize("content", [None, 5, [{"type": "image_url", "image_url": {"url": "x"}}], [{"type": "text"}]])
def test_contents_that_are_no_text_are_refused(content: Any) -> None:
    answer = ask(FakeEngine(), messages=[{"role": "user", "content": content}])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("messages.0.content")


@pytest.mark.parametrize("prompt", [[], [-1], [VOCABULARY], [1.0], [True], [1, "a"], None, ["a"] * 65])
def test_prompts_that_are_none_are_refused(prompt: Any) -> None:
    refused(complete(FakeEngine(), prompt=prompt), 400, "prompt")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"])
def test_bodies_that_are_no_object_are_refused(body: bytes) -> None:
    refused(raw(body), 400)


def test_a_huge_body_is_refused() -> None:
    refused(raw(b" " * (MAX_BODY + 1)), 413, code="request_too_large")


def test_both_limits_at_once_are_refused() -> None:
    refused(ask(FakeEngine(), max_tokens=1, max_completion_tokens=1), 400, "max_tokens")


def test_an_unknown_model_is_not_found() -> None:
    assert "gpt-9" in refused(ask(FakeEngine(), model="gpt-9"), 404, "model", "model_not_found")


# Clients that leave


@pytest.mark.parametrize(
    "body",
    ['{"messages": [{"role": "user", "content": "\\ud800"}]}', '{"messages": [{"role": "user", "content": "x"}], "model": "\\ud800"}'],
)
def test_a_lone_surrogate_is_refused(body: str) -> None:
    answer = fetch(app_of(FakeEngine()), "POST", CHAT, content=body.encode())
    assert (answer.status_code, "error" in answer.text) == (400, True)
