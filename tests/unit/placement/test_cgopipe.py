"""Schedules keep to what depends on what and to the slots, and the one that pages weights in between is the fastest."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.placement.cgopipe import DISK, GPU, PipeSetting, cgopipe, experts_once, in_turn, serial, whole_layers
from shoal.placement.operations import Kind, Operation, makespan, simulated
from shoal.placement.timeline import Span, utilisation

Schedule = Callable[[PipeSetting], list[Operation]]
BY_MICRO_BATCH: list[Schedule] = [cgopipe, whole_layers, in_turn, serial]

numbers = st.integers(1, 4)


@st.composite
def settings_of_a_layer_at_least(draw: st.DrawFn) -> PipeSetting:
    pages = draw(numbers)
    return PipeSetting(
        draw(numbers), draw(st.integers(1, 6)), pages, draw(st.integers(pages, 3 * pages)), draw(st.sampled_from([GPU, DISK]))
    )


every_setting = st.builds(PipeSetting, numbers, numbers, numbers, st.integers(1, 12), st.sampled_from([GPU, DISK]))


def timed(program: list[Operation], seconds: dict[Kind, float]) -> list[Span]:
    return simulated(program, lambda operation: seconds[operation.kind])


durations = st.fixed_dictionaries({kind: st.floats(0.01, 10) for kind in Kind})


def check(setting: PipeSetting, program: list[Operation], seconds: dict[Kind, float]) -> None:
    spans = timed(program, seconds)
    names = {(o.kind, o.layer, o.part): span for o, span in zip(program, spans, strict=True)}
    assert len(names) == len(program), "an operation runs twice"
    for operation, span in zip(program, spans, strict=True):
        assert all(spans[need].ended <= span.began for need in operation.needs)
    for resource in setting.resources.values():
        mine = [span for span in spans if span.resource == resource]
        assert all(a.ended <= b.began for a, b in pairwise(mine)), "a resource does two things at once"
        assert makespan(spans) >= sum(span.ended - span.began for span in mine) * (1 - 1e-9)
    for layer in range(setting.layers):
        assert all((Kind.LOAD, layer, page) in names for page in range(setting.pages))
        for batch in range(setting.micro_batches):
            chain = [names[kind, layer, batch] for kind in Kind if kind in setting.resources and kind not in (Kind.LOAD, Kind.EXPERTS)]
            assert all(a.ended <= b.began for a, b in pairwise(chain))


def pages_at_once(setting: PipeSetting, program: list[Operation], spans: list[Span], gone: Callable[[Operation], float]) -> int:
    """The most pages that have a slot at any time. gone: when that of a load is free."""
    loads = [(o, span) for o, span in zip(program, spans, strict=True) if o.kind is Kind.LOAD]
    return max(sum(span.began <= at.began < gone(o) for o, span in loads) for _, at in loads)


@pytest.mark.parametrize("schedule", BY_MICRO_BATCH)
@given(setting=settings_of_a_layer_at_least(), seconds=durations)
def test_micro_batches_run_with_the_pages_of_their_layer_in_its_slots(schedule: Schedule, setting: PipeSetting, seconds: dict[Kind, float]):
    program = schedule(setting)
    check(setting, program, seconds)
    spans = timed(program, seconds)
    experts = {(o.layer, o.part): span for o, span in zip(program, spans, strict=True) if o.kind is Kind.EXPERTS}
    assert len(experts) == setting.layers * setting.micro_batches
    for o, span in zip(program, spans, strict=True):
        if o.kind is Kind.LOAD:
            assert all(span.ended <= experts[o.layer, batch].began for batch in range(setting.micro_batches))
    assert pages_at_once(setting, program, spans, lambda o: experts[o.layer, setting.micro_batches - 1].ended) <= setting.slots


@given(setting=every_setting, seconds=durations)
def test_experts_that_run_once_run_with_their_page_after_all_micro_batches(setting: PipeSetting, seconds: dict[Kind, float]):
    program = experts_once(setting)
    check(setting, program, seconds)
    spans = timed(program, seconds)
    experts = {(o.layer, o.part): span for o, span in zip(program, spans, strict=True) if o.kind is Kind.EXPERTS}
    assert len(experts) == setting.layers * setting.pages
    for o, span in zip(program, spans, strict=True):
        if o.kind is Kind.LOAD:
            assert span.ended <= experts[o.layer, o.part].began
        if o.kind is Kind.AFTER_ATTENTION:
            assert all(span.ended <= experts[o.layer, page].began for page in range(setting.pages))
    assert pages_at_once(setting, program, spans, lambda o: experts[o.layer, o.part].ended) <= setting.slots


@given(setting=settings_of_a_layer_at_least(), seconds=durations)
def test_nothing_is_slower_than_one_thing_after_the_other(setting: PipeSetting, seconds: dict[Kind, float]):
    slowest = makespan(timed(serial(setting), seconds)) * (1 + 1e-9)
    assert all(makespan(timed(schedule(setting), seconds)) <= slowest for schedule in BY_MICRO_BATCH)


MIXTRAL_ON_A_SMALL_GPU = {
    Kind.LOAD: 0.010,
    Kind.BEFORE_ATTENTION: 0.001,
    Kind.OFFLOAD: 0.0005,
    Kind.ATTENTION: 0.010,
    Kind.BRING_BACK: 0.0005,
    Kind.AFTER_ATTENTION: 0.001,
    Kind.EXPERTS: 0.008,
}
"""Seconds: a layer's weights take as long over the link as ten micro-batches of attention on the processor, and as their experts."""


def test_paging_in_between_is_faster_than_what_the_paper_compares_it_with():
    setting = PipeSetting(layers=32, micro_batches=10, pages=10, slots=20, resources=GPU)
    took = {schedule: makespan(timed(schedule(setting), MIXTRAL_ON_A_SMALL_GPU)) for schedule in BY_MICRO_BATCH}
    lower = 32 * 10 * 0.0105  # the link's work
    assert took[cgopipe] < 1.15 * lower  # the first layer comes before anything runs
    assert took[whole_layers] > 1.5 * took[cgopipe]
    assert took[in_turn] > 1.5 * took[cgopipe]
    assert took[serial] > 2 * took[cgopipe]
    used = utilisation(timed(cgopipe(setting), MIXTRAL_ON_A_SMALL_GPU))
    assert min(used[resource] for resource in ("link", "gpu", "processor")) > 0.85


def test_a_disk_is_busy_all_the_time_where_it_is_the_limit():
    seconds = {**dict.fromkeys(Kind, 0.001), Kind.LOAD: 0.010, Kind.EXPERTS: 0.006}
    spans = timed(experts_once(PipeSetting(layers=8, micro_batches=2, pages=8, slots=4, resources=DISK)), seconds)
    assert utilisation(spans)["disk"] > 0.98
    one_slot = timed(experts_once(PipeSetting(layers=8, micro_batches=2, pages=8, slots=1, resources=DISK)), seconds)
    assert utilisation(one_slot)["disk"] < 0.7


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="2 slots do not hold the 3 pages"):
        cgopipe(PipeSetting(1, 1, 3, 2, GPU))
    with pytest.raises(ValueError, match="at least 1"):
        PipeSetting(1, 1, 1, 0, GPU)
    with pytest.raises(ValueError, match="does not come before"):
        simulated([Operation(Kind.LOAD, "disk", 0, 0, (0,))], lambda operation: 1.0)
    assert simulated([], lambda operation: 1.0) == []
    assert makespan([]) == 0.0
