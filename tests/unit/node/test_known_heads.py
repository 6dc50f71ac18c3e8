from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.known_heads import KnownHeads


def test_a_head_alone_is_asked_again_at_the_nodes_own_pace() -> None:
    heads = KnownHeads("a:1")
    assert heads.next() is None and heads.address == "a:1" and not heads.several


def test_the_others_are_asked_first_and_the_lost_one_last() -> None:
    heads = KnownHeads("a:1")
    heads.told(["b:1", "c:1", "a:1"])
    asked = [heads.address for _ in range(4) if heads.next() is not None]
    assert asked == ["b:1", "c:1", "a:1", "b:1"]


def test_a_head_that_the_leader_has_just_lost_is_asked_last() -> None:
    heads = KnownHeads("a:1")
    heads.told(["b:1"])
    heads.told(["c:1"])
    asked = [heads.address for _ in range(3) if heads.next() is not None]
    assert asked == ["c:1", "b:1", "a:1"]
    heads.told([f"h:{port}" for port in range(20)])
    assert len({heads.address for _ in range(50) if heads.next() is not None}) == 9


def test_a_round_is_followed_by_a_pause() -> None:
    heads = KnownHeads("a:1")
    heads.told(["b:1"])
    pauses = [heads.next() for _ in range(4)]
    assert pauses[0] == pauses[2] == 0.0
    assert pauses[1] and pauses[3]


def test_a_head_that_stands_by_names_the_one_that_leads() -> None:
    heads = KnownHeads("b:1")
    heads.led_by("a:1")
    assert heads.next() == 0.0 and heads.address == "a:1"


def test_a_head_that_another_has_followed_is_not_believed() -> None:
    heads = KnownHeads("a:1")
    heads.joined(5)
    assert heads.stale(4) and not heads.stale(5) and not heads.stale(6)
    assert not heads.stale(0)  # a head without a lease is not one of several


@given(st.lists(st.sampled_from(["a:1", "b:1", "c:1", "d:1"])), st.integers(1, 12))
def test_every_known_head_has_its_turn(others: list[str], turns: int) -> None:
    heads = KnownHeads("a:1")
    heads.told(others)
    asked: list[str] = []
    for _ in range(4 * turns):
        heads.next()
        asked.append(heads.address)
    assert set(asked) >= {*others, "a:1"}
