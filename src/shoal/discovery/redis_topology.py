"""What a head keeps in Redis beside its advert: a key for each node, one for the route, and a channel with every change.

    shoal:node:<cluster>:<node>   NodeState
    shoal:route:<cluster>         RouteRecord
    shoal:events:<cluster>        Change, published

Keys and the events that led to them are written in one transaction. They expire with the advert, so that a killed head leaves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec
from redis.asyncio.client import Pipeline

from shoal.discovery.changes import Change, ChangeKind, changes
from shoal.discovery.topology import NodeState, RouteRecord, Topology

NODES, ROUTE, EVENTS = "shoal:node:", "shoal:route:", "shoal:events:"


def node_key(cluster: str, node: str) -> str:
    return f"{NODES}{cluster}:{node}"


class TopologyKeys:
    """The head's end: what is written, and what is left to write. ttl: seconds."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._written: Topology | None = None
        """By the last transaction that is known to have run."""
        self._names: set[str] = set()
        """Of nodes whose keys may be there."""
        self._seq = 0

    def lacks(self, topology: Topology) -> bool:
        return topology != self._written

    def put(self, pipe: Pipeline, cluster: str, topology: Topology, whole: bool) -> None:
        """Adds to a transaction what has changed; whole: all keys. Events whose transaction fails are not sent again under their numbers,
        so that readers notice."""
        found = changes(self._written, topology)
        if whole:
            found.append(Change(ChangeKind.ALIVE))
        before: Mapping[str, NodeState] = {} if self._written is None or whole else self._written.nodes
        for name in self._names - topology.nodes.keys():
            pipe.delete(node_key(cluster, name))
        for name, node in topology.nodes.items():
            if before.get(name) != node:
                self._set(pipe, node_key(cluster, name), msgspec.json.encode(node))
        head = topology.route.head
        numbered = [msgspec.structs.replace(change, head=head, seq=self._seq + i) for i, change in enumerate(found, 1)]
        self._seq += len(numbered)
        record = RouteRecord(self._seq, self._ttl, list(topology.nodes), topology.route, [*topology.others])
        self._set(pipe, ROUTE + cluster, msgspec.json.encode(record))
        for change in numbered:
            _publish(pipe, cluster, change)
        self._names |= topology.nodes.keys()

    def ran(self, topology: Topology) -> None:
        """The transaction did."""
        self._written, self._names = topology, set(topology.nodes)

    def erase(self, pipe: Pipeline, cluster: str) -> None:
        """Adds to a transaction the end of all that was written."""
        if self._written is None:
            return
        self._seq += 1
        pipe.delete(ROUTE + cluster, *(node_key(cluster, name) for name in self._names))
        _publish(pipe, cluster, Change(ChangeKind.CLOSED, head=self._written.route.head, seq=self._seq))

    def _set(self, pipe: Pipeline, key: str, value: bytes) -> None:
        pipe.set(key, value, px=max(round(self._ttl * 1000), 1))


def _publish(pipe: Pipeline, cluster: str, change: Change) -> None:
    cast(Any, pipe).publish(EVENTS + cluster, msgspec.json.encode(change))
