"""Nodes whose part in a route changes from layers to experts and back: what they hold for the old part is freed when no route needs it."""

from __future__ import annotations

import pytest

from shoal.errors import CapacityError
from shoal.membership.events import Joined, Left, RouteFilled, RoutePaused, StageLinked, StageLoaded
from shoal.membership.instructions import Cut, HoldExperts, Instruction, LinkStage, LoadStage, RestStage
from shoal.membership.route_machine import LOADING, SERVING
from shoal.placement.experts import WorkerPlan
from shoal.placement.moves import Moves
from shoal.placement.partition import Placement, StagePlan
from shoal.placement.profile import Demand, LinkSpeed, LinkSpeeds, NodeProfile
from shoal.placement.roles import RoleMoves
from tests.support.membership import OnePipeline, only, reports, tick
from tests.support.nodes import MB
from tests.unit.membership.test_workers import serve
from tests.unit.placement.test_experts import model

A, B, C = 1, 2, 3
LAYERS = 4
EVERY = tuple(frozenset(range(2)) for _ in range(LAYERS))


def laid_out(*stages: tuple[int, int, int], workers: tuple[int, ...] = ()) -> Placement:
    return Placement(
        tuple(StagePlan(f"n{node}", first, end, 1, 1.0, 1.0) for node, first, end in stages),
        64,
        0.0,
        1,
        elsewhere=EVERY if workers else (),
        workers=tuple(WorkerPlan(f"n{node}", EVERY, 8) for node in workers),
    )


PIPELINE = laid_out((A, 0, 2), (B, 2, 4))
WORKER = laid_out((A, 0, 4), workers=(B,))
OTHER_WORKER = laid_out((B, 0, 4), workers=(A,))


class Told:
    """A planner that is told its placements."""

    def __init__(self, *placements: Placement) -> None:
        self.placements = list(placements)

    def next(self) -> Placement:
        if not self.placements:
            raise CapacityError("no placement is left")
        return self.placements.pop(0)

    def first(self, nodes: object, residencies: object) -> Placement:
        return self.next()

    def recover(self, old: object, nodes: object, residencies: object, tokens: object, beside: object = False) -> Placement:
        return self.next()

    def takes(self, placement: object, beside: object = None) -> dict[str, int]:
        return {}

    def improve(self, now: object, nodes: object, residencies: object, tokens: object) -> Placement | None:
        return self.placements.pop(0) if self.placements else None


def joined(node: int, memory: int = 1, **role: bool) -> Joined:
    return Joined(node, node * 11, NodeProfile(f"n{node}", memory * MB, 1e9, 1e12, **role), "host", node, "1")


def cluster(*placements: Placement) -> OnePipeline:
    """The first one serves."""
    c = OnePipeline("1", 3, Told(*placements), silence=8)
    for node in (A, B, C):
        c.handle(joined(node), 0)
    serve(c)
    return c


def rested(out: list[Instruction]) -> list[int]:
    return [order.node for order in out if isinstance(order, RestStage)]


def test_a_stage_that_is_to_hold_experts_runs_on_until_the_new_route_is_linked() -> None:
    c = cluster(PIPELINE, WORKER)
    out = tick(c, 6)
    assert [type(order) for order in out if not reports([order])] == [LoadStage, HoldExperts]
    assert c.pipeline.state == SERVING and c.pipeline.coming is not None and c.pipeline._phase == LOADING
    epoch = c.pipeline.coming.epoch
    for node in (A, B):
        out = c.handle(StageLoaded(node, epoch, 5, "native"), 7)
    assert not rested(out), "steps are in flight"
    out = c.handle(RoutePaused(epoch - 1), 7)
    assert rested(out) == [B] and len(only(out, LinkStage)) == 1
    assert [type(order) for order in out if isinstance(order, RestStage | LinkStage)] == [RestStage, LinkStage]
    c.handle(StageLinked(A, epoch), 7)
    c.handle(RouteFilled(epoch), 7)
    assert c.pipeline.holdings[B].loaded == () and c.pipeline.holdings[B].filled == range(0)
    assert c.pipeline.holdings[A].filled == range(LAYERS)


def test_where_no_route_serves_it_makes_room_before_it_loads() -> None:
    c = cluster(laid_out((A, 0, 2), (C, 2, 4)), laid_out((C, 0, 4), workers=(B,)))
    c.pipeline.holdings[B].loaded = (range(4),)  # from a route before
    out = c.handle(Left(A, "its connection ended"), 3)
    assert only(out, Cut) and rested(out) == [B]
    kinds = [type(order) for order in out if isinstance(order, RestStage | HoldExperts)]
    assert kinds == [RestStage, HoldExperts]
    assert c.pipeline.holdings[B].loaded == ()


def test_a_lost_stage_turns_its_worker_into_a_stage_that_frees_the_experts_first() -> None:
    c = cluster(WORKER, laid_out((B, 0, 4)))
    assert c.pipeline.holdings[B].experts
    out = c.handle(Left(A, "its connection ended"), 1)
    assert rested(out) == [B]
    kinds = [type(order) for order in out if isinstance(order, RestStage | LoadStage)]
    assert kinds == [RestStage, LoadStage]
    serve(c, 2)
    assert not c.pipeline.holdings[B].experts and c.pipeline.holdings[B].filled == range(LAYERS)


def test_two_nodes_exchange_their_parts() -> None:
    c = cluster(WORKER, OTHER_WORKER)
    out = tick(c, 6)
    assert not rested(out)
    out = serve(c, 7)
    assert sorted(rested(out)) == [A, B], "each has something that no route needs any more"
    assert c.pipeline.holdings[A].loaded == () and not c.pipeline.holdings[B].experts


def test_a_stage_that_has_loaded_experts_in_vain_keeps_its_keys_and_values() -> None:
    """The move to another role is given up, because the other node is lost; then all layers are its own."""
    c = cluster(PIPELINE, WORKER, laid_out((B, 0, 4)))
    tick(c, 6)
    assert c.pipeline.coming is not None
    c.handle(StageLoaded(B, c.pipeline.coming.epoch, 5, "native"), 7)
    assert c.pipeline.holdings[B].experts
    out = c.handle(Left(A, "its connection ended"), 8)
    assert not rested(out), "that would free keys and values, too"
    assert c.pipeline.coming is not None and c.pipeline.coming.keep[B] == range(2, 4)
    serve(c, 9)
    assert not c.pipeline.holdings[B].experts


@pytest.mark.parametrize("memory", [58, 500])
def test_nodes_without_a_role_serve_by_turns_of_fortune(memory: int) -> None:
    """The real planner: one comes, another comes, one is lost. memory: MB; all of the model takes about 80."""
    links = LinkSpeeds({f"n{node}": LinkSpeed(10e-6, 1e9) for node in range(1, 10)})
    moves = Moves(model(count=16, chosen=16), Demand(1, 1024, 256), links=links)
    c = OnePipeline("1", 2, RoleMoves(moves), silence=8)
    c.handle(joined(A, memory, auto=True), 0)
    c.handle(joined(B, memory, auto=True), 0)
    serve(c)
    assert c.pipeline.serving is not None and len(c.pipeline.serving.nodes) == len(c.pipeline.serving.workers) == 1
    (lost,) = c.pipeline.serving.nodes
    c.handle(joined(C, memory, auto=True), 1)
    now = 1.0
    while c.pipeline.coming is not None:
        serve(c, now)
        now += 10
        tick(c, now)
    out = c.handle(Left(lost, "its connection ended"), now)
    assert only(out, Cut) and c.pipeline.coming is not None
    serve(c, now)
    assert c.pipeline.serving is not None and lost not in c.pipeline.serving.members
    assert set(c.pipeline.serving.members) <= {A, B, C} - {lost}
