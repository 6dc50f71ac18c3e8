"""The best order is never slower than its busiest resource, nor than what was recorded in order, and it reads ahead as far as slots allow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.placement.best_order import best_order
from shoal.placement.operations import makespan
from shoal.placement.timeline import DISK, PROCESSOR, WAITING, Span


def one_after_the_other(layers: int, pages: int, read: float, attention: float, experts: float, head: float) -> list[Span]:
    """A step that reads all of a layer, then computes it."""
    spans, now = list[Span](), 0.0

    def then(resource: str, what: str, layer: int, seconds: float) -> None:
        nonlocal now
        spans.append(Span(resource, what, layer, now, now + seconds))
        now += seconds

    for layer in range(layers):
        then(PROCESSOR, "attention", layer, attention)
        began = now
        for _ in range(pages):
            then(DISK, "experts", layer, read)
        spans.append(Span(PROCESSOR, WAITING, layer, began, now))
        then(PROCESSOR, "experts", layer, experts)
    then(PROCESSOR, "head", layers, head)
    return spans


seconds = st.floats(0.001, 1)


@given(st.integers(1, 6), st.integers(1, 8), seconds, seconds, seconds, seconds, st.integers(1, 64))
def test_it_lies_between_the_busiest_resource_and_one_thing_after_the_other(
    layers: int, pages: int, read: float, attention: float, experts: float, head: float, slots: int
):
    recorded = one_after_the_other(layers, pages, read, attention, experts, head)
    found = makespan(best_order(recorded, slots))
    reading, computing = layers * pages * read, layers * (attention + experts) + head
    assert max(reading, computing) * (1 - 1e-9) <= found <= makespan(recorded) * (1 + 1e-9)


def test_with_room_for_all_reads_only_the_first_and_the_last_are_not_hidden():
    recorded = one_after_the_other(layers=4, pages=2, read=1.0, attention=0.5, experts=0.5, head=0.25)
    assert makespan(best_order(recorded, slots=100)) == 4 * 2 * 1.0 + 0.25 + 0.25, "the last page's experts, and the head"


def test_with_one_slot_nothing_is_read_before_the_page_before_it_ran():
    recorded = one_after_the_other(layers=2, pages=2, read=1.0, attention=0.0, experts=1.0, head=0.0)
    assert makespan(best_order(recorded, slots=1)) == makespan(recorded)


def test_nothing_is_said_of_a_step_that_read_nothing():
    assert best_order([Span(PROCESSOR, "attention", 0, 0.0, 1.0)], 8) == []
    assert best_order([], 8) == []
