"""Computing beside what the machine allows, and changes tried by the placement's predictor."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.placement.cost import Matrices
from shoal.placement.profile import Demand, LinkSpeeds, NodeProfile
from shoal.profiling.changes import Situation, changes, sequence_of
from shoal.profiling.limits import Costing, estimated_parts, stage_limits
from shoal.profiling.slices import merged
from tests.support.plans import GIB, moe
from tests.support.timelines import step, timeline

MODEL = replace(moe(8), head=Matrices(1000, 2000))
ATTENTION = (Matrices(100_000, 200_000),) * 8
BOUNDS = [(0, 4), (4, 8)]
NODES = (NodeProfile("a", 64 * GIB, 10e9, 1e12), NodeProfile("b", 64 * GIB, 5e9, 1e12))
DECODE, PROMPT = step(1), step(2, 100.1, rows=64, tokens=1)


def situation(**more: object) -> Situation:
    given: dict[str, object] = {"threads": {"a": 4, "b": 4}, "links": LinkSpeeds(), "demand": Demand(4, 4096, 4096, 128), **more}
    return Situation(NODES, sequence_of(BOUNDS), MODEL, **given)  # pyright: ignore[reportArgumentType]


def test_a_decode_step_is_bound_by_memory_by_the_bytes_it_reads():
    found = stage_limits(merged([timeline(DECODE)]), BOUNDS, NODES, Costing(MODEL, ATTENTION, 100))
    a, b = found
    reads = MODEL.read_bytes(0, 4, 1) + sum(layer.kv_read(100) for layer in MODEL.layers[:4])
    assert a.kind == "decode" and a.bound == "memory" and a.memory == pytest.approx(reads / 10e9)
    assert a.reached == pytest.approx(max(a.memory, a.arithmetic) / 0.004)
    assert b.memory == pytest.approx((reads + 1000) / 5e9)  # half as fast, and it has the head


def test_prompts_are_told_apart_and_need_more_arithmetic():
    found = stage_limits(merged([timeline(DECODE, PROMPT)]), BOUNDS, NODES, Costing(MODEL, ATTENTION, 100))
    assert [(one.node, one.kind, one.steps) for one in found] == [
        ("a", "decode", 1),
        ("a", "prompt", 1),
        ("b", "decode", 1),
        ("b", "prompt", 1),
    ]
    assert found[1].arithmetic > 10 * found[0].arithmetic


@given(st.integers(1, 256), st.integers(0, 4))
def test_estimated_parts_are_at_least_the_limit_and_the_head_is_on_the_last_stage(rows: int, tokens: int):
    run, costing = merged([timeline(step(rows=rows, tokens=min(tokens, rows)))]), Costing(MODEL, ATTENTION, 50)
    found = estimated_parts(run, BOUNDS, NODES, costing)
    for one in stage_limits(run, BOUNDS, NODES, costing):
        parts = found[one.node, one.kind]
        assert sum(parts.values()) >= max(one.memory, one.arithmetic) * (1 - 1e-9)
        assert min(parts["attention"], parts["experts"]) > 0
        assert (parts["head"] > 0) == (one.node == "b" and tokens > 0)


def test_changes_name_the_slowest_node_and_leave_none_out():
    found = {one.change: one for one in changes(situation())}
    assert "twice the memory bandwidth on b" in found and "without a" in found and "without b" in found
    assert found["without b"].predicted > 0
    assert found["twice the memory bandwidth on b"].gain > 0
    assert [one.gain for one in changes(situation())] == sorted((one.gain for one in found.values()), reverse=True)


def test_a_better_split_is_found_where_there_is_one():
    found = {one.change: one for one in changes(situation())}
    assert found["the layers split anew over the same nodes"].gain > 0  # b is half as fast and runs half


def test_what_does_not_fit_says_why():
    small = tuple(replace(node, memory=int(0.6 * MODEL.held_bytes)) for node in NODES)
    found = {one.change: one for one in changes(replace(situation(demand=Demand(4, 64, 64, 64)), order=small))}
    assert "not enough memory" in found["without a"].why and found["without a"].predicted == 0
    assert changes(replace(situation(demand=Demand(4, 64, 64, 64)), order=small))[-1].why


@given(st.floats(1e8, 1e11), st.floats(1e8, 1e11), st.integers(1, 32))
def test_faster_is_never_predicted_to_be_slower(a: float, b: float, slots: int):
    order = (replace(NODES[0], bytes_per_second=a), replace(NODES[1], bytes_per_second=b))
    for one in changes(replace(situation(demand=Demand(slots, 4096, 4096, 128)), order=order)):
        assert one.gain > -1e-9 or one.change.startswith("without")


def test_a_single_node_cannot_be_done_without():
    alone = replace(situation(), order=NODES[:1], bounds=(0, 8))
    assert not [one for one in changes(alone) if one.change.startswith("without")]
