"""What stages' computing is made of: what the nodes counted between two looks at the cluster, and estimates where they did not."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.observed.cluster import ClusterView, MachineView
from shoal.observed.computing import Computed, ComputeParts
from shoal.observed.requests import StepSpan
from shoal.profiling.parts import stage_parts
from shoal.profiling.slices import merged
from tests.support import views
from tests.support.timelines import any_steps, step, timeline

DECODE, PROMPT = step(1), step(2, 100.1, rows=64, tokens=1)
BOTH = merged([timeline(DECODE, PROMPT)])
NONE = ComputeParts()
GUESS = {("a", "decode"): {"attention": 1.0, "feed-forward": 3.0}, ("a", "prompt"): {"attention": 1.0}}


def told(*machines: MachineView) -> ClusterView:
    return msgspec.structs.replace(views.seen().cluster, machines=[*machines])


def node(name: str, number: int, decoding: ComputeParts | None = None, prompts: ComputeParts = NONE) -> MachineView:
    """decoding: None: it tells nothing."""
    return views.machine(name, number, 2, computed=None if decoding is None else Computed(decoding, prompts))


def test_the_difference_is_what_counts_and_it_fills_the_measured_computing():
    before = told(node("a", 1, ComputeParts(attention=100.0, other=7.0), ComputeParts(feed_forward=9.0)))
    after = told(node("a", 1, ComputeParts(attention=101.0, experts=2.0, waiting=1.0, other=7.0), ComputeParts(feed_forward=9.5)))
    decode, prompt = stage_parts(BOTH, before, after, {})
    assert (decode.node, decode.kind, decode.steps, decode.counted) == ("a", "decode", 1, True)
    assert decode.compute == pytest.approx(0.004)
    assert decode.parts == pytest.approx({"attention": 0.001, "experts": 0.002, "waiting": 0.001})
    assert prompt.kind == "prompt" and prompt.parts == pytest.approx({"feed-forward": 0.004})


def test_a_node_that_tells_nothing_is_estimated_and_one_beside_it_is_not():
    then = told(node("a", 1), node("b", 2, NONE))
    now = told(node("a", 1), node("b", 2, ComputeParts(head=1.0), ComputeParts(head=1.0)))
    found = {(one.node, one.kind): one for one in stage_parts(BOTH, then, now, GUESS)}
    assert not found["a", "decode"].counted
    assert found["a", "decode"].parts == pytest.approx({"attention": 0.001, "feed-forward": 0.003})
    assert found["b", "decode"].counted and found["b", "decode"].parts == pytest.approx({"head": 0.004})


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (node("a", 1, ComputeParts(attention=5.0)), node("a", 3, ComputeParts(attention=6.0))),  # it joined anew
        (node("a", 1, ComputeParts(attention=5.0)), node("a", 1, ComputeParts(attention=2.0, experts=9.0))),  # its counts began anew
        (node("a", 1), node("a", 1, ComputeParts(attention=6.0))),
        (node("a", 1, ComputeParts(attention=6.0)), node("a", 1)),
        (node("a", 1, ComputeParts(attention=6.0)), node("a", 1, ComputeParts(attention=6.0))),  # no heartbeat came
    ],
)
def test_what_cannot_be_compared_is_estimated(then: MachineView, now: MachineView):
    (found,) = stage_parts(merged([timeline(DECODE)]), told(then), told(now), GUESS)
    assert not found.counted and found.parts == pytest.approx({"attention": 0.001, "feed-forward": 0.003})


def test_without_counts_and_without_costs_nothing_is_said():
    assert stage_parts(BOTH, told(), told(), {}) == []


seconds = st.floats(0, 1e4)
counts = st.builds(ComputeParts, seconds, seconds, seconds, seconds, seconds, seconds)


@given(any_steps(), counts, st.lists(counts, min_size=4, max_size=4))
def test_parts_are_the_computing_of_the_steps(steps: list[StepSpan], before: ComputeParts, more: Sequence[ComputeParts]):
    run = merged([timeline(*steps)])
    now = [before + one for one in more]
    found = stage_parts(
        run,
        told(node("a", 1, before, before), node("b", 2, before, before)),
        told(node("a", 1, now[0], now[1]), node("b", 2, now[2], now[3])),
        {},
    )
    for one in found:
        stage = run.nodes.index(one.node)
        assert one.counted and sum(one.parts.values()) == pytest.approx(one.compute) and min(one.parts.values()) >= 0
        assert one.compute <= sum(each.stages[stage].compute for each in run.steps) * (1 + 1e-9)
