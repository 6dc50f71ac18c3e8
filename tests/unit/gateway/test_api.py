"""Endpoints beside those that answer, and what the engine refuses."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import ClusterError, InvalidRequest, NotReady, QueueFull, StageLost
from tests.support.app import app_of
from tests.support.engine import FakeEngine, spoken
from tests.support.http import CHAT, COMPLETIONS, ask, choice_text, complete, events, fetch, refused

# Other endpoints


def test_the_model_is_listed() -> None:
    app = app_of(FakeEngine())
    listed = fetch(app, "GET", "/v1/models").json()
    assert [m["id"] for m in listed["data"]] == ["fake"]
    assert fetch(app, "GET", "/v1/models/fake").json() == listed["data"][0]


def test_a_model_that_is_not_there_is_not_found() -> None:
    refused(fetch(app_of(FakeEngine()), "GET", "/v1/models/other"), 404, "model", "model_not_found")


@pytest.mark.parametrize(("method", "path"), [("GET", "/nope"), ("POST", "/v1/images/generations"), ("POST", "/nope")])
def test_endpoints_that_are_not_there_are_not_found(method: str, path: str) -> None:
    assert path in refused(fetch(app_of(FakeEngine()), method, path), 404)


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("PUT", COMPLETIONS), ("POST", "/v1/models"), ("DELETE", "/health")])
def test_other_methods_are_not_allowed(method: str, path: str) -> None:
    refused(fetch(app_of(FakeEngine()), method, path), 405)


def test_live_and_ready_are_told_apart() -> None:
    engine = FakeEngine()
    app = app_of(engine)
    assert fetch(app, "GET", "/health/ready").status_code == 200
    engine.state = "1 of 2 nodes have joined"
    ready = fetch(app, "GET", "/health/ready")
    assert (ready.status_code, ready.json()["reason"]) == (503, engine.state)
    assert fetch(app, "GET", "/health/live").status_code == 200
    assert fetch(app, "GET", "/health").json()["ready"] is False


def test_metrics_are_text() -> None:
    answer = fetch(app_of(FakeEngine()), "GET", "/metrics")
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
