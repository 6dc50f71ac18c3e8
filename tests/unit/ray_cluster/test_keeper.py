"""One actor watched: its process is started again after a while, and the actor made again where Ray has given it up. The Ray here answers
when it is told to."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray", reason="pip install shoal[ray]")

from ray.exceptions import ActorDiedError, ActorUnavailableError

from shoal.ray_cluster import keeper as module
from shoal.ray_cluster.keeper import Keeper
from shoal.ray_cluster.places import RayPlace


class Answer:
    def __init__(self) -> None:
        self.value: Any = None
        self.come = False

    def be(self, value: Any) -> None:
        self.value, self.come = value, True


class Method:
    def __init__(self) -> None:
        self.calls: list[Answer] = []

    def remote(self) -> Answer:
        self.calls.append(answer := Answer())
        return answer


class StandInActor:
    def __init__(self) -> None:
        self.ending, self.start = Method(), Method()


class StandInRay:
    def get(self, answer: Answer) -> Any:
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value


class Watched:
    def __init__(self) -> None:
        self.made: list[StandInActor] = []
        self.said: list[str] = []
        self.keeper = Keeper("node 1", RayPlace(None, 0, {}), self._make, self.said.append)

    def _make(self) -> StandInActor:
        self.made.append(actor := StandInActor())
        return actor

    def look(self, now: float, ending: Any) -> str:
        """What is told at a look at which the actor has this answer; None: none yet."""
        first = self.keeper.tend(now)
        if ending is None or first:
            return first
        self.made[-1].ending.calls[-1].be(ending)
        return self.keeper.tend(now)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(module, "ray", StandInRay())
    monkeypatch.setattr(module, "come", lambda answer: answer.come)
    return Watched()


def test_what_has_not_come_is_asked_once(watched: Watched) -> None:
    for now in range(5):
        assert watched.look(now, None) == ""
    assert len(watched.made[0].ending.calls) == 1
    assert watched.look(5, "") == ""
    watched.look(6, None)
    assert len(watched.made[0].ending.calls) == 2


def test_a_process_that_ended_is_told_once_and_started_again_later_each_time(watched: Watched) -> None:
    now, waits = 100.0, list[float]()
    for _ in range(8):
        ended = now
        assert watched.look(now, "ended with status 1") == "node 1 ended with status 1"
        before = len(watched.made[0].start.calls)
        while len(watched.made[0].start.calls) == before:
            now += 0.25
            assert watched.look(now, "ended with status 1") == ""
            assert now < ended + 31
        waits.append(now - ended)
        now += 1
    assert waits[0] < 1.5 and waits[-1] > 14 and len(watched.made) == 1


def test_one_that_was_well_for_long_is_started_again_soon(watched: Watched) -> None:
    now = 100.0
    for _ in range(8):
        watched.look(now, "x")
        now += 31
        watched.look(now, "x")
    starts = len(watched.made[0].start.calls)
    now += 61
    watched.look(now, "x")
    watched.look(now + 1.25, "x")
    assert len(watched.made[0].start.calls) == starts + 1


def test_an_actor_that_ray_makes_again_is_left_to_ray(watched: Watched) -> None:
    lost = ActorUnavailableError("gone", None)
    for now in range(3):
        assert watched.look(now, lost) == ""
    assert watched.look(4, "") == ""
    assert watched.said == ["node 1: Ray has lost its actor, and makes it again", "node 1: its actor is back"]
    assert len(watched.made) == 1 and not watched.made[0].start.calls


def test_an_actor_that_ray_has_given_up_is_made_anew(watched: Watched) -> None:
    watched.look(0, ActorDiedError())
    assert watched.keeper.dead
    told = watched.look(0, None)
    assert told.startswith("node 1 has no actor any more")
    assert watched.look(2, None) == "" and len(watched.made) == 2 and not watched.keeper.dead
    assert watched.look(3, "") == "" and watched.keeper.actor is watched.made[1]
