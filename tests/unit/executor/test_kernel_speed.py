"""What is measured of the kernels has the form of a profile. How fast they are is not for a test to say."""

from __future__ import annotations

from itertools import pairwise

import pytest

from shoal.executor import kernel_speed
from shoal.executor.fast_calls import fast_seconds
from shoal.executor.other_load import OtherLoad, ThreadClock
from shoal.native import kernels


@pytest.mark.slow
@pytest.mark.skipif(kernels() is None, reason="the kernels are not compiled")
def test_every_curve_rises_in_rows_and_has_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_ROWS": (1, 3), "_READING_ROWS": (1, 2), "_APART": 2, "_SEQUENCES": 8, "_SHARING": {1: (1, 1), 4: (2, 2)}}.items():
        monkeypatch.setattr(kernel_speed, name, value)
    found = kernel_speed.kernel_speed(1, seconds=0.0)
    assert set(found.arithmetic) == {"q4", "q4_1", "q8", "fp32", "attention"}
    assert set(found.reading) == {"weights", "attention"}
    for points in (*found.arithmetic.values(), *found.reading.values()):
        assert all(speed > 0 for _, speed in points)
        assert all(a < b for (a, _), (b, _) in pairwise(points))
    assert found.bytes_per_second > 0
    assert found.layer_seconds > 0


def test_calls_take_turns() -> None:
    order: list[str] = []
    found = fast_seconds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.0)
    assert order[:6] == ["a", "a", "a", "b", "b", "b"]
    assert order.count("a") == order.count("b")
    assert set(found) == {"a", "b"}


def test_a_threads_clock_goes_forward() -> None:
    clock = ThreadClock()
    try:
        assert 0 <= clock.seconds(lambda: sum(range(1000))) < 60
    finally:
        clock.close()


def test_the_load_of_others_is_a_share() -> None:
    others = OtherLoad()
    sum(range(10**6))
    share = others.share()
    assert share is None or 0 <= share <= 1
