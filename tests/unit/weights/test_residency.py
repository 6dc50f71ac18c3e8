"""Which units are in which slots, step by step."""

from __future__ import annotations

import pytest

from shoal.weights.eviction import LeastRecent
from shoal.weights.expected_use import ExpectedUse
from shoal.weights.residency import Need, UnitLoad, WeightResidency
from shoal.weights.unit import Unit


def residency(slots: int, layers: int = 2) -> WeightResidency:
    return WeightResidency(slots, [4] * layers, LeastRecent())


def read(r: WeightResidency, need: Need) -> list[Unit]:
    for load in need.loads:
        r.arrived(load.unit)
    return [load.unit for load in need.loads]


def visit(r: WeightResidency, layer: int, *experts: int) -> list[Unit]:
    """What the visit read."""
    loaded = read(r, r.need(layer, experts))
    r.done(layer)
    return loaded


def test_what_was_read_is_held():
    r = residency(4)
    assert visit(r, 0, 2, 1) == [(0, 2), (0, 1)]
    assert r.need(0, [1, 2, 3]) == Need([Unit(0, 1), Unit(0, 2)], [UnitLoad(Unit(0, 3), 2)], [], [])
    assert (r.tally.hits, r.tally.misses) == (2, 3)


def test_a_page_is_there_when_the_read_has_ended():
    r = residency(2)
    page = r.pages(0)
    load = r.need(0, [3]).loads[0]
    assert page[3] == -1
    r.arrived(load.unit)
    assert page[3] == load.slot


def test_a_read_under_way_is_not_begun_again():
    r = residency(2)
    r.need(0, [1])
    r.done(0)
    again = r.need(0, [1])
    assert (again.loads, again.coming) == ([], [Unit(0, 1)])
    assert r.tally.awaited == 1


def test_too_few_slots_take_turns():
    r = residency(2)
    visit(r, 0, 3)
    need = r.need(0, [0, 1, 2, 3])
    assert (need.held, need.later) == ([Unit(0, 3)], [Unit(0, 1), Unit(0, 2)])
    read(r, need)
    need = r.next_wave(0)
    assert (read(r, need), need.later) == ([(0, 1), (0, 2)], [])
    r.done(0)
    assert (r.tally.hits, r.tally.misses) == (1, 4)


def test_a_wave_waits_for_slots_of_other_layers():
    r = residency(2)
    read(r, r.need(1, [0, 1]))
    assert r.need(0, [2]).later == [Unit(0, 2)]
    assert r.next_wave(0).later == [Unit(0, 2)]
    r.done(1)
    assert read(r, r.next_wave(0)) == [(0, 2)]


def test_a_visit_reads_no_more_at_once_than_it_is_told():
    r = residency(4)
    visit(r, 0, 3)
    need = r.need(0, [0, 1, 2, 3], at_most=1)
    assert (need.held, read(r, need), need.later) == ([Unit(0, 3)], [(0, 0)], [Unit(0, 1), Unit(0, 2)])
    need = r.more(0, 1)
    assert (read(r, need), need.later) == ([(0, 1)], [Unit(0, 2)])
    assert (read(r, r.more(0, 5)), r.more(0, 5)) == ([(0, 2)], Need([], [], [], []))
    assert (r.tally.hits, r.tally.misses) == (1, 4)


def test_what_a_visit_has_done_with_makes_room_for_the_rest_of_it():
    r = residency(2)
    read(r, r.need(0, [0, 1, 2, 3]))
    assert r.more(0, 2).loads == []
    r.release(0, [0])
    need = r.more(0, 2)
    assert (need.loads, need.later) == ([UnitLoad(Unit(0, 2), 0)], [Unit(0, 3)])
    r.release(0, [0, 3])  # neither is live
    assert r.more(0, 2).loads == []


def test_what_is_done_with_while_it_is_read_may_go_when_it_has_come():
    r = residency(1)
    load = r.need(0, [0, 1]).loads[0]
    r.release(0, [0])
    assert r.more(0, 1).loads == []
    r.arrived(load.unit)
    assert read(r, r.more(0, 1)) == [(0, 1)]


def test_guesses_stop_where_they_are_told():
    r = residency(4)
    loads = r.guess([Unit(1, expert) for expert in range(4)], at_most=3)
    assert [load.unit.expert for load in loads] == [0, 1, 2]


def test_a_failed_read_leaves_a_free_slot():
    r = residency(1)
    load = r.need(0, [1]).loads[0]
    r.failed(load.unit)
    r.done(0)
    assert r.owners == [None]
    assert visit(r, 0, 1) == [(0, 1)]
    assert (r.tally.failures, r.tally.evictions) == (1, 0)


def test_an_end_of_a_read_that_was_not_asked_for_is_an_error():
    r = residency(1)
    with pytest.raises(KeyError):
        r.arrived(Unit(0, 1))
    with pytest.raises(KeyError):
        r.failed(Unit(0, 1))


def test_a_pinned_unit_stays():
    r = residency(2)
    visit(r, 0, 1)
    r.pin(Unit(0, 1))
    for expert in range(4):
        visit(r, 1, expert)
    assert visit(r, 0, 1) == []
    r.unpin(Unit(0, 1))
    visit(r, 1, 0, 1)
    assert visit(r, 0, 1) == [(0, 1)]


def test_one_slot_is_left_for_what_is_not_pinned():
    r = residency(2)
    r.pin(Unit(0, 0))
    r.pin(Unit(0, 0))
    with pytest.raises(ValueError, match="2 slots"):
        r.pin(Unit(0, 1))
    whole = residency(8)
    for layer in range(2):
        for expert in range(4):
            whole.pin(Unit(layer, expert))


def test_no_slot_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        residency(0)


def test_guesses_use_free_slots_and_what_is_worth_less():
    r = residency(3)
    visit(r, 0, 1, 2)
    assert r.guess([Unit(1, 0), Unit(0, 1), Unit(1, 1)]) == [(Unit(1, 0), 2)]
    visit(r, 0, 2)  # the layer was visited since 1 was needed
    assert [load.unit for load in r.guess([Unit(1, 1), Unit(1, 2)])] == [Unit(1, 1)]
    assert visit(r, 0, 2) == []


def test_a_guess_stays_until_its_layer_has_run():
    r = WeightResidency(4, [4, 4], ExpectedUse([4, 4]))
    visit(r, 0, 0, 1)
    for load in r.guess([Unit(1, 0), Unit(1, 1)]):
        r.arrived(load.unit)
    assert visit(r, 0, 2, 3) == [(0, 2), (0, 3)]
    assert visit(r, 1, 0) == []
    assert (r.tally.guessed, r.tally.guessed_used, r.tally.guessed_wasted) == (2, 1, 0)
    visit(r, 0, 0)
    assert r.tally.guessed_wasted == 1


def test_demand_evicts_a_guess_where_nothing_else_can_go():
    r = residency(1)
    r.arrived(r.guess([Unit(0, 1)])[0].unit)
    assert visit(r, 1, 2) == [(1, 2)]
    assert r.tally.guessed_wasted == 1


def test_a_guess_that_is_needed_makes_no_room():
    r = residency(1)
    r.arrived(r.guess([Unit(0, 1)])[0].unit)
    assert r.need(0, [1, 2]) == Need([Unit(0, 1)], [], [], [Unit(0, 2)])


def test_a_guess_that_comes_late_is_waited_for():
    r = residency(2)
    r.guess([Unit(0, 1)])
    assert r.need(0, [1]).coming == [Unit(0, 1)]
    assert r.tally.guessed_used == 1


def test_a_guess_that_fails_is_wasted():
    r = residency(2)
    r.guess([Unit(0, 1)])
    r.failed(Unit(0, 1))
    assert (r.tally.guessed_wasted, r.tally.failures) == (1, 1)
