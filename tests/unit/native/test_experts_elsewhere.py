"""Experts whose rows are computed elsewhere, by any split over any number of workers, give the bits of experts that are all here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from shoal.wire.routed import Routed as RoutedRows
from shoal.wire.routed import RoutedHeader
from tests.support.kernel_parts import ISAS, Floats, module, normal, nothing_attended
from tests.support.kernel_reference import Mlp, Routed
from tests.support.routed_rows import changed
from tests.unit.native.test_experts_apart import EXPERTS, HIDDEN, ROWS, TARGETS, arrays, pool, whole

HERE = 0
"""Where an expert runs; from 1 on: the number of a worker."""


class Elsewhere:
    """A step of a layer with experts that were routed, and workers that hold all of them."""

    def __init__(self, routed: Routed, target: str, isa: str, x: Floats, around: Any) -> None:
        self.floats = target == "f32"
        self.given = [expert.made(target) for expert in routed.experts]
        width = routed.experts[0].gate.weight.shape[0]
        self.block = module.Experts(
            around, routed.router.made(), [None] * EXPERTS, chosen=3, width=width, shared=routed.shared and routed.shared.made(target),
            **routed.how,
        )  # fmt: skip
        self.set = module.ExpertSet(self.given, width=width, hidden=HIDDEN)
        self.worker = module.Stage(HIDDEN, 1, isa)
        self.stage, self.hidden = module.Stage(HIDDEN, 2, isa), x.copy()
        self.needed = self.stage.route(self.hidden, *arrays(len(x)), nothing_attended(HIDDEN), self.block, pool(), "fp32")

    def partial(self, experts: int, rows: Any, entries: int, body: bytes) -> Any:
        """What a worker makes of what was dispatched."""
        return self.worker.partial(self.set, np.frombuffer(body, np.uint8), len(rows), experts, entries, not self.floats)

    def run(self, where: Callable[[int], int]) -> Floats:
        places: dict[int, list[int]] = {}
        for at, expert in enumerate(self.needed[:, 0].tolist()):
            places.setdefault(where(expert) if expert < EXPERTS else HERE, []).append(at)
        for at in places.get(HERE, []):
            if (expert := int(self.needed[at, 0])) < EXPERTS:
                self.block.place(expert, self.given[expert])
        sent = {worker: self.stage.dispatch(self.block, of, self.floats) for worker, of in places.items() if worker != HERE}
        for worker in sorted(places, reverse=True):
            if worker == HERE:
                self.stage.compute(self.hidden, self.block, places[HERE])
            else:
                rows = sent[worker][0]
                self.stage.add(self.hidden, self.block, places[worker], rows, self.partial(len(places[worker]), *sent[worker]))
        assert self.stage.awaited == 0
        return self.hidden


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=25, deadline=None)
@given(
    holders=st.lists(st.integers(0, 4), min_size=EXPERTS, max_size=EXPERTS),
    rows=st.integers(1, ROWS),
    shared=st.booleans(),
    scale=st.sampled_from([1.0, 0.5]),
)
def test_where_experts_run_changes_no_bit(isa: str, target: str, holders: list[int], rows: int, shared: bool, scale: float) -> None:
    routed = Routed.random(count=EXPERTS, chosen=3, shared=Mlp.random(HIDDEN, 96, 900) if shared else None)
    around = module.Around(scale=scale)
    x = normal(ROWS, HIDDEN, seed=4)[:rows]
    wanted = whole(routed.made(around, target), x, isa)
    assert np.array_equal(Elsewhere(routed, target, isa, x, around).run(holders.__getitem__), wanted)


def test_workers_sums_can_be_added_before_they_are_sent() -> None:
    """So a worker that holds a replica may answer for a part, and rows of several steps may be computed in one call."""
    routed = Routed.random(count=EXPERTS, chosen=3)
    step = Elsewhere(routed, "q8", "", normal(ROWS, HIDDEN, seed=4), module.Around())
    everything = list(range(len(step.needed)))
    rows, *rest = step.stage.dispatch(step.block, everything, False)
    together = step.partial(len(everything), rows, *rest)
    apart = np.zeros_like(together)
    for at in everything:
        some, *of_one = step.stage.dispatch(step.block, [at], False)
        apart[np.searchsorted(rows, some)] += step.partial(1, some, *of_one)
    assert np.array_equal(apart, together)


def test_only_the_rows_that_an_expert_runs_are_sent() -> None:
    step = Elsewhere(Routed.random(count=EXPERTS, chosen=3), "q8", "", normal(ROWS, HIDDEN, seed=4), module.Around())
    for at, (expert, count) in enumerate(step.needed.tolist()):
        rows, entries, body = step.stage.dispatch(step.block, [at], False)
        sent = rows_of(body, count, 1, entries)
        assert len(rows) == entries == count and sent.experts.tolist() == [expert] and sent.offsets.tolist() == [0, count]
        assert sent.index.tolist() == list(range(count)) and len(sent.weights) == count
        assert sent.q.shape == (count, HIDDEN) and sent.scale.shape == (count, HIDDEN // 32)


def test_what_a_worker_cannot_run_is_refused() -> None:
    step = Elsewhere(Routed.random(count=EXPERTS, chosen=3), "q8", "", normal(ROWS, HIDDEN, seed=4), module.Around())
    rows, entries, body = step.stage.dispatch(step.block, [0, 1], False)
    good, count = rows_of(body, len(rows), 2, entries), len(rows)

    def refused(wrong: RoutedRows, why: str) -> None:
        of = wrong.header
        with pytest.raises(ValueError, match=why):
            step.worker.partial(step.set, np.frombuffer(wrong.body, np.uint8), of.rows, of.experts, of.entries, of.rounded)

    def other(array: Any, at: int, value: float) -> Any:
        out = array.copy()
        out[at] = value
        return out

    second = int(good.experts[1])
    step.set.place(second, None)
    refused(good, "not here")
    step.set.place(second, step.given[second])
    refused(changed(good, experts=other(good.experts, 0, -1)), "not here")
    refused(changed(good, experts=other(good.experts, 1, EXPERTS)), "not here")
    refused(changed(good, experts=good.experts[::-1].copy()), "do not rise")
    refused(changed(good, offsets=other(good.offsets, 0, 1)), "begin at 0")
    refused(changed(good, offsets=other(good.offsets, 2, entries + 1)), "begin at 0")
    refused(changed(good, offsets=other(good.offsets, 1, entries + 1)), "too many rows")
    refused(changed(good, index=other(good.index, 0, count)), "not there")
    refused(changed(good, index=other(good.index, 0, -1)), "not there")
    for size in (len(body) - 1, len(body) + 1, 0):
        refused(RoutedRows(good.header, (body + b"x")[:size]), "another size")
    for name, value in (("rows", 0), ("rows", -1), ("rows", 2**31), ("experts", 0), ("entries", -1), ("entries", 2**40)):
        refused(RoutedRows(replace(good.header, **{name: value}), body), "nothing to compute")
    refused(RoutedRows(replace(good.header, rounded=False), body), "another size")
    unrounded = module.ExpertSet([Mlp.random(HIDDEN, 96, 1).made("f32")] * EXPERTS, width=96, hidden=HIDDEN)
    with pytest.raises(ValueError, match="take floats"):
        step.worker.partial(unrounded, np.frombuffer(body, np.uint8), count, 2, entries, True)


def test_a_body_may_begin_anywhere_in_memory() -> None:
    step = Elsewhere(Routed.random(count=EXPERTS, chosen=3), "q8", "", normal(ROWS, HIDDEN, seed=4), module.Around())
    rows, entries, body = step.stage.dispatch(step.block, [0, 1], False)
    wanted = step.partial(2, rows, entries, body)
    for off in range(1, 8):
        moved = np.frombuffer(bytes(off) + body, np.uint8)[off:]
        assert np.array_equal(step.worker.partial(step.set, moved, len(rows), 2, entries, True), wanted)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(gone=st.sets(st.integers(0, EXPERTS - 1), min_size=1), shared=st.booleans(), renormalised=st.booleans())
def test_the_others_of_a_row_get_the_weight_of_what_nobody_can_run(isa: str, gone: set[int], shared: bool, renormalised: bool) -> None:
    how = {"renormalised": renormalised}
    routed = Routed.random(count=EXPERTS, chosen=3, shared=Mlp.random(HIDDEN, 96, 900) if shared else None, how=how)
    x = normal(ROWS, HIDDEN, seed=4)
    step = Elsewhere(routed, "f32", isa, x, module.Around())
    numbers = step.needed[:, 0].tolist()
    places = {expert: at for at, expert in enumerate(numbers)}
    if not (dropped := [places[expert] for expert in numbers if expert in gone]):
        return
    for expert in numbers:
        if expert < EXPERTS and expert not in gone:
            step.block.place(expert, step.given[expert])
    if kept := [places[expert] for expert in numbers if expert < EXPERTS and expert not in gone]:
        with pytest.raises(ValueError, match="all others"):
            step.stage.drop(step.hidden, step.block, dropped)
        step = Elsewhere(routed, "f32", isa, x, module.Around())
        for expert in set(numbers) - gone - {EXPERTS}:
            step.block.place(expert, step.given[expert])
        step.stage.compute(step.hidden, step.block, kept)
    rows = step.stage.drop(step.hidden, step.block, dropped)
    if shared:
        step.stage.compute(step.hidden, step.block, [len(numbers) - 1])
    assert step.stage.awaited == 0
    assert rows.tolist() == [at for at in range(ROWS) if gone & set(routed.choose(x[at].astype(np.float64))[0])]
    for at in range(ROWS):
        taken, weights = routed.choose(x[at].astype(np.float64))
        here = [i for i, expert in enumerate(taken) if expert not in gone]
        wanted = x[at].astype(np.float64).copy()
        for i in here:
            factor = weights.sum() / weights[here].sum()
            wanted += weights[i] * factor * routed.experts[taken[i]](x[at].astype(np.float64), routed.activation)
        if routed.shared is not None:
            wanted += routed.shared(x[at].astype(np.float64), routed.activation)
        assert np.allclose(step.hidden[at], wanted, rtol=2e-3, atol=2e-3)


def rows_of(body: bytes, rows: int, experts: int, entries: int) -> RoutedRows:
    return RoutedRows(RoutedHeader(0, rows, HIDDEN, experts, entries, True), body)


def test_what_does_not_belong_to_the_step_is_not_added() -> None:
    step = Elsewhere(Routed.random(count=EXPERTS, chosen=3), "q8", "", normal(ROWS, HIDDEN, seed=4), module.Around())
    rows, *rest = step.stage.dispatch(step.block, [0], False)
    sums = step.partial(1, rows, *rest)
    for wrong, why in (
        (([len(step.needed)], rows, sums), "of that place"),
        (([0], rows + ROWS, sums), "outside the step"),
        (([0], rows, sums[:, 1:].copy()), "hidden"),
        (([0], rows[1:].copy(), sums), "hidden"),
    ):
        with pytest.raises(ValueError, match=why):
            step.stage.add(step.hidden, step.block, *wrong)
    step.stage.add(step.hidden, step.block, [0], rows, sums)
    with pytest.raises(ValueError, match="computed before"):
        step.stage.add(step.hidden, step.block, [0], rows, sums)
    with pytest.raises(ValueError, match="computed before"):
        step.stage.dispatch(step.block, [0], False)


def test_rows_are_not_rounded_for_experts_that_are_not() -> None:
    routed, x = Routed.random(count=EXPERTS, chosen=3), normal(ROWS, HIDDEN, seed=4)
    block, stage = routed.made(module.Around(), "f32"), module.Stage(HIDDEN, 1, "")
    stage.route(x, *arrays(ROWS), nothing_attended(HIDDEN), block, pool(), "fp32")
    with pytest.raises(ValueError, match="take floats"):
        stage.dispatch(block, [0], False)


@st.composite
def nearly_right(draw: st.DrawFn) -> RoutedRows:
    """Three rows, of which some arrays or numbers are any of their type."""
    most = 2**31 - 1
    ints = st.one_of(st.integers(-2, 5), st.sampled_from([most, -most - 1, 1000]))
    floats = st.one_of(st.floats(-4, 4, width=32), st.sampled_from([np.nan, np.inf, 1e38, -1e38, 1e-45]))
    rounded, rng = draw(st.booleans()), np.random.default_rng(draw(st.integers(0, 9)))
    index = draw(st.lists(st.integers(0, 2), max_size=6))
    cut = draw(st.integers(max(0, len(index) - 3), min(3, len(index))))
    experts = draw(st.sampled_from([[0, 2], [2, 3], [0, 3]]))
    arrays = [np.array(of, np.int32) for of in (experts, [0, cut, len(index)], index)]
    weights = np.array(draw(st.lists(floats, min_size=len(index), max_size=len(index))), np.float32)
    scales = np.full((3, HIDDEN // 32), draw(floats), np.float32)
    plain = normal(3, HIDDEN) * np.float32(draw(floats))
    rows = (scales, rng.integers(-128, 128, (3, HIDDEN)).astype(np.int8)) if rounded else plain
    for at in draw(st.sets(st.integers(0, 2), max_size=2)):
        arrays[at] = np.array(draw(st.lists(ints, min_size=len(arrays[at]), max_size=len(arrays[at]))), np.int32)
    routed = RoutedRows.of(0, arrays[0], arrays[1], arrays[2], weights, rows)
    numbers = draw(
        st.dictionaries(st.sampled_from(["rows", "experts", "entries"]), st.integers(-1, 2**63 - 1) | st.integers(0, 5), max_size=1)
    )
    body = bytes(routed.body)
    size = draw(st.sampled_from([len(body)] * 3 + [len(body) - 1, len(body) + 4, 0]))
    return RoutedRows(replace(routed.header, **numbers), (body + bytes(4))[:size])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=400)
@given(given=nearly_right())
def test_whatever_is_asked_of_a_set_gives_sums_or_an_error(target: str, given: RoutedRows) -> None:
    """Sums of numbers where all that was given were numbers that are not huge."""
    experts = module.ExpertSet([Mlp.random(HIDDEN, 96, i).made(target) if i != 1 else None for i in range(4)], width=96, hidden=HIDDEN)
    of = given.header
    try:
        sums = module.Stage(HIDDEN, 2, "").partial(
            experts, np.frombuffer(given.body, np.uint8), of.rows, of.experts, of.entries, of.rounded
        )
    except ValueError:
        return
    assert sums.shape == (of.rows, HIDDEN)
    numbers = (given.weights, given.scale if given.rounded else given.x)
    if all(np.isfinite(array).all() and (np.abs(array) < 1e6).all() for array in numbers):
        assert np.isfinite(sums).all()
    untouched = np.setdiff1d(np.arange(of.rows), given.index)
    assert not sums[untouched].any()
