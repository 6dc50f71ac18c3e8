"""Placements with workers: nodes that hold experts and no layers. What the stages keep is placed as ever, over the other nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from shoal.errors import CapacityError
from shoal.placement import experts, shares
from shoal.placement.cost import ModelCost
from shoal.placement.experts import Table, WorkerPlan
from shoal.placement.moves import Moves, Residency, now_bounds
from shoal.placement.partition import Costs, Placement, StagePlan, placed
from shoal.placement.popularity import popular
from shoal.placement.profile import NodeProfile

_WORTH = 1.02
"""Workers hold what stages hold, too, if it makes tokens this many times as fast: they have to load it."""
_GAIN = 1.15
"""A move that is not forced must be this many times as fast."""
_SAFER = 0.5
"""If more experts are there twice after it: without a replica, a worker that is lost ends the route."""

Nodes = Sequence[NodeProfile]
Residencies = Mapping[str, Residency]


class ExpertMoves:
    """moves: for the stages; its model is that of all weights. fine: see shares.best. some: whether workers must hold something. use: rows that
    each expert has computed, by layer; may grow. It decides which experts are elsewhere, not how many: their prices are those of even use."""

    def __init__(self, moves: Moves, fine: bool = True, some: bool = False, use: Mapping[int, Sequence[int]] | None = None) -> None:
        self.moves, self._fine, self._some = moves, fine, some
        self._use: Mapping[int, Sequence[int]] = {} if use is None else use

    def cost(self, placement: Placement) -> ModelCost:
        """Of what its stages hold."""
        return experts.without(self.moves.model, placement.elsewhere) if placement.elsewhere else self.moves.model

    def takes(self, placement: Placement, beside: Placement | None = None) -> dict[str, int]:
        """See Moves.takes."""
        out = replace(self.moves, model=self.cost(placement)).takes(placement, beside)
        for plan in (*placement.workers, *(beside.workers if beside is not None else ())):
            out[plan.node] = max(out.get(plan.node, 0), self.moves.model.workspace + (plan.memory or plan.weight_bytes))
        return out

    def first(self, nodes: Nodes, residencies: Residencies, old: Placement | None = None) -> Placement:
        """Raises CapacityError. old: with which keys and values are laid out; the pool keeps its size if it can, and workers what they hold."""

        def place(moves: Moves, stages: Nodes) -> Placement:
            if old is not None:
                with suppress(CapacityError):
                    return moves.with_pool(old.kv_tokens).first(stages, residencies)
            return moves.first(stages, residencies)

        return self._placed(nodes, {plan.node: plan.table for plan in old.workers} if old is not None else {}, place)

    def priced(self, placement: Placement, nodes: Nodes) -> Placement:
        """The same, as its nodes are known now."""
        here = {node.name: node for node in nodes}
        costs = Costs(self.cost(placement), self.moves.demand, len(placement.stages))
        order = [here[stage.node] for stage in placement.stages]
        again = placed(order, now_bounds(placement), costs, self.moves.links, self.moves.demand, placement.kv_tokens)
        workers = tuple(plan for plan in placement.workers if plan.node in here)
        return self._with(again, placement.elsewhere, workers, nodes) if placement.elsewhere else again

    def recover(self, old: Placement, nodes: Nodes, residencies: Residencies, tokens: int, beside: bool = False) -> Placement:
        """Raises CapacityError."""
        stages, workers = _parted(nodes)
        if not old.elsewhere and not workers:
            return self.moves.recover(old, stages, residencies, tokens, beside)
        here = {worker.name: worker for worker in workers}
        staying = tuple(plan for plan in old.workers if plan.node in here and self._stays(plan, here[plan.node]))
        if old.elsewhere and experts.covered(old.elsewhere, staying):  # nothing of the experts has to move
            moves = replace(self.moves, model=self.cost(old))
            return self._with(moves.recover(old, stages, residencies, tokens, beside), old.elsewhere, staying, nodes)
        held = {plan.node: plan.table for plan in old.workers if plan.node in here}
        return self._placed(nodes, held, lambda moves, stages: moves.recover(old, stages, residencies, tokens, beside))

    def _stays(self, plan: WorkerPlan, worker: NodeProfile) -> bool:
        """Whether the worker still has the memory that the plan counts on."""
        return experts.capacity(self.moves.model, worker) >= min(plan.memory, plan.weight_bytes)

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
        speed = self.priced(now, nodes).tokens_per_second
        safer = bool(best.workers) and experts.alone(now.elsewhere, staying) > experts.alone(best.elsewhere, best.workers)
        return best if best.tokens_per_second > (_SAFER if safer else _GAIN) * speed else None

    def _placed(self, nodes: Nodes, held: Mapping[str, Table], place: Callable[[Moves, Nodes], Placement]) -> Placement:
        """The best over how much of the experts is elsewhere. place: the stages, by a model of what they hold."""
        stages, workers = _parted(nodes)
        if workers and not stages:
            raise CapacityError("all nodes were started with --role experts; a model needs at least one that runs layers")
        model, failures = self.moves.model, list[CapacityError]()
        ranked = popular(model, self._use) if workers else model

        def tried(step: int) -> Placement | shares.Lacking:
            elsewhere = experts.away(ranked, step / shares.STEPS)
            plans = experts.dealt(model, elsewhere, workers, held)
            if plans is None and (plans := experts.dealt(model, elsewhere, workers, held, streamed=True)) is None:
                return shares.Lacking.WORKERS
            try:
                found = place(replace(self.moves, model=experts.without(model, elsewhere)), stages)
            except CapacityError as error:
                failures.append(error)
                return shares.Lacking.STAGES
            apart = self._with(found, elsewhere, plans, nodes) if plans else found
            if found.streams or not workers:
                return apart
            both = self._with(found, elsewhere, experts.shared(ranked, elsewhere, plans, workers, held), nodes)
            return both if both.tokens_per_second > _WORTH * apart.tokens_per_second else apart

        share = experts.balance(model, stages, workers, self.moves.links, self.moves.demand.slots) if workers else None
        if share is None and self._some:
            raise CapacityError("there are no workers, or no experts for them")
        best = tried(0) if share is None else shares.best(tried, round(share * shares.STEPS), int(self._some), self._fine)
        if isinstance(best, Placement):
            return best
        raise failures[0] if failures else CapacityError("the workers have no memory for any experts")

    def _with(self, stages: Placement, elsewhere: Table, plans: tuple[WorkerPlan, ...], nodes: Nodes) -> Placement:
        """The placement with its workers, and with the time that stages wait for them."""
        by_name = {node.name: node for node in nodes}
        workers = [(plan, by_name[plan.node]) for plan in plans]
        rows = max(1, stages.slots // len(stages.stages))
        model, found, working = self.moves.model, list[StagePlan](), 0.0
        for stage in stages.stages:
            node = by_name[stage.node]
            asked = experts.asking(model, [self.moves.links.between(node.name, worker.name) for _, worker in workers])
            divided = experts.divided(model, stage.first, stage.end, node, workers, elsewhere, asked, rows)
            found.append(replace(stage, seconds=stage.seconds + divided.change, asking=asked))
            working += divided.working
        return replace(stages, stages=tuple(found), workers=plans, elsewhere=elsewhere, working=working)


def _parted(nodes: Nodes) -> tuple[list[NodeProfile], list[NodeProfile]]:
    """Those that run layers, and workers."""
    return [node for node in nodes if not node.worker], [node for node in nodes if node.worker]
