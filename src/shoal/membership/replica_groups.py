"""Which nodes serve which copy of a model, where there are several copies. Pure.

The copies share no node, so that one machine's loss stops one copy only. Nodes are dealt so that the copies are about equally fast and
each has memory for the model; where that does not work for all, fewer copies get nodes. Who has been dealt stays, until a copy has too
little or there is enough for one more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shoal.placement.profile import NodeProfile


@dataclass(frozen=True)
class CopyNeed:
    """What one copy of a model needs. total: bytes, over all of its nodes; each: bytes that every node needs besides."""

    total: int = 0
    each: int = 0

    def met(self, nodes: Sequence[NodeProfile]) -> bool:
        return bool(nodes) and sum(max(node.memory - self.each, 0) for node in nodes) >= self.total


@dataclass
class ReplicaGroups:
    """Of one model."""

    need: CopyNeed
    replica_of: dict[int, int] = field(default_factory=dict[int, int])
    """By node."""

    def arrange(self, replicas: Sequence[int], nodes: Mapping[int, NodeProfile]) -> None:
        """Deals the nodes that are there now. replicas: numbers of the copies that there should be, those that matter most first."""
        for node in [n for n, replica in self.replica_of.items() if n not in nodes or replica not in replicas]:
            del self.replica_of[node]
        possible = next((n for n in range(len(replicas), 0, -1) if self._dealt(n, nodes) is not None), 0)
        served = [replica for replica in replicas if self.need.met(self._of(replica, nodes))]
        if len(served) < possible:
            self._deal(replicas, nodes, possible)
        for node in sorted(nodes.keys() - self.replica_of.keys()):
            if groups := [replica for replica in replicas if replica in self.replica_of.values()] or [*replicas[:1]]:
                self.replica_of[node] = min(groups, key=lambda replica: (self._speed(replica, nodes), replicas.index(replica)))

    def _of(self, replica: int, nodes: Mapping[int, NodeProfile]) -> list[NodeProfile]:
        return [nodes[node] for node, own in self.replica_of.items() if own == replica]

    def _speed(self, replica: int, nodes: Mapping[int, NodeProfile]) -> float:
        return sum(node.bytes_per_second for node in self._of(replica, nodes))

    def _deal(self, replicas: Sequence[int], nodes: Mapping[int, NodeProfile], count: int) -> None:
        """Anew, so that as many nodes as possible stay where they are."""
        left, before = [*replicas], dict(self.replica_of)
        self.replica_of = {}
        groups = self._dealt(count, nodes) or []
        for group in sorted(groups, key=lambda group: -max(sum(before.get(n) == replica for n in group) for replica in replicas)):
            replica = max(left, key=lambda replica: (sum(before.get(n) == replica for n in group), -replicas.index(replica)))
            left.remove(replica)
            self.replica_of |= dict.fromkeys(group, replica)

    def _dealt(self, count: int, nodes: Mapping[int, NodeProfile]) -> list[list[int]] | None:
        """That many groups; None: one of them would have too little memory."""
        if count == 0 or count > len(nodes):
            return None
        speeds = {n: node.bytes_per_second for n, node in nodes.items()}
        memories = {n: float(node.memory) for n, node in nodes.items()}
        for weights in (speeds, memories):
            groups: list[list[int]] = [[] for _ in range(count)]
            for node in sorted(nodes, key=lambda n: (-weights[n], -memories[n], n)):
                min(groups, key=lambda group: sum(weights[n] for n in group)).append(node)
            if all(self.need.met([nodes[n] for n in group]) for group in groups):
                return groups
        return None
