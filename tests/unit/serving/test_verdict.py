"""What another server's status says of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.serving.balancing.inquiry import Ending
from shoal.serving.verdict import Cause, Verdict, pause_of, verdict


@pytest.mark.parametrize(
    ("status", "code", "after", "cause", "ending"),
    [
        (200, None, None, None, Ending.SERVED),
        (400, "context_length_exceeded", None, None, Ending.SERVED),
        (422, None, None, None, Ending.SERVED),
        (429, None, "3", Cause.BUSY, Ending.BUSY),
        (429, None, None, Cause.BUSY, Ending.BUSY),
        (503, None, "5", Cause.BUSY, Ending.BUSY),
        (529, None, "5", Cause.BUSY, Ending.BUSY),
        (503, None, None, Cause.BROKEN, Ending.FAILED),
        (500, None, "5", Cause.BROKEN, Ending.FAILED),
        (408, None, None, Cause.BROKEN, Ending.FAILED),
        (401, None, None, Cause.LOCKED_OUT, Ending.FAILED),
        (402, None, None, Cause.LOCKED_OUT, Ending.FAILED),
        (403, None, None, Cause.LOCKED_OUT, Ending.FAILED),
        (404, "model_not_found", None, Cause.WITHOUT_MODEL, Ending.CANCELLED),
        (404, None, None, Cause.WITHOUT_ENDPOINT, Ending.CANCELLED),
        (404, "answer_not_found", None, None, Ending.SERVED),
        (405, None, None, Cause.WITHOUT_ENDPOINT, Ending.CANCELLED),
        (501, None, None, Cause.WITHOUT_ENDPOINT, Ending.CANCELLED),
        (508, "loop_detected", None, Cause.LOOP, Ending.CANCELLED),
        (301, None, None, Cause.ASTRAY, Ending.FAILED),
        (101, None, None, Cause.ASTRAY, Ending.FAILED),
    ],
)
def test_causes(status: int, code: str | None, after: str | None, cause: Cause | None, ending: Ending) -> None:
    found = verdict(status, code, after)
    assert found.cause is cause and found.ending is ending


@given(st.integers(100, 599), st.none() | st.text(max_size=20), st.none() | st.text(max_size=10))
def test_success_is_never_sent_again_and_a_servers_failure_always_is(status: int, code: str | None, after: str | None) -> None:
    found = verdict(status, code, after)
    if 200 <= status < 300:
        assert found == Verdict()
    if status >= 500:
        assert found.cause is not None and found.ending is not Ending.SERVED
    if found.cause is None:
        assert 200 <= status < 300 or 400 <= status < 500


@given(st.text(max_size=12) | st.floats().map(str) | st.integers().map(str))
def test_a_pause_is_a_time_that_somebody_can_wait(text: str) -> None:
    pause = pause_of(text)
    assert pause is None or 0 < pause <= 60


def test_a_date_says_nothing() -> None:
    assert pause_of("Wed, 21 Oct 2026 07:28:00 GMT") is None and pause_of(None) is None and pause_of("2.5") == 2.5
