"""States of a cluster as a head publishes them: any of them, and one to begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from shoal.discovery.topology import (
    JOINING,
    NodeLoad,
    NodeState,
    RequestLoad,
    RouteState,
    StageSpan,
    Topology,
    as_ranges,
    table_of,
)
from shoal.membership.member import Departure

HEAD = "5eed"


def numbers(ranges: str) -> set[int]:
    """What '0-3,7' stands for."""
    out: set[int] = set()
    for part in ranges.split(",") if ranges else []:
        first, _, last = part.partition("-")
        out |= set(range(int(first), int(last or first) + 1))
    return out


def node(name: str = "a", number: int = 1, state: str = "serving", head: str = HEAD, load: NodeLoad | None = None) -> NodeState:
    return NodeState(head, number, name, "layers", state, "10.0.0.1:7000", layers="0-14", load=load or NodeLoad())


def topology(*nodes: NodeState, departed: Mapping[int, Departure] | None = None, head: str = HEAD, epoch: int = 1) -> Topology:
    route = RouteState(head, "toy", "serving", epoch, [StageSpan("a", "0-14")])
    return Topology(route, {one.name: one for one in nodes}, departed or {})


counts = st.integers(0, 1 << 40)
loads = st.builds(NodeLoad, st.sampled_from([0.0, 0.25, 1.0]), counts, counts, counts, st.integers(0, 16), counts)
tables = st.lists(st.frozensets(st.integers(0, 9)), max_size=6)
requests = st.builds(RequestLoad, st.integers(0, 3), st.integers(0, 3), st.just(8))


@st.composite
def nodes(draw: st.DrawFn, head: str, name: str) -> NodeState:
    table = draw(tables)
    return NodeState(
        head=head,
        number=draw(st.integers(1, 3)) * 10 + ord(name) % 10,
        name=name,
        role=draw(st.sampled_from(["layers", "experts"])),
        state=draw(st.sampled_from([JOINING, "idle", "serving", "suspected", "draining"])),
        address="10.0.0.1:7000",
        layers=as_ranges(range(draw(st.integers(0, 3)))),
        experts=table_of(table),
        held=sum(map(len, table)),
        load=draw(loads),
        further=draw(st.dictionaries(st.sampled_from(["toy/2", "other/1"]), st.sampled_from(["0-3", "4"]), max_size=2)),
    )


@st.composite
def topologies(draw: st.DrawFn, heads: Sequence[str] = (HEAD,)) -> Topology:
    head = draw(st.sampled_from(heads))
    states = [draw(nodes(head, name)) for name in sorted(draw(st.sets(st.sampled_from("abcd"))))]
    workers = [one.name for one in states if one.role == "experts"]
    spans = [StageSpan(one.name, one.layers) for one in states if one.role == "layers"]
    state = draw(st.sampled_from(["waiting", "serving"]))
    route = RouteState(head, "toy", state, draw(st.integers(0, 3)), spans, workers, draw(requests))
    others = [
        RouteState(head, model, state, epoch, requests=load, replica=replica)
        for (model, replica), state, epoch, load in draw(
            st.lists(
                st.tuples(
                    st.sampled_from([("toy", 2), ("other", 1), ("other", 2)]),
                    st.sampled_from(["loading", "serving"]),
                    st.integers(0, 2),
                    requests,
                ),
                max_size=2,
                unique_by=lambda one: one[0],
            )
        )
    ]
    departed = draw(st.dictionaries(st.integers(10, 39), st.builds(Departure, st.text(max_size=400), st.booleans())))
    return Topology(route, {one.name: one for one in states}, departed, others)
