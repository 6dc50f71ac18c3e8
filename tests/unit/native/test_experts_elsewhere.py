"""Experts whose rows are computed elsewhere, by any split over any number of workers, give the bits of experts that are all here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.kernel_parts import ISAS, Floats, module, normal, nothing_attended
from tests.support.kernel_reference import Mlp, Routed
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
        self.needed = self.stage.route(self.hidden, *arrays(len(x)), nothing_attended(HIDDEN), self.block, pool(), False)

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
                rows, *rest = sent[worker]
                self.stage.add(self.hidden, self.block, places[worker], rows, self.worker.partial(self.set, *rest))
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
    together = step.worker.partial(step.set, *rest)
    apart = np.zeros_like(together)
    for at in everything:
        some, *of_one = step.stage.dispatch(step.block, [at], False)
        apart[np.searchsorted(rows, some)] += step.worker.partial(step.set, *of_one)
    assert np.array_equal(apart, together)


def test_only_the_rows_that_an_expert_runs_are_sent() -> None:
    step = Elsewhere(Routed.random(count=EXPERTS, chosen=3), "q8", "", normal(ROWS, HIDDEN, seed=4), module.Around())
    for at, (expert, count) in enumerate(step.needed.tolist()):
        rows, experts, offsets, index, weights, q, scale, x = step.stage.dispatch(step.block, [at], False)
        assert len(rows) == count and experts.tolist() == [expert] and offsets.tolist() == [0, count]
        assert index.tolist() == list(range(count)) and len(weights) == count
        assert q.shape == (count, HIDDEN) and scale.shape == (count, HIDDEN // 32) and len(x) == 0


def test_what_a_worker_cannot_run_is_refused() -> None:
    step = Elsewhere(Routed.random(count=EXPERTS, chosen=3), "q8", "", normal(ROWS, HIDDEN, seed=4), module.Around())
    _, experts, offsets, index, weights, q, scale, x = step.stage.dispatch(step.block, [0, 1], False)
    floats = np.zeros((len(q), HIDDEN), np.float32)

    def changed(array: Any, at: int, value: float) -> Any:
        out = array.copy()
        out[at] = value
        return out

    step.set.place(int(experts[1]), None)
    with pytest.raises(ValueError, match="not here"):
        step.worker.partial(step.set, experts, offsets, index, weights, q, scale, x)
    step.set.place(int(experts[1]), step.given[experts[1]])
    for wrong, why in (
        ((changed(experts, 0, -1), offsets, index, weights, q, scale, x), "not here"),
        ((changed(experts, 1, EXPERTS), offsets, index, weights, q, scale, x), "not here"),
        ((experts[::-1].copy(), offsets, index, weights, q, scale, x), "do not rise"),
        ((experts, changed(offsets, 0, 1), index, weights, q, scale, x), "begin at 0"),
        ((experts, changed(offsets, 2, len(index) + 1), index, weights, q, scale, x), "begin at 0"),
        ((experts, changed(offsets, 1, len(index) + 1), index, weights, q, scale, x), "too many rows"),
        ((experts, offsets, changed(index, 0, len(q)), weights, q, scale, x), "not there"),
        ((experts, offsets, changed(index, 0, -1), weights, q, scale, x), "not there"),
        ((experts, offsets, index, weights[1:], q, scale, x), "no rows"),
        ((experts, offsets, index, weights, q, scale[:, 1:].copy(), x), "as these experts take them"),
        ((experts, offsets, index, weights, q, scale, floats), "as these experts take them"),
        ((experts, offsets, index, weights, q[:0], scale[:0], floats[:, 1:].copy()), "as these experts take them"),
        ((experts, offsets, index, weights, q[:0], scale[:0], floats[:0]), "nothing to compute"),
        ((experts[:0], offsets[:1], index[:0], weights[:0], q, scale, x), "nothing to compute"),
    ):
        with pytest.raises(ValueError, match=why):
            step.worker.partial(step.set, *wrong)
    unrounded = module.ExpertSet([Mlp.random(HIDDEN, 96, 1).made("f32")], width=96, hidden=HIDDEN)
    with pytest.raises(ValueError, match="as these experts take them"):
        step.worker.partial(unrounded, experts[:1] * 0, offsets[:2], index[: offsets[1]], weights[: offsets[1]], q, scale, x)


def test_what_does_not_belong_to_the_step_is_not_added() -> None:
    step = Elsewhere(Routed.random(count=EXPERTS, chosen=3), "q8", "", normal(ROWS, HIDDEN, seed=4), module.Around())
    rows, *rest = step.stage.dispatch(step.block, [0], False)
    sums = step.worker.partial(step.set, *rest)
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
    stage.route(x, *arrays(ROWS), nothing_attended(HIDDEN), block, pool(), False)
    with pytest.raises(ValueError, match="take floats"):
        stage.dispatch(block, [0], False)


@st.composite
def nearly_right(draw: st.DrawFn) -> list[Any]:
    """What `partial` takes of three rows, of which some arrays are any of their type."""
    most, odd = 2**31 - 1, st.sampled_from([0, 1, 2, 3, 4, 5])
    ints = st.lists(st.one_of(st.integers(-2, 5), st.sampled_from([most, -most - 1, 1000])), max_size=6)
    floats = st.one_of(st.floats(-4, 4, width=32), st.sampled_from([np.nan, np.inf, 1e38, -1e38, 1e-45]))
    rounded, rng = draw(st.booleans()), np.random.default_rng(draw(st.integers(0, 9)))
    index = draw(st.lists(st.integers(0, 2), max_size=6))
    cut = draw(st.integers(max(0, len(index) - 3), min(3, len(index))))
    rows = (3, 0) if rounded else (0, 3)
    right = [
        np.array(draw(st.sampled_from([[0, 2], [2, 3], [0, 3]])), np.int32),
        np.array([0, cut, len(index)], np.int32),
        np.array(index, np.int32),
        np.array(draw(st.lists(floats, min_size=len(index), max_size=len(index))), np.float32),
        rng.integers(-128, 128, (rows[0], HIDDEN)).astype(np.int8),
        np.full((rows[0], HIDDEN // 32), draw(floats), np.float32),
        normal(rows[1], HIDDEN) * np.float32(draw(floats)),
    ]
    for at in draw(st.sets(st.integers(0, 6), max_size=2)):
        if at < 3:
            right[at] = np.array(draw(ints), np.int32)
        elif at == 3:
            right[at] = np.array(draw(st.lists(floats, max_size=6)), np.float32)
        else:
            right[at] = np.ones((draw(odd), draw(st.one_of(odd, st.sampled_from([HIDDEN, 32, 48, 65, 128])))), right[at].dtype)
    return right


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=400)
@given(given=nearly_right())
def test_whatever_is_asked_of_a_set_gives_sums_or_an_error(target: str, given: list[Any]) -> None:
    """Sums of numbers where all that was given were numbers that are not huge."""
    experts = module.ExpertSet([Mlp.random(HIDDEN, 96, i).made(target) if i != 1 else None for i in range(4)], width=96, hidden=HIDDEN)
    try:
        sums = module.Stage(HIDDEN, 2, "").partial(experts, *given)
    except ValueError:
        return
    rows = max(len(given[4]), len(given[6]))
    assert sums.shape == (rows, HIDDEN)
    if all(np.isfinite(array).all() and (np.abs(array) < 1e6).all() for array in (given[3], given[5], given[6])):
        assert np.isfinite(sums).all()
    untouched = np.setdiff1d(np.arange(rows), given[2])
    assert not sums[untouched].any()
