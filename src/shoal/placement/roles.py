"""Which nodes run layers and which hold experts, where that is left to the plan. Pure.

Roles stay as they are, at first layers for all, unless others are a tenth faster, or the stages would have to read weights from disk. Few
nodes are tried in every combination; of many the fastest and the largest run layers, in a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations

from shoal.errors import CapacityError
from shoal.placement.cost import ModelCost
from shoal.placement.expert_moves import ExpertMoves, Nodes, Residencies
from shoal.placement.experts import ATTENDING, asking
from shoal.placement.moves import Moves, Residency, overlap
from shoal.placement.partition import Costs, Placement
from shoal.placement.profile import NodeProfile

GAIN = 1.1
"""Other roles must be this many times as fast."""
_TRY_ALL = 4
"""Up to so many nodes without a role, all combinations are tried."""
_STAGES = (1, 2, 4, 8)
"""Of more nodes, so many run layers."""
_TRIES = 12
"""Most roles that a decision prices."""
_FAR = 2.0
"""Of many nodes, none is tried as a worker whose question takes this many times as long as the quickest one's."""

Names = frozenset[str]
Place = Callable[[ExpertMoves, Nodes], Placement]
"""The placement of nodes whose roles are given; raises CapacityError."""


def assigned(nodes: Nodes, workers: Collection[str]) -> list[NodeProfile]:
    """The nodes with roles: of those without one, the named ones hold experts and the others run layers."""
    return [replace(node, auto=False, worker=node.name in workers) if node.auto else node for node in nodes]


def _kept(placement: Placement, nodes: Nodes) -> Names:
    """Those of its workers whose role the plan decides."""
    return frozenset(plan.node for plan in placement.workers) & frozenset(node.name for node in nodes if node.auto)


class RoleMoves:
    """Placements as those of ExpertMoves, over nodes of which some have no role. use: see there."""

    def __init__(self, moves: Moves, use: Mapping[int, Sequence[int]] | None = None) -> None:
        self._moves = moves
        self._plan, self._rough = ExpertMoves(moves, use=use), ExpertMoves(moves, fine=False, use=use)

    def cost(self, placement: Placement) -> ModelCost:
        """Of what its stages hold."""
        return self._plan.cost(placement)

    def takes(self, placement: Placement, beside: Placement | None = None) -> dict[str, int]:
        """See Moves.takes."""
        return self._plan.takes(placement, beside)

    def first(self, nodes: Nodes, residencies: Residencies) -> Placement:
        """Raises CapacityError."""

        def place(plan: ExpertMoves, roles: Nodes) -> Placement:
            return plan.first(roles, residencies)

        try:
            layers = place(self._plan, assigned(nodes, ()))
        except CapacityError:
            if (other := self._other(nodes, None, Names(), place)) is None:
                raise
            return other
        return self._other(nodes, layers, Names(), place) or layers

    def recover(self, old: Placement, nodes: Nodes, residencies: Residencies, tokens: int, beside: bool = False) -> Placement:
        """Roles change where they would make a stage read from disk that did not. Raises CapacityError."""

        def place(plan: ExpertMoves, roles: Nodes) -> Placement:
            return self._fitting(plan.first(roles, residencies, old), old, nodes, residencies, beside)

        kept = _kept(old, nodes)
        try:
            placed = self._plan.recover(old, assigned(nodes, kept), residencies, tokens, beside)
        except CapacityError:
            if (other := self._other(nodes, None, kept, place, old)) is None:
                raise
            return other
        if not placed.streams or old.streams:
            return placed
        return self._other(nodes, placed, kept, place, old) or placed

    def improve(self, now: Placement, nodes: Nodes, residencies: Residencies, tokens: int) -> Placement | None:
        """A placement that is worth moving to from the running one, if there is one. The weights of both must fit side by side."""

        def place(plan: ExpertMoves, roles: Nodes) -> Placement:
            return self._fitting(plan.first(roles, residencies, now), now, nodes, residencies, beside=True)

        kept = _kept(now, nodes)
        roles = assigned(nodes, kept)
        better = self._plan.improve(now, roles, residencies, tokens)
        running = better or self._plan.priced(now, roles)
        other = self._other(nodes, running, kept, place, now)
        return other if other is not None and self._moves.pays(other, running, residencies, tokens) else better

    def every(self, nodes: Nodes) -> list[Placement]:
        """One for each of the roles that `first` may choose, as far as they can be: layers for all, then those with experts on workers."""
        sharing = ExpertMoves(self._moves, some=True)
        layers = [node for node in assigned(nodes, ()) if not node.worker]
        tries = [(sharing, assigned(nodes, names)) for _, names in self._candidates(nodes, None, None)]
        out: list[Placement] = []
        for plan, roles in ((self._plan, layers), *tries):
            with suppress(CapacityError):
                out.append(plan.first(roles, {}))
        return out

    def _other(self, nodes: Nodes, base: Placement | None, kept: Names, place: Place, old: Placement | None = None) -> Placement | None:
        """The fastest placement with other roles than those that are kept, if it is enough faster than `base`, which has these."""
        least = GAIN * base.tokens_per_second if base is not None else 0.0
        if base is not None and not base.streams:
            nodes = [replace(node, disk=0.0) for node in nodes]  # to read a disk instead is not worth a try
        best: tuple[Placement, Names] | None = None
        for bound, names in self._candidates(nodes, kept, old):
            if bound < max(least, best[0].tokens_per_second if best is not None else 0.0):
                break
            with suppress(CapacityError):
                placed = place(self._rough, assigned(nodes, names))
                if best is None or placed.tokens_per_second > best[0].tokens_per_second:
                    best = placed, names
        if best is None:
            return None
        placed, names = best
        with suppress(CapacityError):
            placed = max(placed, place(self._plan, assigned(nodes, names)), key=lambda one: one.tokens_per_second)
        return placed if placed.tokens_per_second >= least else None

    def _candidates(self, nodes: Nodes, kept: Names | None, old: Placement | None) -> list[tuple[float, Names]]:
        """Names of workers other than those kept, the most promising first, with tokens per second that none of their placements exceeds."""
        moves = self._moves
        if moves.spread or not any(layer.experts for layer in moves.model.layers):
            return []
        bounds = _Bounds(moves)
        found = {
            names for names in _combinations(nodes, kept or Names(), old, moves) if names != kept and _stages(nodes, names) > moves.spares
        }
        priced = [(bounds.of(assigned(nodes, names)), names) for names in found]
        return sorted(priced, key=lambda one: (-one[0], len(one[1]), sorted(one[1])))[:_TRIES]

    def _fitting(self, placed: Placement, old: Placement, nodes: Nodes, residencies: Residencies, beside: bool) -> Placement:
        """Raises CapacityError."""
        if not self._fits(placed, old, nodes, residencies, beside):
            raise CapacityError("the nodes have no room for new parts beside their old ones")
        return placed

    def _fits(self, placed: Placement, old: Placement, nodes: Nodes, residencies: Residencies, beside: bool) -> bool:
        """Whether every node has room for its new part and for what it cannot give up before: all that it runs if the old placement goes on
        serving, else the layers that it keeps, with all experts that they have. Stages that read from disk load when they have made room."""
        here = {node.name: node for node in nodes}
        stages, workers = {stage.node: stage for stage in old.stages}, {plan.node: plan for plan in old.workers}
        before, after = self.cost(old).layers, self.cost(placed).layers
        running = Costs(self.cost(old), self._moves.demand, len(old.stages))
        for plan in placed.workers if beside else ():
            if (stage := stages.get(plan.node)) is not None:
                needed = running.memory(stage.first, stage.end, old.kv_tokens) + plan.weight_bytes
                if stage.memory or needed > here[plan.node].memory:
                    return False
        costs = Costs(self.cost(placed), self._moves.demand, len(placed.stages))
        for stage in placed.stages:
            was = stages.get(stage.node)
            if stage.memory or (was is not None and was.memory):
                continue
            mine = range(stage.first, stage.end)
            needed = costs.memory(stage.first, stage.end, placed.kv_tokens)
            if beside and was is not None:
                needed += sum(before[layer].held_bytes for layer in range(was.first, was.end) if layer not in mine)
            if beside and stage.node in workers:
                needed += workers[stage.node].weight_bytes
            kept = {layer for held in residencies.get(stage.node, Residency()).loaded for layer in overlap(held, mine)}
            needed += sum(max(before[layer].held_bytes - after[layer].held_bytes, 0) for layer in kept)
            if needed > here[stage.node].memory:
                return False
        return True


def _stages(nodes: Nodes, names: Names) -> int:
    """Nodes that may run layers."""
    return sum(not node.worker for node in assigned(nodes, names))


def _combinations(nodes: Nodes, kept: Names, old: Placement | None, moves: Moves) -> Iterator[Names]:
    """Names of workers."""
    free = sorted((node for node in nodes if node.auto), key=lambda node: (-node.bytes_per_second, node.name))
    if len(free) <= _TRY_ALL:
        yield from (frozenset(node.name for node in some) for count in range(len(free) + 1) for some in combinations(free, count))
        return
    yield Names()
    near = _near(free, moves)
    for ranked in (free, sorted(free, key=lambda node: (-node.memory, node.name))):
        yield from (near & frozenset(node.name for node in ranked[count:]) for count in _STAGES if count < len(ranked))
    if old is not None:  # those that have no part yet
        yield kept | (near - {stage.node for stage in old.stages})


def _near(nodes: Sequence[NodeProfile], moves: Moves) -> Names:
    """Those that answer soon: a step waits for the slowest."""
    seconds = {node.name: _asking(moves, node, rows=1) for node in nodes}
    return frozenset(name for name, one in seconds.items() if one <= _FAR * min(seconds.values()))


def _asking(moves: Moves, worker: NodeProfile, rows: int) -> float:
    return asking(moves.model, [moves.links.between("", worker.name)]).of(rows) + ATTENDING


class _Bounds:
    """What is the least that a step takes: all weights that it reads, by the bandwidth of all who may read them, and questions to workers."""

    def __init__(self, moves: Moves) -> None:
        self._moves = moves
        self._sparse = sum(layer.experts is not None for layer in moves.model.layers)
        self._read: dict[int, tuple[float, float]] = {}

    def of(self, nodes: Nodes) -> float:
        """Tokens per second. nodes: with roles."""
        stages = sorted((node.bytes_per_second for node in nodes if not node.worker), reverse=True)
        workers = [node for node in nodes if node.worker]
        counts = range(1, min(len(stages), len(self._moves.model.layers)) + 1)
        return max((self._with(stages[:count], workers) for count in counts), default=0.0)

    def _with(self, stages: Sequence[float], workers: Nodes) -> float:
        """stages: bytes per second."""
        slots, count = self._moves.demand.slots, len(stages)
        rows = max(1, slots // count)
        always, chosen = self._reads(rows)
        together = sum(worker.bytes_per_second for worker in workers)
        asked = self._sparse * min((_asking(self._moves, worker, rows) for worker in workers), default=0.0)
        alone = [  # seconds of all layers on one stage, which asks as long as it takes to run what it has
            always / speed + min(chosen / speed, (chosen + asked * together) / (speed + together)) for speed in stages
        ]
        slowest = max(1 / sum(1 / seconds for seconds in alone), (always + chosen) / (sum(stages) + together))
        return min(slots, rows * count) / count / slowest

    def _reads(self, rows: int) -> tuple[float, float]:
        """Bytes that a step reads in any case, and of experts."""
        if rows not in self._read:
            model, context = self._moves.model, self._moves.demand.context
            always = model.head.size + sum(layer.always.size + layer.kv_read(context) * rows for layer in model.layers)
            chosen = sum(layer.experts.touched(rows) * layer.experts.each.size for layer in model.layers if layer.experts)
            self._read[rows] = always, chosen
        return self._read[rows]
