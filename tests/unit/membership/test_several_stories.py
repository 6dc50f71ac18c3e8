"""Whatever happens to a cluster of several pipelines: no node is promised twice, and as soon as all do as they are told it serves what
fits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from shoal.membership.state import Cluster
from shoal.pipeline_id import PipelineId
from shoal.placement.moves import Moves
from shoal.placement.profile import Demand
from tests.support.nodes import MB, model
from tests.support.shared_fleet import SharedFleet, profiles

DEMAND = Demand(slots=8, kv_tokens=4096, least_kv_tokens=256)
COSTS = {"a": model(layers=4, head=0), "b": model(layers=2, head=0), "c": model(layers=3, layer=5 * MB, head=2 * MB)}
IDS = [PipelineId("a"), PipelineId("b"), PipelineId("a", 2), PipelineId("c"), PipelineId("b", 2)]


@dataclass(frozen=True)
class Fleet:
    memories: list[int]
    """MB of each machine; 60 hold the whole of model a, 45 do with a smaller KV pool, 15 a layer."""
    min_nodes: int
    spread: bool
    spares: int
    pinned: int
    """Which of model b's nodes are named; 0: none is."""
    priorities: dict[str, int]
    """By model."""
    events: list[int]


def fleets() -> st.SearchStrategy[Fleet]:
    return st.builds(
        Fleet,
        st.lists(st.sampled_from([15, 23, 30, 45, 60, 110, 200]), min_size=4, max_size=4),
        st.integers(1, 3),
        st.booleans(),
        st.integers(0, 1),
        st.sampled_from([0, 0, 0, 3, 6, 13]),
        st.fixed_dictionaries({name: st.integers(-1, 1) for name in COSTS}),
        st.lists(st.integers(0, 4999), min_size=40, max_size=90),
    )


def begun(scenario: Fleet) -> SharedFleet:
    slots = profiles({**{f"m{i}": memory * MB for i, memory in enumerate(scenario.memories)}, "fresh": 200 * MB})
    f = SharedFleet(Cluster("1", silence=8), slots)
    toggle(f, scenario, IDS[0])
    return f


def toggle(f: SharedFleet, scenario: Fleet, id: PipelineId) -> None:
    """Opens a pipeline, or closes it."""
    if id in f.drives:
        f.close(id)
        return
    pinned = frozenset(f"m{i}" for i in range(4) if id.model == "b" and scenario.pinned >> i & 1)
    f.open(id, Moves(COSTS[id.model], DEMAND, scenario.spread, scenario.spares), scenario.min_nodes, pinned, scenario.priorities[id.model])


def play(scenario: Fleet) -> SharedFleet:
    f = begun(scenario)
    for event in scenario.events:
        happen(f, scenario, event % 20, event // 20)
    return f


def happen(f: SharedFleet, scenario: Fleet, what: int, pick: int) -> None:
    nodes = [*f.machines]
    idle = [slot for slot in range(4) if slot not in {machine.slot for machine in f.machines.values()}]
    if what == 0:
        toggle(f, scenario, IDS[pick % len(IDS)])
        return
    if what <= 2 or not nodes:  # now and then over a ghost
        if idle or pick % 5 == 0:
            f.start((idle or [0, 1, 2, 3])[pick % len(idle or range(4))])
        return
    node, ids = nodes[pick % len(nodes)], [*f.drives]
    match what, pick % 3:
        case 3 | 4, _:
            f.tick([0.1, 0.5, 2, 6, 21, 31, 100][pick % 7])
        case 5, 0:
            f.die(node, seen=pick % 2 > 0)
        case 5, 1:
            f.drain(node)
        case 6, 0 | 1:
            f.cap(node, [None, 12 * MB, 25 * MB, 45 * MB][pick // 3 % 4])
        case 7, 0:
            if ids:
                f.break_route(ids[pick // 3 % len(ids)])
        case 7, 1:
            f.slow(node, [1.0, 2.0, 10.0][pick % 7 % 3])
        case 8, 0:
            f.refuse(busy(f, pick))
        case 8, 1:
            f.ignore(busy(f, pick))
        case 9 | 10, _:
            f.obey(busy(f, pick))
        case 11 | 12, _:
            if ids:
                f.drive(ids[pick % len(ids)])
        case _:
            f.obey_all()
            f.drive_all()


def busy(f: SharedFleet, pick: int) -> int:
    """One of the nodes, of those that were told something if there are such."""
    nodes = [n for n, machine in f.machines.items() if machine.told] or [*f.machines]
    return nodes[pick % len(nodes)]


@pytest.mark.slow
@settings(phases=[Phase.reuse, Phase.generate], max_examples=300)
@given(fleets())
def test_no_node_is_promised_twice_and_what_fits_is_served(scenario: Fleet):
    """SharedFleet checks after each event."""
    f = play(scenario)
    note("\n".join(f.story[-60:]))
    f.settle()
    note("\n".join(f.story[-60:]))
    f.check_rest()
