"""Placements with workers: nodes that hold experts and no layers. What the stages keep is placed as ever, over the other nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from shoal.errors import CapacityError
from shoal.placement import experts
from shoal.placement.cost import ModelCost
from shoal.placement.experts import Table, WorkerPlan
from shoal.placement.moves import Moves, Residency
from shoal.placement.partition import Placement, StagePlan
from shoal.placement.profile import NodeProfile

_SHARES = tuple(step / 16 for step in range(17))
"""Of each layer's experts, elsewhere: those that are tried."""
_WORTH = 1.02
"""Workers hold what stages hold, too, if it makes tokens this many times as fast: they have to load it."""
_GAIN = 1.15
"""A move that is not forced must be this many times as fast."""

Nodes = Sequence[NodeProfile]
Residencies = Mapping[str, Residency]


class ExpertMoves:
    """moves: for the stages; its model is that of all weights."""

    def __init__(self, moves: Moves) -> None:
        self.moves = moves

    def cost(self, placement: Placement) -> ModelCost:
        """Of what its stages hold."""
        return experts.without(self.moves.model, placement.elsewhere) if placement.elsewhere else self.moves.model

    def first(self, nodes: Nodes, residencies: Residencies) -> Placement:
        """Raises CapacityError."""
        return self._placed(nodes, {}, lambda moves, stages: moves.first(stages, residencies))

    def recover(self, old: Placement, nodes: Nodes, residencies: Residencies, tokens: int, beside: bool = False) -> Placement:
        """Raises CapacityError."""
        stages, workers = _parted(nodes)
        if not old.elsewhere and not workers:
            return self.moves.recover(old, stages, residencies, tokens, beside)
        here = {worker.name for worker in workers}
        staying = tuple(plan for plan in old.workers if plan.node in here)
        if old.elsewhere and experts.covered(old.elsewhere, staying):  # nothing of the experts has to move
            moves = replace(self.moves, model=self.cost(old))
            return self._with(moves.recover(old, stages, residencies, tokens, beside), old.elsewhere, staying, nodes)
        held = {plan.node: plan.table for plan in staying}
        return self._placed(nodes, held, lambda moves, stages: moves.recover(old, stages, residencies, tokens, beside))

    def improve(self, now: Placement, nodes: Nodes, residencies: Residencies, tokens: int) -> Placement | None:
        stages, workers = _parted(nodes)
        if not now.elsewhere and not workers:
            return self.moves.improve(now, stages, residencies, tokens)
        here = {worker.name for worker in workers}
        held = {plan.node: plan.table for plan in now.workers if plan.node in here}
        try:
            best = self._placed(nodes, held, lambda moves, stages: moves.recover(now, stages, residencies, tokens, beside=True))
        except CapacityError:
            return None
        staying = tuple(plan for plan in now.workers if plan.node in here)
        safer = experts.alone(now.elsewhere, staying) > experts.alone(best.elsewhere, best.workers) if now.elsewhere else False
        return best if safer or best.tokens_per_second > _GAIN * now.tokens_per_second else None

    def _placed(self, nodes: Nodes, held: Mapping[str, Table], place: Callable[[Moves, Nodes], Placement]) -> Placement:
        """The fastest over how much of the experts is elsewhere. place: the stages, by a model of what they hold."""
        stages, workers = _parted(nodes)
        if not stages:
            raise CapacityError("all nodes were started with --role experts; a model needs at least one that runs layers")
        model, found = self.moves.model, list[Placement]()
        some = any(layer.experts for layer in model.layers)
        failure: CapacityError | None = None
        for share in _SHARES if workers and some else _SHARES[:1]:
            elsewhere = experts.away(model, share)
            plans = experts.dealt(model, elsewhere, workers, held)
            if plans is None:
                plans = experts.dealt(model, elsewhere, workers, held, streamed=True)
            if plans is None:
                break
            try:
                placed = place(replace(self.moves, model=experts.without(model, elsewhere)), stages)
            except CapacityError as error:
                failure = failure or error
                continue
            alone = self._with(placed, elsewhere, plans, nodes) if plans else placed
            more = self._with(placed, elsewhere, experts.shared(model, elsewhere, plans, workers, held), nodes)
            worth = not placed.streams and more.tokens_per_second > _WORTH * alone.tokens_per_second
            found.append(more if worth else alone)
        if not found:
            raise failure or CapacityError("the workers have no memory for any experts")
        held_whole = [p for p in found if not p.streams and not any(worker.streamed for worker in p.workers)]
        return max(held_whole or found, key=lambda p: float(f"{p.tokens_per_second:.3g}"))  # among equals, with most experts at the stages

    def _with(self, placed: Placement, elsewhere: Table, plans: tuple[WorkerPlan, ...], nodes: Nodes) -> Placement:
        """The placement with its workers, and with the time that stages wait for them."""
        by_name = {node.name: node for node in nodes}
        workers = [(plan, by_name[plan.node]) for plan in plans]
        rows = max(1, placed.slots // len(placed.stages))
        stages: list[StagePlan] = []
        for stage in placed.stages:
            node = by_name[stage.node]
            asked = experts.asking(self.moves.model, node, [worker for _, worker in workers], self.moves.links)
            more = experts.change(self.moves.model, stage.first, stage.end, node, workers, elsewhere, asked, rows)
            stages.append(replace(stage, seconds=stage.seconds + more, asking=asked))
        return replace(placed, stages=tuple(stages), workers=plans, elsewhere=elsewhere)


def _parted(nodes: Nodes) -> tuple[list[NodeProfile], list[NodeProfile]]:
    """Those that run layers, and workers."""
    return [node for node in nodes if not node.worker], [node for node in nodes if node.worker]
