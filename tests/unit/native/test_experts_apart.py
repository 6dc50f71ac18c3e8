"""Experts that come one after the other give the bits of experts that are all there; matrices over foreign memory are the matrices."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.native import BLOCK_TOKENS
from tests.support.kernel_parts import ISAS, Floats, module, normal, nothing_attended, packed
from tests.support.kernel_reference import Mlp, Routed

HIDDEN, ROWS, EXPERTS = 64, 11, 8
TARGETS = ["f32", "q8", "q4"]


def arrays(rows: int) -> tuple[Any, ...]:
    """Starts, positions, tables and rotations of one sequence."""
    return np.array([0, rows], np.int32), np.zeros(1, np.int32), np.zeros((1, 1), np.int32), []


def pool() -> Any:
    return np.zeros((1, 32 * BLOCK_TOKENS * 4), np.uint8)


def whole(block: Any, x: Floats, isa: str) -> Floats:
    hidden = x.copy()
    module.Stage(HIDDEN, 2, isa).forward(hidden, *arrays(len(x)), [nothing_attended(HIDDEN)], [block], [pool()], "fp32")
    return hidden


def apart(block: Any, given: list[Any], x: Floats, isa: str, order: list[int], waves: list[int]) -> Floats:
    """order: of the experts, by numbers that are taken modulo what is left. waves: how many go together, one after the other."""
    stage, hidden = module.Stage(HIDDEN, 2, isa), x.copy()
    needed = stage.route(hidden, *arrays(len(x)), nothing_attended(HIDDEN), block, pool(), "fp32")
    left, turn = list(range(len(needed))), 0
    while left:
        assert stage.awaited == len(left)
        wave = sorted(left.pop(order[(turn + i) % len(order)] % len(left)) for i in range(min(waves[turn % len(waves)], len(left))))
        here = [expert for at in wave if (expert := int(needed[at, 0])) < len(given)]
        for expert in here:
            block.place(expert, given[expert])
        stage.compute(hidden, block, wave)
        for expert in here:
            block.place(expert, None)
        turn += 1
    return hidden


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=20, deadline=None)
@given(
    order=st.lists(st.integers(0, 20), min_size=1, max_size=12),
    waves=st.lists(st.integers(1, EXPERTS + 1), min_size=1, max_size=4),
    shared=st.booleans(),
    scale=st.sampled_from([1.0, 0.5]),
)
def test_the_order_of_arrival_changes_no_bit(isa: str, target: str, order: list[int], waves: list[int], shared: bool, scale: float) -> None:
    routed = Routed.random(count=EXPERTS, chosen=3, shared=Mlp.random(HIDDEN, 96, 900) if shared else None)
    around = module.Around(scale=scale)
    x = normal(ROWS, HIDDEN, seed=4)
    wanted = whole(routed.made(around, target), x, isa)
    given = [expert.made(target) for expert in routed.experts]
    block = module.Experts(
        around, routed.router.made(), [None] * EXPERTS, chosen=3, width=routed.experts[0].gate.weight.shape[0],
        shared=routed.shared and routed.shared.made(target), **routed.how,
    )  # fmt: skip
    assert np.array_equal(apart(block, given, x, isa, order, waves), wanted)
    assert block.counts.sum() == ROWS * 3


@pytest.mark.parametrize("target", TARGETS)
def test_a_matrix_over_foreign_memory(target: str) -> None:
    made = packed(normal(48, 64), target)
    memory = np.zeros(made.nbytes + 64, np.uint8)
    at = -memory.ctypes.data % 64
    view = memory[at : at + made.nbytes]
    view[:] = made.data
    again = module.Matrix(made.form, view)
    assert again.form == made.form and again.shape == (48, 64) and again.nbytes == made.nbytes
    del memory, view
    gc.collect()
    assert np.array_equal(again.data, made.data)
    assert not again.data.flags.writeable


def test_what_is_no_matrix_is_refused() -> None:
    made = packed(normal(48, 64), "q8")
    kind, scaling, offset, table, unit, zero, n, k = made.form
    data = np.array(made.data)
    aligned = module.pack("f32", "q8", normal(48, 64).view(np.uint8), 64).data
    for form, memory, why in (
        (("q9", scaling, offset, table, unit, zero, n, k), aligned, "unknown"),
        ((kind, scaling, "odd", table, unit, zero, n, k), aligned, "unknown"),
        ((kind, "odd", offset, table, unit, zero, n, k), aligned, "unknown"),
        (("q8", "factors", offset, table, unit, zero, n, 256), aligned, "wrong scales"),
        (("q6", "halves", offset, table, unit, zero, n, 256), aligned, "wrong scales"),
        (("q4", "factors", offset, table, unit, zero, n, 256), aligned, "wrong scales"),
        (("q6", "factors", offset, table, unit, zero, n, k), aligned, "256"),
        (("q6", "factors", "minimum", table, unit, zero, n, 256), aligned, "wrong offsets"),
        (("q4", "factors", "zero", [1] * 16, unit, zero, n, 256), aligned, "wrong offsets"),
        (("q8", scaling, "minimum", table, unit, zero, n, k), aligned, "wrong offsets"),
        (("q5", scaling, "zero", table, unit, zero, n, k), aligned, "wrong offsets"),
        ((kind, scaling, offset, [1, 2], unit, zero, n, k), aligned, "16 values"),
        ((kind, scaling, offset, [1] * 16, unit, zero, n, k), aligned, "codes of 4 bits"),
        ((kind, scaling, offset, table, unit, zero, 0, k), aligned, "impossible"),
        ((kind, scaling, offset, table, unit, zero, 1 << 50, 1 << 50), aligned, "impossible"),
        ((kind, scaling, offset, table, unit, zero, n, 63), aligned, "32"),
        ((kind, scaling, offset, table, unit, zero, n + 16, k), aligned, "another size"),
        (made.form, np.concatenate([np.zeros(1, np.uint8), data])[1:], "cache line"),
    ):
        with pytest.raises(ValueError, match=why):
            module.Matrix(form, memory)


def test_a_step_does_not_go_on_with_another_block_in_the_place_of_its_own() -> None:
    """Also where the memory of the one that is gone is used again."""
    stage, x = module.Stage(HIDDEN, 1, ""), normal(3, HIDDEN)
    for _ in range(20):
        block = Routed.random(count=8, chosen=4).made(module.Around())
        needed = stage.route(x, *arrays(3), nothing_attended(HIDDEN), block, pool(), "fp32")
        del block
        gc.collect()
        other = Routed.random(count=2, chosen=1).made(module.Around())
        with pytest.raises(ValueError, match="another block"):
            stage.compute(x, other, list(range(len(needed))))


def test_a_step_out_of_order_is_refused() -> None:
    routed = Routed.random(count=4, chosen=2)
    block, stage, x = routed.made(module.Around()), module.Stage(HIDDEN, 1, ""), normal(3, HIDDEN)
    with pytest.raises(ValueError, match="another block"):
        stage.compute(x, block, [0])
    needed = stage.route(x, *arrays(3), nothing_attended(HIDDEN), block, pool(), "fp32")
    for wrong, why in (([len(needed)], "of that place"), ([-1], "of that place"), ([1, 0], "do not rise"), ([0, 0], "do not rise")):
        with pytest.raises(ValueError, match=why):
            stage.compute(x, block, wrong)
    with pytest.raises(ValueError, match="not the step's"):
        stage.compute(x[:2], block, [0])
    assert stage.awaited == len(needed)
    stage.compute(x, block, [1])
    with pytest.raises(ValueError, match="computed before"):
        stage.compute(x, block, [0, 1])
    assert stage.awaited == len(needed) - 1
    block.place(int(needed[0, 0]), None)
    with pytest.raises(ValueError, match="not here"):
        stage.compute(x, block, [0])
    with pytest.raises(ValueError, match="not here"):
        stage.forward(x, *arrays(3), [nothing_attended(HIDDEN)], [block], [pool()], "fp32")
    for expert in (-1, 4):
        with pytest.raises(ValueError, match="no such expert"):
            block.place(expert, None)
    with pytest.raises(ValueError, match="width"):
        block.place(0, Mlp.random(HIDDEN, 160, 1).made())
