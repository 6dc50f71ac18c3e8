"""Several heads, of which one leads by a lease: they die, stop, and lose each other, in simulated time."""

from __future__ import annotations

from functools import cache

import pytest

from shoal.node.followers import Followers
from shoal.testing.scenario import Broken
from shoal.testing.standby_scenario import StandbyScenario

SEEDS = range(24)


@cache
def played() -> tuple[StandbyScenario, ...]:
    """Each asserts that only the leader hands out tokens, that nodes go from term to later term, and that streams say the same as ever."""
    out = tuple(StandbyScenario(seed) for seed in SEEDS)
    for scenario in out:
        scenario.run()
    return out


def play_all() -> None:
    for seed in SEEDS:
        StandbyScenario(seed).run()


def test_every_stream_says_the_same_whichever_head_leads() -> None:
    assert sum(scenario.tokens for scenario in played()) > 1000


def test_heads_did_take_over() -> None:
    assert sum(scenario.successions for scenario in played()) > len(SEEDS) // 2


def test_the_same_seed_gives_the_same_events() -> None:
    again = StandbyScenario(2)
    again.run()
    assert again.events == played()[2].events


def test_a_record_that_is_not_copied_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    put = Followers.put

    def forgetful(self: Followers, name: str, data: bytes) -> None:
        if self._number % 5:
            put(self, name, data)
        else:
            self._number += 1

    monkeypatch.setattr(Followers, "put", forgetful)
    with pytest.raises(Broken, match="and should say"):
        play_all()
