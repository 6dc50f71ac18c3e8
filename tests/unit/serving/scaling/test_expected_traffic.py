from __future__ import annotations

import pytest

from shoal.serving.scaling.expected_traffic import ExpectedTraffic

TOLD = ExpectedTraffic(100.0, 10.0, (1.0, 5.0, 2.0), 0.1, 0.2)


@pytest.mark.parametrize(
    ("first", "last", "highest"),
    [
        (100, 100, 1.0),
        (105, 105, 1.0),
        (110, 110, 3.0),
        (105, 110, 3.0),
        (105, 125, 5.0),
        (116, 120, 4.7),
        (100, 130, 5.0),
        (99, 100, None),
        (120, 131, None),
    ],
)
def test_the_highest_rate_between_two_moments(first: float, last: float, highest: float | None) -> None:
    assert TOLD.highest(first, last) == (None if highest is None else pytest.approx(highest))


@pytest.mark.parametrize(("error", "naive", "trusted"), [(0.1, 0.2, True), (0.2, 0.2, False), (float("inf"), float("inf"), False)])
def test_it_is_trusted_where_it_was_better(error: float, naive: float, trusted: bool) -> None:
    assert ExpectedTraffic(0.0, 1.0, (1.0,), error, naive).trusted is trusted
