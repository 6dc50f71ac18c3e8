"""Which nodes serve which copy of a model, where there are several copies. Pure.

The copies share no node, so that one machine's loss stops one copy only. Nodes are dealt so that the copies are about equally fast and
each has memory for the model; where that does not work for all, fewer copies get nodes. Who has been dealt stays, until a copy has too
little or there is enough for one more. Then all are dealt anew, if the copies that run can go on over the nodes that they keep;
otherwise the copy that lacks nodes gets such as others can do without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shoal.placement.moves import Moves
from shoal.placement.profile import NodeProfile

Dealt = dict[int, int]
"""Copies by node."""


@dataclass(frozen=True)
class CopyNeed:
    """What one copy of a model needs, in bytes. total: over all of its nodes; each: that every node needs besides; layers: of each, which is
    held whole; last: that comes with the last of them. spares: nodes beside those that suffice."""

    total: int = 0
    each: int = 0
    layers: tuple[int, ...] = ()
    last: int = 0
    spares: int = 0

    @classmethod
    def of(cls, moves: Moves) -> CopyNeed:
        """With the least pool of keys and values."""
        model, pool = moves.model, moves.demand.least_kv_tokens
        layers, last = tuple(layer.held_bytes + layer.kv_bytes * pool for layer in model.layers), model.head.size + model.last_bytes
        return cls(sum(layers) + last, model.workspace, layers, last, moves.spares)

    def met(self, nodes: Sequence[NodeProfile]) -> bool:
        nodes = sorted(nodes, key=lambda node: -node.memory)[: max(len(nodes) - self.spares, 1)]
        if not nodes or sum(max(node.memory - self.each, 0) for node in nodes) < self.total:
            return False
        if not self.layers or any(node.worker or node.auto for node in nodes):
            return True
        rooms = sorted(max(node.memory - self.each, 0) for node in nodes)
        return any(self._whole([*rooms[:at], *rooms[at + 1 :]], rooms[at]) for at in reversed(range(len(rooms))))

    def _whole(self, rooms: Iterable[int], final: int) -> bool:
        """Whether the layers fit whole, in their order. final: room for the last ones."""
        at = 0
        for room in rooms:
            while at < len(self.layers) - 1 and self.layers[at] <= room:
                room -= self.layers[at]
                at += 1
        return sum(self.layers[at:]) + self.last <= final


@dataclass
class ReplicaGroups:
    """Of one model."""

    need: CopyNeed
    replica_of: Dealt = field(default_factory=dict[int, int])
    """By node."""
    _running: Dealt = field(default_factory=dict[int, int])

    def arrange(self, replicas: Sequence[int], nodes: Mapping[int, NodeProfile], running: Mapping[int, int] | None = None) -> None:
        """Deals the nodes that are there now.

        replicas: numbers of the copies that there should be, those that matter most first. running: copies by the nodes that run them now,
        and so suffice for them.
        """
        self._running = dict(running or {})
        runs = {node: replica for node, replica in self._running.items() if node in nodes and replica in replicas}
        dealt = {node: replica for node, replica in self.replica_of.items() if node in nodes and replica in replicas}
        served = sum(self._met(replica, dealt, nodes) for replica in replicas)
        for count in range(len(replicas), served, -1):
            if (found := self._better(count, replicas, nodes, {**dealt, **runs})) is not None:
                dealt = found
                break
        for node in sorted(nodes.keys() - dealt.keys()):
            groups = [replica for replica in replicas if replica in dealt.values()] or [*replicas[:1]]
            if groups:
                dealt[node] = min(groups, key=lambda replica: (self._speed(replica, dealt, nodes), replicas.index(replica)))
        self.replica_of = dealt

    def met(self, replica: int, nodes: Mapping[int, NodeProfile]) -> bool:
        """Whether a copy has what it needs of the nodes that were dealt."""
        return self._met(replica, self.replica_of, nodes)

    def _better(self, count: int, replicas: Sequence[int], nodes: Mapping[int, NodeProfile], before: Dealt) -> Dealt | None:
        """So that that many copies are served; None: it is not possible."""
        anew = self._anew(count, replicas, nodes, before)
        if anew is not None and all(self._goes_on(replica, before, anew, nodes) for replica in replicas):
            return anew
        return self._mended(count, replicas, nodes, before) or anew

    def _goes_on(self, replica: int, before: Dealt, after: Dealt, nodes: Mapping[int, NodeProfile]) -> bool:
        """Whether a copy that has what it needs has it all the time while the copies change places."""
        kept = {node: of for node, of in before.items() if of == replica and after.get(node) == replica}
        return not self._met(replica, before, nodes) or self._met(replica, kept, nodes)

    @staticmethod
    def _of(replica: int, dealt: Dealt, nodes: Mapping[int, NodeProfile]) -> list[NodeProfile]:
        return [nodes[node] for node, own in dealt.items() if own == replica]

    def _met(self, replica: int, dealt: Dealt, nodes: Mapping[int, NodeProfile]) -> bool:
        runs = [node for node, of in self._running.items() if of == replica]
        return (bool(runs) and all(dealt.get(node) == replica for node in runs)) or self.need.met(self._of(replica, dealt, nodes))

    def _speed(self, replica: int, dealt: Dealt, nodes: Mapping[int, NodeProfile]) -> float:
        return sum(node.bytes_per_second for node in self._of(replica, dealt, nodes))

    def _mended(self, count: int, replicas: Sequence[int], nodes: Mapping[int, NodeProfile], before: Dealt) -> Dealt | None:
        """Gives copies that lack nodes such as the others can do without."""
        out = dict(before)
        served = [replica for replica in replicas if self._met(replica, out, nodes)]
        for replica in [replica for replica in replicas if replica not in served][: max(count - len(served), 0)]:
            while not self._met(replica, out, nodes):
                largest = sorted((n for n in nodes if out.get(n) != replica), key=lambda n: (out.get(n) in served, -nodes[n].memory, n))
                spare = next((n for n in largest if out.get(n) not in served or self._can_spare(n, out, nodes)), None)
                if spare is None:
                    return None
                out[spare] = replica
            served.append(replica)
        return out

    def _can_spare(self, node: int, dealt: Dealt, nodes: Mapping[int, NodeProfile]) -> bool:
        return self._met(dealt[node], {other: replica for other, replica in dealt.items() if other != node}, nodes)

    def _anew(self, count: int, replicas: Sequence[int], nodes: Mapping[int, NodeProfile], before: Dealt) -> Dealt | None:
        """All nodes, so that as many as possible stay where they are; None: some copy would have too little memory."""
        if (groups := self._dealt(count, nodes)) is None:
            return None
        left, out = [*replicas], dict[int, int]()

        def staying(replica: int, group: Sequence[int]) -> int:
            return sum(before.get(node) == replica for node in group)

        for group in sorted(groups, key=lambda group: -max(staying(replica, group) for replica in replicas)):
            replica = max(left, key=lambda replica: (staying(replica, group), -replicas.index(replica)))
            left.remove(replica)
            out |= dict.fromkeys(group, replica)
        return out

    def _dealt(self, count: int, nodes: Mapping[int, NodeProfile]) -> list[list[int]] | None:
        """So many groups; None: one of them would have too little memory."""
        if count > len(nodes):
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
