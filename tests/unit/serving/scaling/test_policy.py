"""What the autoscaler promises whatever the load: bounds, cooldowns, room, priorities, and no flapping."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.config import ScalingSettings
from shoal.serving.scaling.autoscaler import Autoscaler
from shoal.serving.scaling.demand import demanded
from shoal.serving.scaling.load import ModelLoad
from shoal.serving.scaling.room import places_for
from shoal.serving.scaling.steadiness import Steadiness, followed
from tests.support.scaling import InstantFleet, busy, planned, replicas, targets, with_load

WORK = st.floats(0, 30)
MODELS = ("a", "b", "c")


@st.composite
def some_targets(draw: st.DrawFn) -> ScalingSettings:
    least = draw(st.integers(0, 3))
    windows = {name: draw(st.sampled_from([0.0, 10.0, 60.0])) for name in ("scale_up_after", "scale_down_after")}
    cooldowns = {name: draw(st.sampled_from([0.0, 20.0, 100.0])) for name in ("scale_up_cooldown", "scale_down_cooldown")}
    return targets(replicas_min=least, replicas_max=least + draw(st.integers(1, 8)), **windows, **cooldowns)


@pytest.mark.slow
@settings(max_examples=20)
@given(some_targets(), st.lists(st.fixed_dictionaries(dict.fromkeys(MODELS, WORK)), min_size=1, max_size=80), st.integers(0, 2))
def test_bounds_hold_and_room_is_never_exceeded(chosen: ScalingSettings, works: list[dict[str, float]], spread: int) -> None:
    room = 3 * max(chosen.replicas_min, 1) + spread
    fleet = InstantFleet(Autoscaler(chosen), {m: i for i, m in enumerate(MODELS)}, room=room)
    for work in works:
        fleet.step(work)
        counts = fleet.counts()
        assert sum(counts.values()) <= room
        for count in counts.values():
            assert chosen.replicas_min <= count <= chosen.replicas_max


@pytest.mark.slow
@settings(max_examples=20)
@given(some_targets(), st.lists(WORK, min_size=1, max_size=120))
def test_cooldowns_are_kept(chosen: ScalingSettings, works: list[float]) -> None:
    fleet = InstantFleet(Autoscaler(chosen), {"a": 0})
    for work in works:
        fleet.step({"a": work})
    changes = [(at, by) for at, by in fleet.changes("a") if at > fleet.seconds]  # the first step may bring it to its minimum
    for (before, first), (at, by) in pairwise(changes):
        if by < 0:
            assert at - before >= chosen.scale_down_cooldown
        elif first > 0:
            assert at - before >= chosen.scale_up_cooldown


@given(st.floats(0, 40), st.floats(0, 40), st.integers(0, 10), st.floats(0, 0.5))
def test_more_demand_never_means_fewer(one: float, other: float, count: int, tolerance: float) -> None:
    low, high = sorted((one, other))
    assert followed(count, low, tolerance) <= followed(count, high, tolerance)


@given(st.integers(0, 40), st.floats(0, 1), st.floats(0, 20), st.floats(0, 20), st.integers(0, 6), st.integers(0, 3), st.data())
def test_demand_grows_with_every_figure(
    waiting: int, utilisation: float, first_token: float, rate: float, serving: int, loading: int, data: st.DataObject
) -> None:
    load = ModelLoad("a", replicas(serving, loading), 0, waiting, first_token, utilisation, rate, slot_seconds=10.0, new_slots=8)
    more = with_load(
        load,
        waiting=waiting + data.draw(st.integers(0, 20)),
        utilisation=data.draw(st.floats(utilisation, 1)),
        first_token_p95=data.draw(st.floats(first_token, 40)),
        requests_per_second=data.draw(st.floats(rate, 40)),
    )
    assert demanded(0, load, targets(), None).replicas <= demanded(0, more, targets(), None).replicas


@pytest.mark.slow
@settings(max_examples=20)
@given(WORK, WORK)
def test_a_steady_load_gets_more_replicas_the_more_it_is(one: float, other: float) -> None:
    low, high = sorted((one, other))
    ends: list[int] = []
    for work in (low, high):
        fleet = InstantFleet(Autoscaler(targets(replicas_max=64)), {"a": 0})
        for _ in range(200):
            fleet.step({"a": work})
        assert fleet.changes("a")[-1:] == [] or fleet.changes("a")[-1][0] < 500, "it has settled"
        ends.append(fleet.counts()["a"])
        assert work / ends[-1] <= 0.75 * 1.1 + 1e-9
        assert ends[-1] == 1 or work / (ends[-1] - 1) > 0.75 * 0.9 - 1e-9
    assert ends[0] <= ends[1]


# Flapping


def wave(low: float, high: float, half: int, noise: float, steps: int, seed: int) -> list[float]:
    """A square wave with noise on every sample, as a share. half: steps of half a period."""
    chance = Random(seed)
    return [(high if (i // half) % 2 else low) * (1 + chance.uniform(-noise, noise)) for i in range(steps)]


@pytest.mark.slow
@settings(max_examples=20)
@given(st.floats(0.2, 4), st.floats(0.5, 5), st.integers(1, 80), st.integers(0, 10**6))
def test_a_noisy_square_wave_moves_it_once_up_and_at_most_twice_down(low: float, rise: float, half: int, seed: int) -> None:
    """An edge, in steps of 15 s, beside windows of 15 s and 300 s. Noise of less than half the tolerance. Down by two steps: for at most
    10 replicas, what two windows see as the greatest demand lies on both sides of one whole number at most."""
    fleet = InstantFleet(Autoscaler(targets(replicas_max=64)), {"a": 0}, seconds=15.0)
    works = wave(low, low + rise, half, 0.045, 400, seed)
    for work in works:
        fleet.step({"a": work})
    edges = (len(works) - 1) // half
    falls, rises = edges // 2, edges - edges // 2
    changes = fleet.changes("a")
    climb = [by for at, by in changes if at <= 300]  # from one replica, in several steps while the queue tells
    assert sum(by > 0 for _, by in changes) <= rises + max(len(climb), 1)
    assert sum(by < 0 for _, by in changes) <= 2 * falls
    if half * fleet.seconds <= 300:
        assert all(by > 0 for _, by in changes), "a wave that is shorter than the window is held at its top"


@pytest.mark.slow
@settings(max_examples=20)
@given(st.floats(0.2, 4), st.floats(0.5, 5), st.integers(1, 80), st.floats(0, 0.095), st.integers(0, 10**6))
def test_noise_within_the_tolerance_never_turns_it_around(low: float, rise: float, half: int, noise: float, seed: int) -> None:
    fleet = InstantFleet(Autoscaler(targets(replicas_max=64)), {"a": 0}, seconds=15.0)
    works = wave(low, low + rise, half, noise, 400, seed)
    for work in works:
        fleet.step({"a": work})
    signs = [by > 0 for _, by in fleet.changes("a")]
    turns = sum(one is not other for one, other in pairwise(signs))
    assert turns <= (len(works) - 1) // half


@pytest.mark.slow
@settings(max_examples=20)
@given(st.lists(WORK, min_size=300, max_size=300))
def test_whatever_the_noise_it_comes_down_once_a_window_at_most(works: list[float]) -> None:
    fleet = InstantFleet(Autoscaler(targets(replicas_max=64)), {"a": 0})
    for work in works:
        fleet.step({"a": work})
    falls = [at for at, by in fleet.changes("a") if by < 0]
    assert all(later - earlier >= 300 for earlier, later in pairwise(falls))


# Priorities


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.floats(0, 6)), min_size=2, max_size=5),
    st.integers(0, 6),
)
def test_nobody_gets_room_that_a_higher_priority_lacks(models: list[tuple[int, int, float]], room: int) -> None:
    loads = [busy(f"m{i}", replicas(count), work, priority) for i, (priority, count, work) in enumerate(models)]
    plan = planned(Autoscaler(targets()), loads, places_for(room))
    priorities = {load.model: load.priority for load in loads}
    counts = {load.model: load.kept for load in loads}
    lacking = [priorities[told.model] for told in plan.models if any(hold.kind == "room" for hold in told.holds)]
    gets = {told.model for told in plan.models if told.planned > counts[told.model]}
    assert all(priorities[model] >= max(lacking, default=0) for model in gets)
    assert sum(max(told.planned - counts[told.model], 0) for told in plan.models) <= room
    gives = {told.model for told in plan.models if any("room is for" in getattr(action, "why", "") for action in told.actions)}
    assert all(told.planned >= 1 for told in plan.models if told.model in gives)
    assert not gives or lacking, "nobody gives without need"
    for model in gives:
        assert priorities[model] <= max(lacking)


@pytest.mark.slow
@settings(max_examples=20)
@given(st.floats(0.1, 20), st.floats(0.1, 20), st.integers(2, 6), st.integers(0, 10**6))
def test_two_models_of_one_priority_share_the_room_by_load_and_stay(one: float, other: float, room: int, seed: int) -> None:
    fleet = InstantFleet(Autoscaler(targets(scale_down_after=60.0, scale_down_cooldown=60.0)), {"a": 0, "b": 0}, room=room)
    chance = Random(seed)
    for _ in range(300):
        noise = {"a": chance.uniform(0.97, 1.03), "b": chance.uniform(0.97, 1.03)}
        fleet.step({"a": one * noise["a"], "b": other * noise["b"]})
    late = [change for model in "ab" for change in fleet.changes(model) if change[0] > 1000]
    assert late == []
    a, b = fleet.counts()["a"], fleet.counts()["b"]
    if one >= 2 * other:
        assert a >= b or b <= followed(0, other / 0.75 * 1.03, 0.1)


def test_the_windows_forget_what_is_too_old() -> None:
    steady = Steadiness()
    chosen = targets(scale_up_after=10.0, scale_down_after=30.0)
    for at in range(1000):
        steady.saw(float(at), float(at % 7), chosen)
    assert len(steady._demands) <= 33
    assert (steady.least(999.0, 3.0), steady.greatest(999.0, 3.0)) == (2.0, 5.0)


@pytest.mark.parametrize("seconds", [10.0, 30.0])
def test_a_window_that_was_not_seen_whole_allows_nothing(seconds: float) -> None:
    steady = Steadiness()
    steady.saw(100.0, 5.0, targets())
    steady.saw(109.0, 5.0, targets())
    assert (steady.least(109.0, seconds), steady.greatest(109.0, seconds)) == (0.0, float("inf"))
