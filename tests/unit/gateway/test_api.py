"""The gateway over an engine without a model."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2 as httpx
import pytest

from shoal.errors import ClusterError, InvalidRequest, NotReady, QueueFull, StageLost
from shoal.gateway.app import create_app
from shoal.gateway.service import MAX_BODY
from shoal.request import MAX_CHOICES, Priority, Request, Score, TokenChunk
from tests.support.engine import VOCABULARY, FakeEngine, Item, says, spoken
from tests.support.http import CHAT, COMPLETIONS, HI, Leaver, ask, complete, events, fetch, refused


def raw(body: bytes, path: str = CHAT) -> httpx.Response:
    return fetch(create_app(FakeEngine()), "POST", path, content=body)


def choice_text(stream: list[dict[str, Any]], index: int = 0) -> str:
    deltas = [c["delta"] for event in stream for c in event["choices"] if c["index"] == index]
    return "".join(delta.get("content") or "" for delta in deltas)


# Chat


def test_chat_answers_the_whole_text() -> None:
    answer = ask(FakeEngine()).json()
    choice = answer["choices"][0]
    assert (answer["object"], answer["model"], len(answer["choices"])) == ("chat.completion", "fake", 1)
    assert choice["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)


def test_chat_counts_tokens() -> None:
    usage = ask(FakeEngine(), max_tokens=3).json()["usage"]
    prompt = len("user: Hi\n")
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (prompt, 3, prompt + 3)


def test_chat_cut_at_max_tokens_says_length() -> None:
    choice = ask(FakeEngine(), max_completion_tokens=2).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("He", "length")


def test_stream_opens_with_the_role_and_ends_with_the_reason() -> None:
    stream = events(ask(FakeEngine(), stream=True))
    assert stream[0]["choices"][0]["delta"]["role"] == "assistant"
    assert choice_text(stream) == "Hello"
    assert [e["choices"][0]["finish_reason"] for e in stream] == [None] * (len(stream) - 1) + ["stop"]
    assert {e["object"] for e in stream} == {"chat.completion.chunk"}
    assert len({e["id"] for e in stream}) == 1


def test_what_is_said_of_a_prompt_is_no_token_of_the_answer() -> None:
    def script(request: Request) -> list[Item]:
        return [TokenChunk(request.id, 0, None, scores=(Score(1, None),)), *spoken(request, "Hello")]

    answer = ask(FakeEngine(script)).json()
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["usage"] == ask(FakeEngine(says("Hello"))).json()["usage"]


def test_stream_reports_usage_only_when_asked() -> None:
    plain = events(ask(FakeEngine(), stream=True))
    asked = events(ask(FakeEngine(), stream=True, stream_options={"include_usage": True}))
    assert not any("usage" in event for event in plain)
    assert (asked[-1]["choices"], asked[-1]["usage"]["completion_tokens"]) == ([], 6)
    assert all(event["usage"] is None for event in asked[:-1])


def test_every_choice_has_its_own_text() -> None:
    answer = ask(FakeEngine(says("one", "two", "drei")), n=3).json()
    assert [(c["index"], c["message"]["content"]) for c in answer["choices"]] == [(0, "one"), (1, "two"), (2, "drei")]


def test_choices_of_a_stream_are_told_apart() -> None:
    stream = events(ask(FakeEngine(says("one", "two")), n=2, stream=True))
    assert [choice_text(stream, i) for i in (0, 1)] == ["one", "two"]


def test_half_a_character_is_never_streamed() -> None:
    stream = events(ask(FakeEngine(says("a😀é")), stream=True))
    assert [e["choices"][0]["delta"].get("content") for e in stream[1:-1]] == ["a", "😀", "é"]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_over_tokens_is_not_leaked(stream: bool) -> None:
    engine = FakeEngine(says("before END after"), hang=True)
    answer = ask(engine, stop=["never", "END"], stream=stream)
    text = choice_text(events(answer)) if stream else answer.json()["choices"][0]["message"]["content"]
    assert text == "before "
    assert engine.streams[0].ended == {0}


def test_stop_string_ends_one_choice_and_not_the_other() -> None:
    answer = ask(FakeEngine(says("ab.cd", "abcdef")), n=2, stop=".").json()
    assert [c["message"]["content"] for c in answer["choices"]] == ["ab", "abcdef"]
    assert [c["finish_reason"] for c in answer["choices"]] == ["stop", "stop"]


def test_what_only_began_like_a_stop_string_is_text() -> None:
    assert ask(FakeEngine(says("so EN")), stop="END").json()["choices"][0]["message"]["content"] == "so EN"


def test_chat_logprobs_name_every_token() -> None:
    content = ask(FakeEngine(says("ab")), logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert [(t["token"], t["bytes"], t["logprob"]) for t in content] == [("a", [97], -0.5), ("b", [98], -0.5)]
    assert [t["token"] for t in content[0]["top_logprobs"]] == ["a", "b"]


def test_streamed_logprobs_are_those_of_the_whole() -> None:
    whole = ask(FakeEngine(says("é!")), logprobs=True).json()["choices"][0]["logprobs"]["content"]
    stream = events(ask(FakeEngine(says("é!")), logprobs=True, stream=True))
    streamed = [t for e in stream if (lp := e["choices"][0]["logprobs"]) for t in lp["content"]]
    assert streamed == whole


def test_text_parts_are_joined() -> None:
    engine = FakeEngine()
    ask(engine, messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])
    assert bytes(engine.asked.prompt) == b"user: ab\n"


def test_the_tier_that_a_request_is_served_with_is_told() -> None:
    assert [ask(FakeEngine(), service_tier=tier).json()["service_tier"] for tier in ("auto", "default", "flex", "priority", None)] == [
        *("default", "default", "flex", "priority", "default")
    ]
    assert {event["service_tier"] for event in events(ask(FakeEngine(), service_tier="flex", stream=True))} == {"flex"}


def test_usage_has_its_details() -> None:
    usage = ask(FakeEngine()).json()["usage"]
    assert (usage["completion_tokens_details"]["reasoning_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (0, 0)


def test_developer_is_the_system() -> None:
    engine = FakeEngine()
    ask(engine, messages=[{"role": "developer", "content": "x"}])
    assert bytes(engine.asked.prompt) == b"system: x\n"


# Completions


def test_completion_of_text_and_of_tokens_is_the_same() -> None:
    of_text, of_tokens = (complete(FakeEngine(), prompt=p).json() for p in ("Hi", [72, 105]))
    assert of_text["object"] == "text_completion"
    assert of_text["choices"] == of_tokens["choices"]


@pytest.mark.parametrize("prompts", [["a", "bc"], [[97], [98, 99]]])
def test_several_prompts_are_answered_in_their_order(prompts: list[Any]) -> None:
    engine = FakeEngine(lambda r: spoken(r, bytes(r.prompt).decode().upper()))
    answer = complete(engine, prompt=prompts).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "A"), (1, "BC")]
    assert answer["usage"]["prompt_tokens"] == 3


def test_choices_of_several_prompts_are_numbered_through() -> None:
    answer = complete(FakeEngine(says("x", "y")), prompt=["a", "b"], n=2).json()
    assert [c["text"] for c in answer["choices"]] == ["x", "y", "x", "y"]


def test_completion_has_16_tokens_unless_told() -> None:
    engine = FakeEngine()
    complete(engine)
    assert engine.asked.max_tokens == 16


def test_completion_logprobs_give_offsets() -> None:
    logprobs = complete(FakeEngine(says("abc")), logprobs=1).json()["choices"][0]["logprobs"]
    assert (logprobs["tokens"], logprobs["text_offset"]) == (["a", "b", "c"], [0, 1, 2])
    assert logprobs["top_logprobs"][0] == {"a": -0.5}


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
    answer = fetch(create_app(FakeEngine()), "POST", path, json={**body, "temprature": 1})
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
    assert "64 bits" in refused(fetch(create_app(FakeEngine()), "POST", CHAT, json={"messages": HI, "tools": [tool]}), 400)


def test_what_is_no_number_is_refused_where_it_would_only_be_repeated() -> None:
    body = b'{"input": "x", "tool_choice": "none", "tools": [{"type": "function", "name": "f", "parameters": {"default": NaN}}]}'
    refused(fetch(create_app(FakeEngine()), "POST", "/v1/responses", content=body), 400, "tools")


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63)])
def test_the_largest_integers_are_seeds(number: int) -> None:
    engine = FakeEngine()
    assert fetch(create_app(engine), "POST", CHAT, json={"messages": HI, "seed": number}).status_code == 200
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


# Other endpoints


def test_the_model_is_listed() -> None:
    app = create_app(FakeEngine())
    listed = fetch(app, "GET", "/v1/models").json()
    assert [m["id"] for m in listed["data"]] == ["fake"]
    assert fetch(app, "GET", "/v1/models/fake").json() == listed["data"][0]


def test_a_model_that_is_not_there_is_not_found() -> None:
    refused(fetch(create_app(FakeEngine()), "GET", "/v1/models/other"), 404, "model", "model_not_found")


@pytest.mark.parametrize(("method", "path"), [("GET", "/nope"), ("POST", "/v1/images/generations"), ("POST", "/nope")])
def test_endpoints_that_are_not_there_are_not_found(method: str, path: str) -> None:
    assert path in refused(fetch(create_app(FakeEngine()), method, path), 404)


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("PUT", COMPLETIONS), ("POST", "/v1/models"), ("DELETE", "/health")])
def test_other_methods_are_not_allowed(method: str, path: str) -> None:
    refused(fetch(create_app(FakeEngine()), method, path), 405)


def test_live_and_ready_are_told_apart() -> None:
    engine = FakeEngine()
    app = create_app(engine)
    assert fetch(app, "GET", "/health/ready").status_code == 200
    engine.state = "1 of 2 nodes have joined"
    ready = fetch(app, "GET", "/health/ready")
    assert (ready.status_code, ready.json()["reason"]) == (503, engine.state)
    assert fetch(app, "GET", "/health/live").status_code == 200
    assert fetch(app, "GET", "/health").json()["ready"] is False


def test_metrics_are_text() -> None:
    answer = fetch(create_app(FakeEngine()), "GET", "/metrics")
    assert (answer.text, answer.headers["content-type"].split(";")[0]) == ("shoal_ready 1\n", "text/plain")


# What the engine refuses


REFUSALS = [
    (NotReady("no model yet"), 503, "not_ready"),
    (QueueFull(9, 8), 429, "queue_full"),
    (ClusterError("a node failed"), 503, "unavailable"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "code"), REFUSALS)
def test_refusals_have_their_status_even_for_streams(error: Exception, status: int, code: str, stream: bool) -> None:
    engine = FakeEngine()
    engine.refusal = error  # pyright: ignore[reportAttributeAccessIssue]
    answer = ask(engine, stream=stream)
    refused(answer, status, None, code)
    assert answer.headers["retry-after"] == "5"
    assert engine.observed == [("chat", str(status), 0)]


def test_a_prompt_too_long_is_refused_by_the_engine() -> None:
    engine = FakeEngine()
    engine.refusal = InvalidRequest("too long", "prompt", "context_length_exceeded")
    refused(complete(engine), 400, "prompt", "context_length_exceeded")


def test_one_refused_prompt_cancels_those_before_it() -> None:
    class Full(FakeEngine):
        def submit(self, request: Any) -> Any:
            if len(self.streams) == 2:
                raise QueueFull(2, 2)
            return super().submit(request)

    engine = Full()
    refused(complete(engine, prompt=["a", "b", "c"]), 429, None, "queue_full")
    assert [s.closed for s in engine.streams] == [True, True]


def lost(request: Any) -> list[Any]:
    return [*spoken(request, "Hel")[:3], StageLost("a node was lost")]


def test_an_error_on_the_way_is_an_answer() -> None:
    refused(ask(FakeEngine(lost)), 503, None, "unavailable")


def test_an_error_on_the_way_ends_a_stream_without_done() -> None:
    stream = events(ask(FakeEngine(lost), stream=True))
    assert choice_text(stream[:-1]) == "Hel"
    assert stream[-1]["error"]["message"] == "a node was lost"


# Clients that leave


def leave(engine: FakeEngine, after: int, *, stuck: bool = False, path: str = CHAT, **fields: Any) -> Leaver:
    """A client that leaves after so many parts; the application returns, and soon nothing runs for it any more."""

    async def go() -> Leaver:
        leaver = Leaver({"messages": HI, **fields}, after, stuck=stuck)
        await leaver.visit(create_app(engine), path)
        await asyncio.sleep(0)  # an abandoned generator is closed by a task of its own
        await asyncio.sleep(0)
        return leaver

    return asyncio.run(go())


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_as_soon_as_the_request_is_sent_cancels(stream: bool) -> None:
    engine = FakeEngine(lambda r: [], hang=True)
    leave(engine, -1, stream=stream)
    assert engine.streams[0].closed


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_leaving_before_the_first_token_cancels(stream: bool, n: int) -> None:
    engine = FakeEngine(lambda r: [], hang=True)
    leave(engine, 0, stream=stream, n=n)
    assert engine.streams[0].closed


def test_leaving_in_the_middle_cancels() -> None:
    engine = FakeEngine(lambda r: spoken(r, "Hello")[:3], hang=True)
    leaver = leave(engine, 3, stream=True)
    assert engine.streams[0].closed
    assert b"DONE" not in b"".join(m.get("body", b"") for m in leaver.sent)


def test_leaving_while_nothing_more_can_be_sent_cancels() -> None:
    engine = FakeEngine(says("Hello"), hang=True)
    leave(engine, 2, stuck=True, stream=True)
    assert engine.streams[0].closed


def test_an_answer_that_was_read_to_its_end_is_closed() -> None:
    engine = FakeEngine()
    assert ask(engine, stream=True).status_code == 200
    assert engine.streams[0].closed
    assert engine.first_tokens == 1


def test_text_is_sent_as_it_is_and_not_escaped() -> None:
    answer = ask(FakeEngine(says("日本語")), stream=True)
    assert "日" in answer.text
    assert choice_text(events(answer)) == "日本語"


@pytest.mark.parametrize(
    "body",
    ['{"messages": [{"role": "user", "content": "\\ud800"}]}', '{"messages": [{"role": "user", "content": "x"}], "model": "\\ud800"}'],
)
def test_a_lone_surrogate_is_refused(body: str) -> None:
    answer = fetch(create_app(FakeEngine()), "POST", CHAT, content=body.encode())
    assert (answer.status_code, "error" in answer.text) == (400, True)
