"""The spans of requests in the gateway, and whose trace they belong to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from shoal.cli.logs import text_processors
from shoal.config import ApiSettings
from shoal.errors import NotReady, QueueFull, StageLost
from shoal.gateway.auth.keyring import Keyring
from shoal.observed.trace_span import SpanKind, TraceSpan
from shoal.request import FinishReason
from shoal.trace_context import TRACE, TraceContext
from tests.support.app import app_of
from tests.support.engine import FakeEngine, says, spoken
from tests.support.http import CHAT, COMPLETIONS, Leaver, fetch

TRACE_ID, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = {"traceparent": f"00-{TRACE_ID}-{CLIENT}-01", "tracestate": "other=1"}
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def app(engine: FakeEngine, tmp_path: Path) -> FastAPI:
    return traced(engine, tmp_path)


def traced(engine: FakeEngine, folder: Path, **settings: Any) -> FastAPI:
    chosen = ApiSettings(**{"data": str(folder), "traces": "http://127.0.0.1:4318", **settings})
    return app_of(engine, chosen, Keyring(None))


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    token = TRACE.set(None)
    yield
    TRACE.reset(token)


def root(engine: FakeEngine) -> TraceSpan:
    (found,) = (span for span in engine.spans if span.kind is SpanKind.SERVER)
    return found


def test_a_request_is_a_span_below_its_client_s(engine: FakeEngine, app: FastAPI):
    assert (
        fetch(app, "POST", CHAT, json={**HI, "max_tokens": 9, "temperature": 0.5}, headers={**SENT, "User-Agent": "me"}).status_code == 200
    )
    span, (prepare,) = root(engine), engine.spans[1:]
    assert (span.name, span.parent, span.error) == (f"POST {CHAT}", CLIENT, None)
    assert (span.context.trace, span.context.state, span.context.sampled) == (TRACE_ID, "other=1", True)
    assert (prepare.name, prepare.parent, prepare.context.trace) == ("prepare", span.context.span, TRACE_ID)
    assert span.began <= prepare.began <= prepare.ended <= span.ended
    assert engine.asked.trace == span.context
    about = span.attributes
    assert (about["http.request.method"], about["http.route"], about["url.path"]) == ("POST", CHAT, CHAT)
    assert (about["http.response.status_code"], about["user_agent.original"], about["server.address"]) == (200, "me", "shoal")
    assert (about["gen_ai.operation.name"], about["gen_ai.request.model"], about["gen_ai.provider.name"]) == ("chat", "fake", "shoal")
    assert (about["gen_ai.request.max_tokens"], about["gen_ai.request.temperature"], about["gen_ai.request.stream"]) == (9, 0.5, False)
    assert about["gen_ai.usage.input_tokens"] == len(engine.asked.prompt) and about["gen_ai.usage.output_tokens"] == len("Hello") + 1
    assert about["gen_ai.response.finish_reasons"] == ["stop"] and "shoal.client_left" not in about
    assert "Hi" not in json.dumps([str(span) for span in engine.spans]) and "Hello" not in str(engine.spans)


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        (COMPLETIONS, {"prompt": "Hi", "stream": True}, "text_completion"),
        ("/v1/embeddings", {"input": ["Hi", "Ho"]}, "embeddings"),
        ("/v1/messages", {**HI, "max_tokens": 4}, "chat"),
        ("/v1/responses", {"input": "Hi"}, "chat"),
        ("/api/chat", {"model": "fake", **HI}, "chat"),
        ("/api/generate", {"model": "fake", "prompt": "Hi"}, "text_completion"),
    ],
)
def test_every_endpoint_is_traced(engine: FakeEngine, app: FastAPI, path: str, body: dict[str, Any], operation: str):
    assert fetch(app, "POST", path, json=body, headers=SENT).status_code == 200
    span = root(engine)
    assert (span.name, span.attributes["gen_ai.operation.name"], span.attributes["gen_ai.request.model"]) == (
        f"POST {path}",
        operation,
        "fake",
    )
    assert span.attributes["gen_ai.usage.input_tokens"] == sum(len(stream.request.prompt) for stream in engine.streams)
    assert {stream.request.trace for stream in engine.streams} == {span.context}
    assert "prepare" in {part.name for part in engine.spans}


def test_an_answer_from_the_response_cache_is_said_to_be_one(engine: FakeEngine, tmp_path: Path):
    app = traced(engine, tmp_path, response_cache="1MiB")
    for body in ({**HI, "temperature": 0}, {**HI, "temperature": 0}, HI):
        fetch(app, "POST", CHAT, json=body)
    spans = [span for span in engine.spans if span.kind is SpanKind.SERVER]
    assert [span.attributes.get("shoal.response_cache") for span in spans] == ["miss", "hit", None]


def test_every_choice_has_its_reason(engine: FakeEngine, app: FastAPI):
    engine._script = lambda request: [*spoken(request, "ab", 0), *spoken(request, "abcdef", 1)]
    fetch(app, "POST", COMPLETIONS, json={"prompt": ["x", "y"], "n": 2, "max_tokens": 4})
    about = root(engine).attributes
    assert about["gen_ai.request.choice.count"] == 4
    assert about["gen_ai.response.finish_reasons"] == [FinishReason.STOP, FinishReason.LENGTH] * 2


def test_who_is_refused_is_traced_with_the_status(engine: FakeEngine, app: FastAPI):
    assert fetch(app, "POST", CHAT, json={**HI, "max_tokens": -1}).status_code == 400
    engine.refusal = QueueFull(9, 9)
    assert fetch(app, "POST", CHAT, json=HI).status_code == 429
    engine.refusal = NotReady("no node has joined")
    assert fetch(app, "POST", CHAT, json=HI).status_code == 503
    assert fetch(app, "POST", "/v1/chat/nowhere", json=HI).status_code == 404
    spans = [span for span in engine.spans if span.kind is SpanKind.SERVER]
    told = [(s.name, s.attributes["http.response.status_code"], s.attributes.get("error.type"), s.error) for s in spans]
    assert told == [
        (f"POST {CHAT}", 400, None, None),
        (f"POST {CHAT}", 429, None, None),
        (f"POST {CHAT}", 503, "503", "no node has joined"),
        ("POST", 404, None, None),
    ]
    assert [span.attributes["shoal.refusal"] for span in spans[:3]] == ["invalid_request_error", "queue_full", "not_ready"]


def test_who_has_no_key_is_traced_too(engine: FakeEngine, tmp_path: Path):
    app = app_of(engine, ApiSettings(data=str(tmp_path), traces="env", api_host="0.0.0.0"), Keyring(tmp_path))
    assert fetch(app, "POST", CHAT, json=HI).status_code == 401
    assert root(engine).attributes["http.response.status_code"] == 401


def test_a_stream_that_breaks_off_is_an_error(engine: FakeEngine, app: FastAPI):
    engine._script = lambda request: [*spoken(request, "abc")[:2], StageLost("nodes were lost")]
    assert fetch(app, "POST", CHAT, json={**HI, "stream": True}).status_code == 200
    span = root(engine)
    assert (span.error, span.attributes["error.type"]) == ("nodes were lost", "StageLost")
    assert (span.attributes["http.response.status_code"], span.attributes["gen_ai.usage.output_tokens"]) == (200, 2)


def test_a_bug_is_an_error_and_logged_with_the_trace(engine: FakeEngine, app: FastAPI):
    engine.longest = lambda: 1 // 0
    assert fetch(app, "POST", CHAT, json=HI, headers=SENT).status_code == 500
    span = root(engine)
    assert (span.error, span.attributes["http.response.status_code"]) == ("ZeroDivisionError", 500)
    (prepare,) = (part for part in engine.spans if part.name == "prepare")
    assert prepare.error == "ZeroDivisionError"


@pytest.mark.parametrize(("stream", "status"), [(True, 200), (False, 499)])
def test_a_client_that_leaves(tmp_path: Path, stream: bool, status: int):
    engine = FakeEngine(says("Hello, this is long"), hang=True)
    app = traced(engine, tmp_path)
    asyncio.run(Leaver({**HI, "stream": stream}, 2 if stream else -1).visit(app, CHAT))
    about = root(engine).attributes
    assert (about["shoal.client_left"], about["http.response.status_code"]) == (True, status)


def test_what_nobody_asks_for_is_not_traced(engine: FakeEngine, app: FastAPI, tmp_path: Path):
    for path in ("/health", "/health/live", "/metrics", "/openapi.json"):
        assert fetch(app, "GET", path, headers=SENT).status_code == 200
    unwanted = {"traceparent": SENT["traceparent"][:-1] + "0"}
    fetch(app, "POST", CHAT, json=HI, headers=unwanted)
    assert not engine.spans and engine.asked.trace is not None and engine.asked.trace.trace == TRACE_ID
    fetch(traced(engine, tmp_path, trace_sample=0.0), "POST", CHAT, json=HI)
    assert not engine.spans
    fetch(traced(engine, tmp_path, trace_sample=0.0), "POST", CHAT, json=HI, headers=SENT)
    assert len(engine.spans) == 2
    engine.spans.clear()
    fetch(traced(engine, tmp_path, traces=""), "POST", CHAT, json=HI, headers=SENT)
    assert not engine.spans and engine.streams[-1].request.trace is None


def test_messages_of_a_socket_have_their_own_spans(engine: FakeEngine, app: FastAPI):
    with TestClient(app) as client, client.websocket_connect(CHAT, headers=SENT) as socket:
        for body in (HI, {**HI, "max_tokens": -1}):
            socket.send_json(body)
            while "error" not in (said := socket.receive_json()) and said.get("type") != "done":
                pass
    spans = [span for span in engine.spans if span.kind is SpanKind.SERVER]
    assert [(span.name, span.parent) for span in spans] == [(f"message {CHAT}", CLIENT)] * 2
    assert spans[0].attributes["gen_ai.usage.output_tokens"] == 6 and spans[1].attributes["shoal.refusal"] == "invalid_request_error"


def test_lines_about_a_request_name_its_trace(engine: FakeEngine, app: FastAPI):
    with capture_logs(processors=text_processors()[:-1]) as lines:
        fetch(app, "POST", CHAT, json=HI, headers=SENT)
        fetch(app, "GET", "/v1/models", headers={"traceparent": SENT["traceparent"][:-1] + "0"})
    first, second = [line for line in lines if line["event"] == "a request was answered"]
    assert (first["trace_id"], first["span_id"], first["status"]) == (TRACE_ID, root(engine).context.span, 200)
    assert (second["trace_id"], second["path"]) == (TRACE_ID, "/v1/models")


def test_lines_about_nothing_traced_name_none():
    with capture_logs(processors=text_processors()[:-1]) as lines:
        structlog.get_logger().info("x")
        TRACE.set(TraceContext(TRACE_ID, CLIENT, True))
        structlog.get_logger().info("x")
    assert "trace_id" not in lines[0] and (lines[1]["trace_id"], lines[1]["span_id"]) == (TRACE_ID, CLIENT)
