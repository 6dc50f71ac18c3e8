"""Whatever happens to a cluster: what it believes of its nodes is true, and as soon as they do as they are told it serves."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from shoal.errors import CapacityError
from shoal.placement.moves import Moves
from shoal.placement.profile import Demand, NodeProfile
from tests.support.fleet import Fleet
from tests.support.membership import OnePipeline
from tests.support.nodes import MB, model

MODEL = model(layers=4, head=0)
DEMAND = Demand(slots=8, kv_tokens=4096, least_kv_tokens=256)


@dataclass(frozen=True)
class Scenario:
    memories: list[int]
    """MB of each machine; 60 hold the whole model, 45 do with a smaller KV pool, 15 a layer."""
    min_nodes: int
    spread: bool
    spares: int
    events: list[int]


def scenarios() -> st.SearchStrategy[Scenario]:
    return st.builds(
        Scenario,
        st.lists(st.sampled_from([15, 23, 30, 45, 60, 200]), min_size=4, max_size=4),
        st.integers(1, 3),
        st.booleans(),
        st.integers(0, 1),
        st.lists(st.integers(0, 1599), min_size=40, max_size=80),
    )


def fleet(scenario: Scenario) -> Fleet:
    slots = [NodeProfile(f"m{i}", memory * MB, (5 + 5 * i) * 1e9, 1e12) for i, memory in enumerate(scenario.memories)]
    cluster = OnePipeline("1", scenario.min_nodes, Moves(MODEL, DEMAND, scenario.spread, scenario.spares), silence=8)
    return Fleet(cluster, [*slots, NodeProfile("fresh", 200 * MB, 10e9, 1e12)])


def play(scenario: Scenario) -> Fleet:
    f = fleet(scenario)
    for event in scenario.events:
        happen(f, event % 16, event // 16)
    return f


def happen(f: Fleet, what: int, pick: int) -> None:
    nodes = [*f.nodes]
    idle = [slot for slot in range(4) if slot not in {node.slot for node in f.nodes.values()}]
    if what <= 1 or not nodes:  # now and then over a ghost
        if idle or pick % 5 == 0:
            f.start((idle or [0, 1, 2, 3])[pick % len(idle or range(4))])
        return
    node = nodes[pick % len(nodes)]
    match what, pick % 3:
        case 2 | 3, _:
            f.tick([0.1, 0.5, 2, 6, 21, 31, 100][pick % 7])
        case 4, 0:
            f.die(node, seen=pick % 2 > 0)
        case 4, 1:
            f.drain(node)
        case 5, 0:
            f.break_route()
        case 5, 1:
            f.slow(node, [1.0, 2.0, 10.0][pick % 7 % 3])
        case 6, 0:
            f.refuse(busy(f, pick))
        case 6, 1:
            f.ignore(busy(f, pick))
        case 7 | 8, _:
            f.obey(busy(f, pick))
        case 9 | 10, _:
            f.drive()
        case _:
            f.obey_all()
            f.drive()


def busy(f: Fleet, pick: int) -> int:
    """One of the nodes, of those that were told something if there are such."""
    nodes = [n for n, node in f.nodes.items() if node.told] or [*f.nodes]
    return nodes[pick % len(nodes)]


def suffices(f: Fleet) -> bool:
    """Whether the nodes that are left can serve."""
    profiles = [member.profile for member in f.cluster.members.values()]
    try:
        f.cluster.pipeline._planner.first(profiles, {})
    except CapacityError:
        return False
    return f.cluster.pipeline._base is not None or len(profiles) >= f.cluster.pipeline.min_nodes


@pytest.mark.slow
@settings(phases=[Phase.reuse, Phase.generate], max_examples=200)
@given(scenarios())
def test_what_it_believes_is_true_and_it_serves_again(scenario: Scenario):
    """Fleet.handle checks after each event."""
    f = play(scenario)
    note_story(f)
    served = f.settle(lambda: f.serves)
    assert served or not suffices(f), "\n".join(f.story[-60:])


@pytest.mark.slow
@settings(phases=[Phase.reuse, Phase.generate], max_examples=80)
@given(scenarios())
def test_with_a_fresh_machine_it_always_serves_again(scenario: Scenario):
    f = play(scenario)
    f.start(4)
    for slot in range(scenario.min_nodes):
        if f.cluster.pipeline._base is None:
            f.start(slot)
    assert f.settle(lambda: f.serves), "\n".join(f.story[-60:])


def note_story(f: Fleet) -> None:
    """What a failing test prints."""
    note("\n".join(f.story[-40:]))
