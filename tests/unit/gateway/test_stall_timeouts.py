"""How long a client may take, without a socket or a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gateway.http.stall_timeouts import Phase, StallTimeouts, rules

RULES = rules(30)


def ended(steps: list[tuple[Phase, object, int]]) -> int | None:
    """After how many seconds, one step each, it was over."""
    patience = StallTimeouts(0, RULES)
    for now, (phase, turn, moved) in enumerate(steps):
        if patience.overdue(now, phase, turn, moved):
            return now
    return None


@pytest.mark.parametrize(("phase", "seconds"), [(Phase.REQUEST, 10), (Phase.BODY, 10), (Phase.READING, 30), (Phase.DRAINING, 5)])
def test_who_does_nothing_has_so_long(phase: Phase, seconds: int) -> None:
    assert ended([(phase, 0, 0)] * 100) == seconds


def test_who_has_nothing_to_do_has_all_the_time() -> None:
    assert ended([(Phase.AT_EASE, 0, 0)] * 10_000) is None


def test_headers_are_not_saved_by_dripping() -> None:
    assert ended([(Phase.REQUEST, 0, 100 * i) for i in range(100)]) == 10


@pytest.mark.parametrize(("rate", "fate"), [(100, 10), (1025, None)])
def test_a_body_needs_a_rate(rate: int, fate: int | None) -> None:
    assert ended([(Phase.BODY, 0, rate * i) for i in range(1000)]) == fate


@pytest.mark.parametrize(("rate", "fate"), [(500, 30), (1200, None)])
def test_so_does_reading(rate: int, fate: int | None) -> None:
    assert ended([(Phase.READING, 0, rate * i - 10**6) for i in range(1000)]) == fate


def test_each_request_has_its_own_time() -> None:
    assert ended([(Phase.REQUEST, i // 9, 0) for i in range(1000)]) is None


@given(st.lists(st.tuples(st.sampled_from(Phase), st.integers(0, 2), st.integers(0, 10**6)), max_size=200))
def test_nobody_is_overdue_before_the_shortest_time(steps: list[tuple[Phase, int, int]]) -> None:
    over = ended(list(steps))
    assert over is None or over >= min(rule.seconds for rule in RULES.values())
