"""Answers that are given again, in every dialect: to whom, for how long, and how it is said."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from time import time
from typing import Any

import httpx2 as httpx
import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import connect

from shoal.config import ApiSettings
from shoal.errors import ConfigError, ShoalError, StageLost
from shoal.gateway.auth.key import KeyLimits
from shoal.gateway.auth.key_store import KeyStore
from shoal.request import FinishReason, Request, TokenChunk
from shoal.serving.response_store import NAME
from shoal.text.reasoning import THINK
from tests.support.app import app_of
from tests.support.batches import Api, line, run
from tests.support.engine import END, FakeEngine, able, says, spoken
from tests.support.http import CHAT, COMPLETIONS, HI, Leaver, events, fetch, refused, serving
from tests.support.response_cache import COLD, age, cached, kept, mark, marks, post, said, unmarked
from tests.support.tools import BOTH, TOOLS

RESPONSES, MESSAGES, OLLAMA, GENERATE = "/v1/responses", "/v1/messages", "/api/chat", "/api/generate"
DIALECTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, COLD),
    (COMPLETIONS, {"prompt": "Hi", "temperature": 0}),
    (RESPONSES, {"input": "Hi", "temperature": 0}),
    (MESSAGES, {"messages": HI, "max_tokens": 50, "temperature": 0}),
    (OLLAMA, {"model": "fake", "messages": HI, "options": {"temperature": 0}, "stream": False}),
    (GENERATE, {"model": "fake", "prompt": "Hi", "options": {"temperature": 0}, "stream": False}),
]
dialects = pytest.mark.parametrize(("path", "body"), DIALECTS, ids=[path for path, _ in DIALECTS])

# Every dialect


@dialects
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_equal_request_gets_the_same_answer_without_the_engine(tmp_path: Path, path: str, body: dict[str, Any], stream: bool) -> None:
    engine = FakeEngine(says("Hello, näher ☃"))
    app = cached(engine, tmp_path)
    first, second = (post(app, path, {**body, "stream": stream}) for _ in range(2))
    assert marks(first, second) == ["miss", "hit"]
    assert said(second) == said(first)
    assert second.headers["content-type"] == first.headers["content-type"]
    assert len(engine.streams) == 1
    assert engine.reused == [False, True]
    assert engine.ended == ["complete"] * 2
    assert [outcome for _, outcome, _ in engine.observed] == ["accepted"] * 2


@dialects
def test_a_stream_is_given_again_as_a_whole_answer_and_the_other_way_round(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    apart = app_of(FakeEngine(says("Hello")), ApiSettings(data=str(tmp_path / "apart")))
    right = [said(post(apart, path, {**body, "stream": stream})) for stream in (False, True)]
    engine = FakeEngine(says("Hello"))
    app = cached(engine, tmp_path)
    answers = [post(app, path, {**body, "stream": stream}) for stream in (True, False, True)]
    assert marks(*answers) == ["miss", "hit", "hit"]
    assert [said(answer) for answer in answers] == [right[1], right[0], right[1]]


@dialects
def test_only_a_kept_answer_may_be_asked_for(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    engine = FakeEngine()
    app = cached(engine, tmp_path)
    answer = post(app, path, body, "only-if-cached")
    assert (answer.status_code, mark(answer), engine.streams) == (504, "miss", [])
    why = "the request says 'Cache-Control: only-if-cached': this one is not kept, or no longer; leave that out, and it is computed"
    error = answer.json()["error"]
    if path.startswith("/api"):
        assert error == why
    elif path == MESSAGES:
        assert answer.json() == {"type": "error", "error": {"type": "timeout_error", "message": why}}
    else:
        assert error == {"message": why, "type": "invalid_request_error", "param": "Cache-Control", "code": "not_cached"}
    assert mark(post(app, path, body)) == "miss"
    assert mark(post(app, path, body, "only-if-cached")) == "hit"


def test_a_batch_finds_what_was_asked_before(tmp_path: Path) -> None:
    engine = FakeEngine(says("Hello"))

    async def go(api: Api) -> None:
        bodies = {
            "chat": line("chat", **COLD),
            "warm": line("warm", messages=HI),
        }
        first, second = [await api.ended(await api.begin(bodies.values())) for _ in range(2)]
        assert (first["request_counts"]["completed"], second["request_counts"]["completed"]) == (2, 2)
        texts = [
            result["response"]["body"]["choices"][0]["message"]["content"]
            for batch in (first, second)
            for result in (await api.results(batch["output_file_id"])).values()
        ]
        assert texts == ["Hello"] * 4
        assert mark(await api.http.post(CHAT, json=COLD)) == "hit"

    run(engine, tmp_path, go, response_cache="1MiB")
    assert len(engine.streams) == 3
    assert engine.reused == [False, True, True]


# What an answer may have


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"n": 3}),
        (CHAT, {"n": 2, "stream": True, "stream_options": {"include_usage": True}}),
        (CHAT, {"logprobs": True, "top_logprobs": 2}),
        (CHAT, {"logprobs": True, "top_logprobs": 2, "stream": True}),
        (CHAT, {"max_tokens": 3}),
        (CHAT, {"stop": "llo"}),
        (CHAT, {"stop": ["o", "x"], "stream": True, "n": 2}),
        (CHAT, {"seed": 5, "temperature": 1}),
        (COMPLETIONS, {"prompt": ["a", "b", "c"], "n": 2}),
        (COMPLETIONS, {"best_of": 3, "logprobs": 1}),
        (COMPLETIONS, {"echo": True, "logprobs": 2}),
        (COMPLETIONS, {"echo": True, "logprobs": 1, "max_tokens": 0}),
    ],
)
def test_whatever_an_answer_has_is_given_again(tmp_path: Path, path: str, fields: dict[str, Any]) -> None:
    engine = FakeEngine(says("Hello", "World", "Hallo"))
    app = cached(engine, tmp_path)
    body = {**(COLD if path == CHAT else {"prompt": "Hi", "temperature": 0}), **fields}
    first, second = (post(app, path, body) for _ in range(2))
    assert marks(first, second) == ["miss", "hit"]
    assert said(second) == said(first)
    assert len(engine.streams) == (len(fields["prompt"]) if "prompt" in fields else 1)


def test_streams_of_several_prompts_are_given_again_each(tmp_path: Path) -> None:
    """In which order their pieces come is not kept."""
    app = cached(FakeEngine(lambda request: spoken(request, bytes(request.prompt).decode() * 30)), tmp_path)
    answers = [post(app, COMPLETIONS, {"prompt": ["ab", "xyz"], "temperature": 0, "max_tokens": 900, "stream": True}) for _ in range(2)]
    assert marks(*answers) == ["miss", "hit"]
    for index in (0, 1):
        first, second = ([event for event in events(answer) if event["choices"][0]["index"] == index] for answer in answers)
        assert unmarked(second) == unmarked(first)
        assert len(second) > 60


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools_are_given_again(tmp_path: Path, stream: bool) -> None:
    app = cached(able(says(BOTH)), tmp_path)
    first, second = (post(app, body={**COLD, "tools": TOOLS, "stream": stream}) for _ in range(2))
    assert marks(first, second) == ["miss", "hit"]
    assert said(second) == said(first)
    assert '"tool_calls"' in second.text


def test_thoughts_are_given_again(tmp_path: Path) -> None:
    app = cached(FakeEngine(says("<think>hm</think>so"), reasoning=THINK), tmp_path)
    first, second = (post(app) for _ in range(2))
    assert said(second) == said(first)
    assert second.json()["choices"][0]["message"]["reasoning_content"] == "hm"


def test_a_long_stream_is_given_again_as_a_stream(tmp_path: Path) -> None:
    engine = FakeEngine(says("0123456789" * 50))
    app = cached(engine, tmp_path)
    body = {**COLD, "stream": True}
    first, second = (post(app, body=body) for _ in range(2))
    assert said(second) == said(first)
    assert second.text.count("data: ") == 500 + 3


def test_a_kept_response_can_be_gone_on_from(tmp_path: Path) -> None:
    engine = FakeEngine(says("Hello"))
    app = cached(engine, tmp_path)
    body = {"input": "Hi", "temperature": 0}
    first, second = (post(app, RESPONSES, body) for _ in range(2))
    assert marks(first, second) == ["miss", "hit"]
    assert first.json()["id"] != second.json()["id"]
    assert fetch(app, "GET", f"{RESPONSES}/{second.json()['id']}").json() == second.json()
    further = post(app, RESPONSES, {"input": "And?", "temperature": 0, "previous_response_id": second.json()["id"]})
    assert (further.status_code, mark(further)) == (200, "miss")


# Which requests


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HI}),
        (CHAT, {"messages": HI, "temperature": 0.1}),
        (COMPLETIONS, {"prompt": "Hi"}),
        (OLLAMA, {"model": "fake", "messages": HI, "stream": False}),
        ("/v1/embeddings", {"input": "Hi"}),
        ("/api/embed", {"model": "fake", "input": "Hi"}),
        ("/tokenize", {"prompt": "Hi"}),
        (MESSAGES + "/count_tokens", {"messages": HI}),
    ],
)
def test_answers_by_chance_are_always_computed(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    engine = FakeEngine()
    app = cached(engine, tmp_path)
    answers = [post(app, path, body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert marks(*answers) == [None, None]
    assert (kept(tmp_path), engine.reused) == (0, [])


@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": HI}), ("/v1/embeddings", {"input": "Hi"})])
def test_only_a_kept_answer_cannot_be_one_by_chance(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    message = refused(post(cached(FakeEngine(), tmp_path), path, body, "only-if-cached"), 504, "Cache-Control", "not_cached")
    assert "only answers with temperature 0 or a seed are kept" in message


def test_without_the_setting_nothing_is_kept_and_the_header_means_nothing(tmp_path: Path) -> None:
    engine = FakeEngine()
    app = app_of(engine, ApiSettings(data=str(tmp_path)))
    answers = [post(app), post(app), post(app, control="only-if-cached")]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert marks(*answers) == [None] * 3
    assert len(engine.streams) == 3
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 4}, {"stop": "x"}, {"seed": 1, "temperature": 1}, {"top_p": 0.5}, {"logprobs": True}, {"n": 2}]
)
def test_any_difference_is_another_request(tmp_path: Path, fields: dict[str, Any]) -> None:
    app = cached(FakeEngine(), tmp_path)
    assert marks(post(app), post(app, body={**COLD, **fields}), post(app)) == ["miss", "miss", "hit"]


def test_another_model_has_other_answers(tmp_path: Path) -> None:
    first, second = FakeEngine(says("one")), FakeEngine(says("two"))
    second.identity = "fake 2"
    assert marks(post(cached(first, tmp_path)), post(cached(second, tmp_path)), post(cached(first, tmp_path))) == ["miss", "miss", "hit"]


def test_what_is_refused_is_refused_again_and_marked_by_nothing(tmp_path: Path) -> None:
    app = cached(FakeEngine(longest=20), tmp_path)
    body = {"messages": [{"role": "user", "content": "long " * 10}], "temperature": 0, "max_tokens": 1}
    for _ in range(2):
        answer = post(app, body=body)
        assert (answer.status_code, mark(answer)) == (400, None)
    assert kept(tmp_path) == 0


def test_a_socket_s_messages_have_no_headers_and_are_computed(tmp_path: Path) -> None:
    engine = FakeEngine()

    async def go() -> None:
        served = serving(cached(engine, tmp_path))
        async with asyncio.timeout(20), served as port, connect(f"ws://127.0.0.1:{port}{CHAT}", proxy=None) as socket:
            for _ in range(2):
                await socket.send(json.dumps({**COLD, "stream": False}))
                while json.loads(await socket.recv()).get("type") != "done":
                    pass

    asyncio.run(go())
    assert (len(engine.streams), kept(tmp_path)) == (2, 0)


# Which answers


def refusing(request: Request) -> list[TokenChunk | ShoalError]:
    return [*spoken(request, "Hello")[:2], StageLost("a node is lost")]


def degraded(request: Request) -> list[TokenChunk | ShoalError]:
    return [TokenChunk(request.id, 0, 72, degraded=1), TokenChunk(request.id, 0, None, finish=FinishReason.STOP, degraded=1)]


def cancelled(request: Request) -> list[TokenChunk | ShoalError]:
    return spoken(request, "Hello", finish=FinishReason.CANCELLED)


@pytest.mark.parametrize(("script", "status"), [(refusing, 503), (degraded, 200), (cancelled, 200)])
def test_an_answer_that_did_not_end_by_itself_is_not_given_again(tmp_path: Path, script: Any, status: int) -> None:
    engine = FakeEngine(script)
    app = cached(engine, tmp_path)
    answers = [post(app) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [status] * 2
    assert marks(*answers) == ["miss", "miss"]
    assert (len(engine.streams), kept(tmp_path)) == (2, 0)


def test_a_client_that_leaves_leaves_nothing_behind(tmp_path: Path) -> None:
    engine = FakeEngine(lambda request: spoken(request, "Hello")[:3], hang=True)
    app = cached(engine, tmp_path)
    asyncio.run(Leaver({**COLD, "stream": True}, 2).visit(app, CHAT))
    assert (engine.streams[0].closed, kept(tmp_path), engine.kept) == (True, 0, {})


def test_one_that_is_given_again_can_be_left_too(tmp_path: Path) -> None:
    engine = FakeEngine(says("Hello " * 100))
    app = cached(engine, tmp_path)
    post(app)
    asyncio.run(Leaver({**COLD, "stream": True}, 2).visit(app, CHAT))
    assert mark(post(app)) == "hit"
    assert len(engine.streams) == 1


# Cache-Control


def test_no_store_neither_reads_nor_keeps(tmp_path: Path) -> None:
    engine = FakeEngine()
    app = cached(engine, tmp_path)
    assert marks(post(app, control="no-store"), post(app), post(app, control="no-store"), post(app)) == ["miss", "miss", "miss", "hit"]
    assert len(engine.streams) == 3


def test_no_cache_asks_the_engine_and_keeps_what_it_says(tmp_path: Path) -> None:
    texts = iter(["old", "new"])
    engine = FakeEngine(lambda request: spoken(request, next(texts)))
    app = cached(engine, tmp_path)
    answers = [post(app), post(app, control="no-cache"), post(app)]
    assert marks(*answers) == ["miss", "miss", "hit"]
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == ["old", "new", "new"]


def test_an_answer_may_be_too_old_for_a_client(tmp_path: Path) -> None:
    app = cached(FakeEngine(), tmp_path)
    post(app)
    age(tmp_path, 100)
    hit = post(app, control="max-age=200")
    assert (mark(hit), int(hit.headers["age"]) - 100 in range(60)) == ("hit", True)
    assert mark(post(app, control="max-age=10, only-if-cached")) == "miss"
    assert mark(post(app, control="max-age=10")) == "miss"
    assert int(post(app).headers["age"]) < 60


def test_an_answer_is_given_for_as_long_as_was_set(tmp_path: Path) -> None:
    app = cached(FakeEngine(), tmp_path, response_cache_ttl=100)
    post(app)
    age(tmp_path, 40)
    assert mark(post(app)) == "hit"
    age(tmp_path, 61)
    assert mark(post(app, control="max-age=1000")) == "miss"


def test_a_malformed_header_means_nothing(tmp_path: Path) -> None:
    app = cached(FakeEngine(), tmp_path)
    assert marks(*(post(app, control=said) for said in ("max-age=soon", 'x="no-store"', "=, ,;"))) == ["miss", "hit", "hit"]


# Whose


def test_keys_do_not_share_answers(tmp_path: Path) -> None:
    engine = FakeEngine()
    app = cached(engine, tmp_path)
    assert marks(post(app), post(app)) == ["miss", "hit"]  # before there are keys
    store = KeyStore(tmp_path)
    tokens = [store.create(name, time())[1] for name in ("alice", "bob")]
    app = cached(engine, tmp_path)
    alice, bob = ([post(app, token=token) for _ in range(2)] for token in tokens)
    assert (marks(*alice), marks(*bob)) == (["miss", "hit"], ["miss", "hit"])
    assert len(engine.streams) == 3
    store.close()


def test_keys_share_answers_if_they_are_told_to(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    tokens = [store.create(name, time())[1] for name in ("alice", "bob")]
    apart = cached(FakeEngine(), tmp_path)
    assert mark(post(apart, token=tokens[0])) == "miss"
    app = cached(FakeEngine(), tmp_path, response_cache_scope="all")
    assert marks(*(post(app, token=token) for token in tokens)) == ["miss", "hit"]
    assert mark(post(apart, token=tokens[1])) == "miss"
    store.close()


def test_a_revoked_key_gets_nothing(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    key, token = store.create("alice", time())
    app = cached(FakeEngine(), tmp_path)
    assert mark(post(app, token=token)) == "miss"
    store.revoke(key.id, time())
    app = cached(FakeEngine(), tmp_path)
    refused(post(app, control="only-if-cached", token=token), 401, code="invalid_api_key")
    _, other = store.create("alice", time())
    app = cached(FakeEngine(), tmp_path)
    assert mark(post(app, token=other)) == "miss"
    store.close()


def test_what_is_given_again_counts_for_the_key(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    _, token = store.create("alice", time(), KeyLimits(requests=3, tokens=6000))
    app = cached(FakeEngine(says("Hello")), tmp_path)
    answers = [post(app, token=token) for _ in range(4)]
    assert marks(*answers) == ["miss", "hit", "hit", None]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    left = [int(answer.headers["x-ratelimit-remaining-tokens"]) for answer in answers[:3]]
    assert left[0] > left[1] > left[2]
    app.state.service.keyring.flush()
    (key,) = store.all()
    assert (key.requests, key.completion_tokens) == (3, 3 * 6)
    store.close()


# The engine and the file


def test_a_named_answer_that_is_given_again_can_be_read_again(tmp_path: Path) -> None:
    app = cached(FakeEngine(says("Hello")), tmp_path)

    async def go() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shoal") as client:
            body, name = {**COLD, "stream": True}, {"X-Request-Id": "mine"}
            await client.post(CHAT, json=body)
            stream = await client.post(CHAT, json=body, headers=name)
            again = await client.get("/v1/streams/mine", headers={"Last-Event-ID": "2"})
            assert mark(stream) == "hit"
            assert again.text == stream.text[stream.text.index("id: 3\n") :]
            assert (await client.post(CHAT, json=body, headers=name)).status_code == 409

    asyncio.run(go())


def test_the_other_engine_is_not_told_to_forget_what_it_never_knew(tmp_path: Path) -> None:
    class Forgetful(FakeEngine):
        def forget(self, answer: str) -> None:
            forgotten.append(answer)

    forgotten: list[str] = []
    app = cached(Forgetful(), tmp_path)
    first, second = (post(app).json()["id"] for _ in range(2))
    assert (forgotten, first != second) == ([first], True)


def test_another_application_finds_the_answers_of_the_one_before(tmp_path: Path) -> None:
    first, second = FakeEngine(), FakeEngine()
    assert mark(post(cached(first, tmp_path))) == "miss"
    app = cached(second, tmp_path)
    assert second.cache_bytes == first.cache_bytes > 0
    assert mark(post(app)) == "hit"
    assert second.streams == []


def test_answers_give_way_to_newer_ones(tmp_path: Path) -> None:
    engine = FakeEngine(says("0123456789" * 20))
    app = cached(engine, tmp_path, response_cache="16KiB")
    for i in range(20):
        post(app, body={**COLD, "messages": [{"role": "user", "content": str(i)}]})
    assert 0 < kept(tmp_path) < 20
    assert engine.evicted == 20 - kept(tmp_path)
    assert 8 << 10 < engine.cache_bytes <= 16 << 10
    assert mark(post(app, body={**COLD, "messages": [{"role": "user", "content": "19"}]})) == "hit"
    assert mark(post(app, body={**COLD, "messages": [{"role": "user", "content": "0"}]})) == "miss"


def test_without_the_file_requests_are_computed_and_it_is_said_once(tmp_path: Path) -> None:
    engine = FakeEngine()
    app = cached(engine, tmp_path)
    app.state.service.engines._cache.close()
    with capture_logs() as lines:
        answers = [post(app) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert marks(*answers) == ["miss"] * 3
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == [
        "the response cache cannot be used now; requests are computed"
    ]


def test_a_file_of_something_else_keeps_the_server_from_starting(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / NAME)
    connection.execute("CREATE TABLE mine (a)")
    connection.close()
    with pytest.raises(ConfigError, match="no response cache"):
        cached(FakeEngine(), tmp_path)


def test_what_an_answer_ends_with_is_a_part_of_it(tmp_path: Path) -> None:
    """A stop string's tokens are kept up to it; a longer answer is another request."""
    engine = FakeEngine(lambda request: [*spoken(request, "Hello")[:-1], TokenChunk(request.id, 0, END, finish=FinishReason.STOP)])
    app = cached(engine, tmp_path)
    body = {**COLD, "stop": "ll"}
    answers = [post(app, body=body), post(app, body=body), post(app), post(app)]
    assert marks(*answers) == ["miss", "hit", "miss", "hit"]
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == ["He", "He", "Hello", "Hello"]
    assert answers[0].json()["usage"] == answers[1].json()["usage"]
