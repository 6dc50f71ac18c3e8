"""Errors in Anthropic's shape."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import NotReady, QueueFull, StageLost
from tests.support.anthropic_api import MESSAGES, ask, refused, streamed
from tests.support.app import app_of
from tests.support.engine import FakeEngine, able, spoken
from tests.support.http import fetch


def test_errors_have_anthropic_s_shape() -> None:
    assert "known here are fake" in refused(ask(able(), model="claude-opus"), 404, "not_found_error")
    assert "no such endpoint" in refused(fetch(app_of(able()), "POST", f"{MESSAGES}/batches", json={}), 404, "not_found_error")
    refused(fetch(app_of(able()), "GET", MESSAGES), 405, "invalid_request_error")
    refused(
        fetch(app_of(able()), "POST", MESSAGES, content=b"{", headers={"content-type": "application/json"}),
        400,
        "invalid_request_error",
    )
    refused(fetch(app_of(able()), "POST", MESSAGES, content=b"x", headers={"content-type": "text/plain"}), 415, "invalid_request_error")
    refused(fetch(app_of(able()), "POST", MESSAGES, content=b" " * (5 << 20)), 413, "request_too_large")


@pytest.mark.parametrize("refusal", [NotReady("the model is being loaded"), StageLost("a node was lost")])
def test_a_server_that_cannot_now_is_overloaded(refusal: Any) -> None:
    asked = able()
    asked.refusal = refusal
    answer = ask(asked)
    refused(answer, 529, "overloaded_error")
    assert int(answer.headers["retry-after"]) > 0


def test_a_full_queue_is_a_limit_of_the_rate() -> None:
    asked = able()
    asked.refusal = QueueFull(3, 3)
    refused(ask(asked), 429, "rate_limit_error")


def test_a_stream_that_breaks_off_says_so() -> None:
    events = streamed(ask(able(lambda r: [*spoken(r, "Hel")[:3], StageLost("a node was lost")]), stream=True))
    assert events[-1] == {"type": "error", "error": {"type": "overloaded_error", "message": "a node was lost"}}


def test_a_bug_is_told_in_its_shape() -> None:
    class Broken(FakeEngine):
        def longest(self) -> int:
            raise ZeroDivisionError

    refused(ask(Broken()), 500, "api_error")
