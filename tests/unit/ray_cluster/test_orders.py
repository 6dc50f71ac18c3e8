"""What `shoal ray scale` leaves for `shoal ray up`."""

from __future__ import annotations

import pytest

pytest.importorskip("ray", reason="pip install shoal[ray]")

from shoal.ray_cluster.actors import ScaleOrders


@pytest.mark.parametrize(
    ("posted", "taken"),
    [
        ([], None),
        ([(3, False)], (3, False)),
        ([(3, True)], (3, True)),
        ([(3, False), (2, False)], (2, False)),
        ([(3, False), (2, True)], (3, False)),
        ([(3, False), (5, True)], (5, False)),
        ([(5, True), (3, False)], (3, False)),
        ([(0, False), (5, True)], (0, False)),
    ],
)
def test_the_last_order_counts_and_one_for_at_least_never_makes_fewer(
    posted: list[tuple[int, bool]], taken: tuple[int, bool] | None
) -> None:
    orders = ScaleOrders()
    for nodes, at_least in posted:
        orders.post(nodes, at_least)
    assert orders.take() == taken
    assert orders.take() is None, "once"
