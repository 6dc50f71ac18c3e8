"""Where more copies of models would run, as the cluster deals its nodes. Pure: asking changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shoal.membership.replica_groups import CopyNeed, ReplicaGroups
from shoal.pipeline_id import PipelineId
from shoal.placement.profile import NodeProfile

_MOST_NODES = 64
"""That one copy is thought to be spread over."""


@dataclass(frozen=True)
class CopyThere:
    """A copy that the cluster has. placed: whether it has its share of the nodes' memory. takes: bytes by node. parts: nodes that have a part
    in its routes."""

    id: PipelineId
    placed: bool
    takes: Mapping[int, int]
    parts: frozenset[int] = frozenset()


@dataclass(frozen=True)
class CopyTerms:
    """Of one model. pinned: names of the nodes that may serve it; empty: all. dealt: the nodes of its copies."""

    need: CopyNeed
    pinned: frozenset[str] = frozenset()
    dealt: Mapping[int, int] = field(default_factory=dict[int, int])


@dataclass(frozen=True)
class CopyRoom:
    """nodes: names of those that a copy would get; none: it fits nowhere. missing: bytes that it lacks; 0: not known."""

    nodes: tuple[str, ...] = ()
    missing: int = 0


@dataclass
class _Share:
    """What one model has of the nodes."""

    terms: CopyTerms
    replicas: list[int]
    running: dict[int, int]
    dealt: dict[int, int]


class ReplicaRoom:
    def __init__(self, nodes: Mapping[int, NodeProfile], copies: Sequence[CopyThere], models: Mapping[str, CopyTerms]) -> None:
        """nodes: those that may be given a part now, with all of their memory. models: at least those of the copies."""
        self.models = models
        self._nodes, self._copies = nodes, copies

    def more(self, models: Sequence[str], gone: Collection[PipelineId] = ()) -> list[CopyRoom]:
        """For one more copy of each model, in order: what the earlier take, the later do not have. gone: copies that count as not there."""
        left = [copy for copy in self._copies if copy.id not in gone]
        taken: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for copy in left:
            for node, size in copy.takes.items():
                taken[node][copy.id.model] += size
        shares = {model: self._share(model, left) for model in {*models, *(copy.id.model for copy in left)}}
        for copy in left:
            if not copy.placed:
                self._place(shares[copy.id.model], copy.id, taken)
        found = [(shares[model], self._added(model, shares[model], taken)) for model in models]
        return [one if isinstance(one, CopyRoom) else self._of(one, share) for share, one in found]

    def _of(self, replica: int, share: _Share) -> CopyRoom:
        """Once all are placed: an earlier copy may have given nodes to a later one."""
        return CopyRoom(tuple(self._nodes[node].name for node in sorted(share.dealt) if share.dealt[node] == replica))

    def nodes_needed(self, model: str) -> int:
        """Nodes like the largest one that a copy takes; 1 where there is no node, 0 if no number of them suffices."""
        terms = self.models[model]
        largest = max(self._allowed(terms).values(), key=lambda node: node.memory, default=None)
        if largest is None:
            return 1
        counts = range(1, _MOST_NODES + 1)
        return next((count + terms.need.spares for count in counts if terms.need.met([largest] * (count + terms.need.spares))), 0)

    def _share(self, model: str, copies: Iterable[CopyThere]) -> _Share:
        own = sorted((copy for copy in copies if copy.id.model == model), key=lambda copy: (not copy.placed, copy.id))
        terms, numbers = self.models[model], [copy.id.replica for copy in own]
        running = {node: copy.id.replica for copy in own for node in copy.parts}
        dealt = {node: replica for node, replica in terms.dealt.items() if replica in numbers}
        return _Share(terms, [copy.id.replica for copy in own if copy.placed], running, dealt)

    def _allowed(self, terms: CopyTerms) -> dict[int, NodeProfile]:
        return {n: node for n, node in self._nodes.items() if not terms.pinned or node.name in terms.pinned}

    def _free(self, model: str, terms: CopyTerms, taken: Mapping[int, Mapping[str, int]]) -> dict[int, NodeProfile]:
        """Nodes with the memory that other models leave."""

        def others(node: int) -> int:
            return sum(size for of, size in taken[node].items() if of != model)

        return {n: replace(node, memory=max(node.memory - others(n), 0)) for n, node in self._allowed(terms).items()}

    def _added(self, model: str, share: _Share, taken: dict[int, dict[str, int]]) -> int | CopyRoom:
        """The copy's number, or what it lacks."""
        numbers = {copy.id.replica for copy in self._copies if copy.id.model == model} | {*share.replicas}
        id = PipelineId(model, max(numbers, default=0) + 1)
        if self._place(share, id, taken):
            return id.replica
        need, free = share.terms.need, self._free(model, share.terms, taken)
        spare = [node.memory - need.each for n, node in free.items() if n not in share.running and n not in share.dealt]
        lacks = need.total + (0 if spare else need.each) - sum(max(room, 0) for room in spare)
        return CopyRoom(missing=max(lacks, 0))

    def _place(self, share: _Share, id: PipelineId, taken: dict[int, dict[str, int]]) -> bool:
        """Whether it finds nodes, whose memory is taken from then on; not if some copy of the model would have too little."""
        free = self._free(id.model, share.terms, taken)
        groups = ReplicaGroups(share.terms.need, dict(share.dealt))
        replicas = [*share.replicas, id.replica]
        groups.arrange(replicas, free, share.running)
        if not all(groups.met(replica, free) for replica in replicas):
            return False
        share.replicas, share.dealt = replicas, groups.replica_of
        share.running = {node: replica for node, replica in share.running.items() if groups.replica_of.get(node) == replica}
        mine = sorted(node for node, replica in groups.replica_of.items() if replica == id.replica)
        need = share.terms.need
        rooms = {node: max(free[node].memory - need.each, 0) for node in mine}
        whole = max(sum(rooms.values()), 1)
        for node, room in rooms.items():
            taken[node][id.model] = max(taken[node][id.model], need.each + need.total * room // whole)
        return True
