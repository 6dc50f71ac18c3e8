"""Places on Ray's machines: what is taken, given back, and asked of the autoscaler, with a Ray that only notes it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ray", reason="pip install shoal[ray]")

from shoal.ray_cluster import places as module
from shoal.ray_cluster.places import Bundle, Places, RayPlace

BIG: Bundle = {"CPU": 4, "memory": 8}
SMALL: Bundle = {"CPU": 1}


class NotedRay:
    """In place of `ray.util` and `ray.autoscaler.sdk`."""

    def __init__(self) -> None:
        self.groups: list[list[Bundle]] = []
        """That there are."""
        self.requested: list[Bundle] = []

    def placement_group(self, bundles: list[Bundle], strategy: str) -> list[Bundle]:
        assert strategy == "SPREAD" and bundles
        self.groups.append(group := [*bundles])
        return group

    def remove_placement_group(self, group: list[Bundle]) -> None:
        self.groups = [other for other in self.groups if other is not group]

    def request_resources(self, bundles: list[Bundle]) -> None:
        self.requested = bundles


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> NotedRay:
    return patched(monkeypatch)


def patched(monkeypatch: pytest.MonkeyPatch) -> NotedRay:
    made = NotedRay()
    monkeypatch.setattr(module, "util", made)
    monkeypatch.setattr(module, "sdk", made)
    return made


def test_what_is_taken_at_once_is_one_group(noted: NotedRay) -> None:
    taken = Places().take([SMALL, BIG, BIG])
    assert noted.groups == [[SMALL, BIG, BIG]]
    assert [place.index for place in taken] == [0, 1, 2]
    assert taken[1].options["num_cpus"] == 4 and taken[1].options["memory"] == 8 and taken[1].options["max_restarts"] == -1
    assert taken[0].options["memory"] is None


def test_a_place_that_was_given_back_is_used_again(noted: NotedRay) -> None:
    places = Places()
    _, first, _ = places.take([SMALL, BIG, BIG])
    places.give_back(first)
    assert places.take([BIG]) == [first] and len(noted.groups) == 1
    places.take([BIG])
    assert noted.groups == [[SMALL, BIG, BIG], [BIG]]


def test_a_group_goes_with_its_last_place(noted: NotedRay) -> None:
    places = Places()
    head, *_ = places.take([SMALL, BIG])
    more = places.take([BIG, BIG])
    for place in more:
        assert len(noted.groups) == 2
        places.give_back(place)
    assert noted.groups == [[SMALL, BIG]]
    assert places.take([BIG])[0].group is not more[0].group
    places.give_all_back()
    assert noted.groups == [] and noted.requested == [] and head is not None


@given(st.lists(st.one_of(st.lists(st.sampled_from([BIG, SMALL]), min_size=1, max_size=4), st.integers(0, 20)), max_size=30))
def test_whatever_is_done_ray_holds_what_is_used(steps: list[list[Bundle] | int]) -> None:
    """A list: bundles to take; a number: which of the places to give back."""
    with pytest.MonkeyPatch.context() as patch:
        noted, places, used = patched(patch), Places(), list[RayPlace]()
        for step in steps:
            if isinstance(step, list):
                taken = places.take(step)
                assert sorted(map(repr, (place.bundle for place in taken))) == sorted(map(repr, step))
                used += taken
            elif used:
                places.give_back(used.pop(step % len(used)))
            assert len({id(place) for place in used}) == len(used)
            assert sorted(map(repr, noted.requested)) == sorted(repr(place.bundle) for place in used)
            groups: Any = {id(place.group) for place in used}
            assert {id(group) for group in noted.groups} == groups
            assert all(place.group[place.index] == place.bundle for place in used)
