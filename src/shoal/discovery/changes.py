"""From one state of a cluster to the next: the events that a head publishes, and what a reader makes of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Annotated

import msgspec

from shoal.discovery.advert import words
from shoal.discovery.topology import (
    JOINING,
    MOST_NODES,
    MOST_PIPELINES,
    Count,
    Name,
    NodeLoad,
    NodeState,
    RequestLoad,
    RouteRecord,
    RouteState,
    Topology,
    Word,
    check_printable,
)
from shoal.membership.member import Departure

_LOADS = 128
"""Nodes whose load is in one event."""
_REASON = 240
"""Bytes."""


class ChangeKind(StrEnum):
    """What an event tells."""

    JOINING = "joining"
    JOINED = "joined"
    MOVED = "moved"
    """A node has other layers or experts."""
    CHANGED = "changed"
    """Anything else of a node but its load."""
    LEFT = "left"
    LOST = "lost"
    ROUTE = "route"
    """A pipeline has another epoch or another state, or there are others."""
    LOAD = "load"
    ALIVE = "alive"
    """All keys were written again."""
    CLOSED = "closed"
    """The head shut down."""
    SILENT = "silent"
    """Never published: a reader found that the keys have expired."""
    HEARD = "heard"
    """Never published: they are there again."""


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event.

    kind:     a ChangeKind, or what a newer shoal adds
    head:     which start of which head says it
    seq:      one more than that of the event before; where one is missing, the keys say what was lost
    node:     its name, of joining, joined, moved, changed, left, lost
    reason:   of left, lost
    state:    of joining, joined, moved, changed: the node's
    route:    of route: of the first pipeline, if that changed
    others:   of route: of all other pipelines, if any of them changed
    loads:    of load: by node
    requests: of load, if they changed: of the first pipeline
    further:  of load, those that changed: by other pipeline
    """

    kind: Word
    head: Word = ""
    seq: Count = 0
    node: Name | None = None
    reason: Word = ""
    state: NodeState | None = None
    route: RouteState | None = None
    loads: dict[Name, NodeLoad] = {}
    requests: RequestLoad | None = None
    others: Annotated[list[RouteState], msgspec.Meta(max_length=MOST_PIPELINES)] | None = None
    further: dict[Word, RequestLoad] = {}

    def __post_init__(self) -> None:
        check_printable(self.kind, self.head, self.node or "", self.reason, *self.loads, *self.further)


def changes(before: Topology | None, now: Topology) -> list[Change]:
    """The events that lead from one state to the other, without head and number."""
    old: Mapping[str, NodeState] = {} if before is None else before.nodes
    gone = [node for name, node in old.items() if (new := now.nodes.get(name)) is None or new.identity != node.identity]
    out = [_departed(node, now.departed.get(node.number)) for node in gone]
    known = {name: node for name, node in old.items() if node not in gone}
    loads: dict[str, NodeLoad] = {}
    for name, node in now.nodes.items():
        if (kind := _change(known.get(name), node)) is not None:
            out.append(Change(kind, node=name, state=node))
        elif known[name].load != node.load:
            loads[name] = node.load
    if before is None:
        return [*out, Change(ChangeKind.ROUTE, route=now.route, others=[*now.others] or None), *_loads(loads, None, {})]
    route = None if _same(before.route, now.route) else now.route
    requests = now.route.requests if route is None and now.route.requests != before.route.requests else None
    alike = len(before.others) == len(now.others) and all(map(_same, before.others, now.others))
    pairs = zip(before.others, now.others, strict=True) if alike else ()
    further = {one.pipeline: one.requests for old, one in pairs if one.requests != old.requests}
    if route is not None or not alike:
        out.append(Change(ChangeKind.ROUTE, route=route, others=None if alike else [*now.others]))
    return [*out, *_loads(loads, requests, further)]


def applied(topology: Topology, change: Change) -> Topology:
    """The state after an event. At most MOST_NODES are known, whatever is told."""
    nodes, route = dict(topology.nodes), change.route or topology.route
    if change.node is not None and change.kind in (ChangeKind.LEFT, ChangeKind.LOST):
        nodes.pop(change.node, None)
    elif change.node is not None and change.state is not None and (change.node in nodes or len(nodes) < MOST_NODES):
        nodes[change.node] = change.state
    for name, load in change.loads.items():
        if name in nodes:
            nodes[name] = msgspec.structs.replace(nodes[name], load=load)
    if change.requests is not None:
        route = msgspec.structs.replace(route, requests=change.requests)
    others = topology.others if change.others is None else change.others
    others = [msgspec.structs.replace(one, requests=change.further.get(one.pipeline, one.requests)) for one in others]
    return replace(topology, nodes=nodes, route=route, others=others)


class TopologyView:
    """What a reader knows of a cluster, by its keys and its events."""

    def __init__(self) -> None:
        self.topology: Topology | None = None
        """None: nothing was ever read. It is kept while the head is silent."""
        self.silent = True
        self._seq = 0

    def read(self, record: RouteRecord | None, nodes: Mapping[str, NodeState]) -> list[Change]:
        """What the keys have now; None: there are none. Returns what that changes."""
        if record is None:
            was, self.silent = self.silent, True
            return [] if was else [Change(ChangeKind.SILENT)]
        now = Topology(record.route, dict(nodes), others=record.others)
        heard = [Change(ChangeKind.HEARD)] if self.silent and self.topology is not None else []
        news = [] if self.topology is None else changes(self.topology, now)
        self.topology, self.silent, self._seq = now, False, record.seq
        return [*heard, *news]

    def hear(self, change: Change) -> list[Change] | None:
        """Returns what an event changes; None: the keys have to be read first, because of events that were not heard."""
        if self.topology is None or self.silent or change.head != self.topology.route.head or change.seq > self._seq + 1:
            return None
        if change.seq <= self._seq:
            return []
        self._seq = change.seq
        if change.kind == ChangeKind.ALIVE:
            return []
        if change.kind == ChangeKind.CLOSED:
            self.silent = True
        self.topology = applied(self.topology, change)
        return [change]


def _departed(node: NodeState, known: Departure | None) -> Change:
    lost = known is not None and not known.graceful
    return Change(ChangeKind.LOST if lost else ChangeKind.LEFT, node=node.name, reason=words(known.reason, _REASON) if known else "")


def _change(before: NodeState | None, now: NodeState) -> ChangeKind | None:
    """None: nothing but the load."""
    if before is None:
        return ChangeKind.JOINING if now.state == JOINING else ChangeKind.JOINED
    if msgspec.structs.replace(before, load=now.load) == now:
        return None
    if before.state == JOINING != now.state:
        return ChangeKind.JOINED
    same = (before.layers, before.experts, before.further) == (now.layers, now.experts, now.further)
    return ChangeKind.CHANGED if same else ChangeKind.MOVED


def _same(before: RouteState, now: RouteState) -> bool:
    """But for its requests."""
    return msgspec.structs.replace(before, requests=now.requests) == now


def _loads(loads: Mapping[str, NodeLoad], requests: RequestLoad | None, further: dict[str, RequestLoad]) -> list[Change]:
    names = list(loads)
    parts = [{name: loads[name] for name in names[i : i + _LOADS]} for i in range(0, len(names), _LOADS)]
    if requests is not None or further:
        parts = parts or [{}]
    return [
        Change(ChangeKind.LOAD, loads=part, requests=None if i else requests, further={} if i else further) for i, part in enumerate(parts)
    ]
