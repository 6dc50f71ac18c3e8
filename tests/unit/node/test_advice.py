"""What an operator should know, in words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.advice import advice, attention
from shoal.observed.cluster import RequestsView, StageView
from shoal.observed.event import ClusterEvent, EventKind
from tests.support.fixed_operator import machine

QUIET = RequestsView(1, 0, 8, 4, 64)


def stages(*shares: float) -> list[StageView]:
    return [StageView(name, 0, 1, share=share) for name, share in zip("abcd", shares, strict=False)]


def test_a_stage_that_takes_most_of_a_step_bounds_the_pipeline() -> None:
    (one,) = advice(stages(0.2, 0.61), {"a": 0.5, "b": 1.14})
    assert (one.kind, one.node, one.message) == ("bound", "b", "b bounds the pipeline: 61% of a step; without it 14% faster")
    assert advice(stages(0.2, 0.61), {"b": 0.7})[0].message == "b bounds the pipeline: 61% of a step"
    assert advice(stages(0.4, 0.45), {}) == [] and advice(stages(0.9), {}) == [] and advice(stages(0.0, 0.0), {}) == []


def test_a_cluster_that_would_be_faster_without_a_node_is_told() -> None:
    (one,) = advice(stages(0.4, 0.4), {"a": 0.8, "b": 1.2})
    assert (one.kind, one.node) == ("better", "b") and one.gain > 0.19


def told(**more: object) -> list[str]:
    given = {
        "state": "serving",
        "reason": "",
        "machines": [machine("a")],
        "requests": QUIET,
        "queue": 100,
        "events": [],
        "now": 1000.0,
        **more,
    }
    return [one.message for one in attention(**given)]  # type: ignore[arg-type]


def test_nothing_needs_attention_when_all_is_well() -> None:
    assert told() == []
    assert told(events=[ClusterEvent(1, 999.0, EventKind.LOST, "a left", "a")]) == [], "it is back"
    assert told(events=[ClusterEvent(1, 10.0, EventKind.LOST, "b left", "b")]) == [], "long ago"


def test_what_needs_attention_is_told() -> None:
    assert told(state="waiting", reason="0 of 2 nodes have joined") == ["no model is served: 0 of 2 nodes have joined"]
    assert told(machines=[machine("a", state="suspected", words="silent for 2.0 s")]) == ["a: silent for 2.0 s"]
    assert "3.0 times slower" in told(machines=[machine("a", slower=3.0)])[0]
    assert "KV blocks are used up" in told(requests=RequestsView(8, 3, 8, 64, 64))[0]
    assert told(requests=RequestsView(8, 0, 8, 64, 64)) == [], "full, and nobody waits"
    assert "90 of at most 100" in told(requests=RequestsView(8, 90, 8, 4, 64))[0]
    lost = [ClusterEvent(n, 990.0, EventKind.LOST, "b left: silent", "b") for n in (2, 1)]
    assert told(events=lost) == ["b left: silent; it has not come back"]


@given(st.lists(st.floats(0, 1), max_size=4), st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 3)))
def test_a_node_is_advised_about_once(shares: list[float], without: dict[str, float]) -> None:
    found = advice(stages(*shares), without)
    assert len({one.node for one in found}) == len(found) and all(one.gain >= 0 for one in found)
