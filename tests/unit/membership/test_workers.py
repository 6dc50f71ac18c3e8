"""Nodes that hold experts alone: they load with the stages, and a route goes on without those whose experts others have."""

from __future__ import annotations

from shoal.membership.events import (
    DrainAsked,
    Heard,
    Joined,
    Left,
    MemoryCapped,
    RouteFilled,
    RoutePaused,
    StageFailed,
    StageLinked,
    StageLoaded,
    Tick,
)
from shoal.membership.instructions import Cut, Dismiss, HoldExperts, Instruction, LinkStage, LoadStage
from shoal.membership.route_machine import LINKING, LOADING, SERVING
from shoal.placement.expert_moves import ExpertMoves
from shoal.placement.moves import Moves
from shoal.placement.profile import Demand, LinkSpeed, LinkSpeeds, NodeProfile
from tests.support.membership import OnePipeline, only, reports
from tests.support.nodes import MB
from tests.unit.placement.test_experts import model

STAGE, FIRST, SECOND, THIRD = 1, 2, 3, 4
TIGHT = 62
"""MB: not all experts fit."""
FAST = LinkSpeeds({f"n{node}": LinkSpeed(10e-6, 1e9) for node in range(1, 10)})


def cluster(stage_memory: int, degrade: bool = False) -> OnePipeline:
    """A stage and two workers, asked to load. stage_memory: MB; all of the model takes about 80, without experts 30."""
    moves = Moves(model(count=16, chosen=12), Demand(1, 1024, 256), links=FAST)
    c = OnePipeline("1", 3, ExpertMoves(moves), silence=8, degrade=degrade)
    c.handle(joined(STAGE, stage_memory, worker=False), 0)
    c.handle(joined(FIRST), 0)
    c.handle(joined(SECOND), 0)
    assert c.pipeline.state == LOADING
    return c


def joined(node: int, memory: int = 500, worker: bool = True, name: str = "") -> Joined:
    return Joined(node, node * 11, NodeProfile(name or f"n{node}", memory * MB, 10e9, 1e12, worker=worker), "host", node, "1")


def serve(c: OnePipeline, now: float = 0) -> list[Instruction]:
    """Whatever is coming serves."""
    assert c.pipeline.coming is not None
    epoch, members, nodes = c.pipeline.coming.epoch, c.pipeline.coming.members, c.pipeline.coming.nodes
    out = [i for node in members for i in c.handle(StageLoaded(node, epoch, 5, "native"), now)]
    if c.pipeline.serving is not None:
        out += c.handle(RoutePaused(c.pipeline.serving.epoch), now)
    out += [i for node in nodes for i in c.handle(StageLinked(node, epoch), now)]
    out += c.handle(RouteFilled(epoch), now)
    assert c.pipeline.state == SERVING and c.pipeline.coming is None
    return out


def serving(stage_memory: int = 500) -> OnePipeline:
    c = cluster(stage_memory)
    serve(c)
    return c


def test_a_stage_is_told_who_holds_what_it_does_not() -> None:
    c = cluster(500)
    assert c.pipeline.coming is not None
    orders: list[Instruction] = [*c.pipeline.coming.load()]
    (stage,) = only(orders, LoadStage)
    assert isinstance(stage, LoadStage) and stage.node == STAGE
    held = {order.node: order.table for order in orders if isinstance(order, HoldExperts)}
    assert dict(stage.workers) == held and held.keys() == {FIRST, SECOND}


def test_stages_are_linked_when_the_workers_have_loaded() -> None:
    c = cluster(500)
    assert c.pipeline.coming is not None
    epoch = c.pipeline.coming.epoch
    assert not c.handle(StageLoaded(STAGE, epoch, 5, "native"), 0)
    assert not c.handle(StageLoaded(FIRST, epoch, 5, "native"), 0)
    assert "not yet n3" in c.pipeline.progress
    (link,) = only(c.handle(StageLoaded(SECOND, epoch, 5, "native"), 0), LinkStage)
    assert isinstance(link, LinkStage) and link.node == STAGE and link.next is None
    assert c.pipeline._phase == LINKING


def test_a_route_goes_on_without_a_worker_whose_experts_another_one_has() -> None:
    c = serving()
    out = c.handle(Left(SECOND, "its connection ended"), 1)
    assert "other workers have its experts; streams go on" in reports(out)
    assert not only(out, Cut) and c.pipeline.state == SERVING


def test_it_does_not_go_on_without_the_last_one_that_has_them() -> None:
    c = serving(TIGHT)
    c.handle(Left(SECOND, "its connection ended"), 1)
    out = c.handle(Left(FIRST, "its connection ended"), 2)
    assert only(out, Cut), "the first loss is not forgotten"
    assert c.pipeline.serving is None and c.pipeline.coming is None
    c.handle(joined(THIRD), 3)
    assert c.pipeline.coming is not None and set(c.pipeline.coming.workers) == {THIRD}
    serve(c, 3)


def test_it_goes_on_without_any_where_the_stage_has_all_experts_too() -> None:
    c = serving()
    for at, worker in enumerate((SECOND, FIRST)):
        out = c.handle(Left(worker, "its connection ended"), at)
        assert not only(out, Cut) and c.pipeline.state == SERVING
    c.handle(Left(STAGE, "its connection ended"), 3)
    assert c.pipeline.serving is None


def test_where_it_may_it_serves_on_without_experts_until_others_have_them() -> None:
    c = cluster(TIGHT, degrade=True)
    serve(c)
    c.handle(Left(SECOND, "its connection ended"), 1)
    out = c.handle(Left(FIRST, "its connection ended"), 2)
    assert "streams go on without experts that nobody has" in reports(out)
    assert not only(out, Cut) and c.pipeline.state == SERVING
    out = c.handle(Tick(), 3)
    assert "nobody can take over the lost experts" in str(reports(out)) and c.pipeline.state == SERVING
    assert not c.handle(Tick(), 4), "it is said once"
    c.handle(joined(THIRD), 5)
    c.handle(Heard(STAGE), 8)
    c.handle(Tick(), 9)
    assert c.pipeline.coming is not None and set(c.pipeline.coming.workers) == {THIRD} and c.pipeline.serving is not None
    serve(c, 10)
    assert c.pipeline.serving.goes_on(c.members)
    c.handle(Left(STAGE, "its connection ended"), 11)
    assert c.pipeline.serving is None, "without its stage it does not"


def test_one_that_comes_back_is_given_experts_again() -> None:
    c = serving(TIGHT)
    c.handle(Left(SECOND, "nothing was heard from it"), 1)
    c.handle(joined(THIRD, name="n3"), 20)
    for node in (STAGE, FIRST, THIRD):
        c.handle(Heard(node), 30)
    c.handle(Tick(), 30)
    assert c.pipeline.coming is not None and set(c.pipeline.coming.workers) == {FIRST, THIRD}
    serve(c, 31)


def test_a_worker_that_cannot_load_is_left_out() -> None:
    c = cluster(500)
    assert c.pipeline.coming is not None
    c.handle(StageFailed(FIRST, c.pipeline.coming.epoch, "not enough memory"), 0)
    assert c.pipeline.coming is None and "n2 failed: not enough memory" in c.pipeline.why
    c.handle(joined(THIRD), 1)
    assert c.pipeline.coming is not None and set(c.pipeline.coming.workers) == {SECOND, THIRD}
    serve(c, 2)


def test_a_worker_leaves_when_a_plan_without_it_serves() -> None:
    c = serving()
    out = c.handle(DrainAsked(SECOND), 10)
    assert not only(out, Dismiss) and c.pipeline.coming is not None and SECOND not in c.pipeline.coming.members
    out = serve(c, 11)
    assert [order.node for order in only(out, Dismiss) if isinstance(order, Dismiss)] == [SECOND]


def test_a_worker_whose_memory_is_limited_holds_no_more_than_that() -> None:
    c = serving()
    assert c.pipeline.serving is not None
    before = {plan.node: plan.weight_bytes for plan in c.pipeline.serving.placement.workers}
    assert before["n3"] > 5 * MB
    planned = c.pipeline.capped(c.pipeline.serving, SECOND, 5 * MB, 10)()
    c.handle(MemoryCapped(SECOND, 5 * MB), 10)
    assert c.pipeline.coming is not None and c.pipeline.coming.placement == planned, "what was foretold"
    assert all(plan.weight_bytes <= 5 * MB for plan in planned.workers if plan.node == "n3")
    serve(c, 11)


def test_a_limit_above_what_a_worker_holds_moves_nothing() -> None:
    c = serving()
    assert c.pipeline.serving is not None
    held = next(plan.weight_bytes for plan in c.pipeline.serving.placement.workers if plan.node == "n3")
    out = c.handle(MemoryCapped(SECOND, held + 50 * MB), 10)
    assert c.pipeline.coming is None and "n3 may use at most" in reports(out)


def test_without_workers_a_stage_without_room_waits_and_says_what_is_missing() -> None:
    c = serving(stage_memory=50)
    c.handle(Left(SECOND, "its connection ended"), 1)
    c.handle(Left(FIRST, "its connection ended"), 2)
    assert c.pipeline.coming is None and c.pipeline.serving is None
    assert "needs" in c.pipeline.why or "memory" in c.pipeline.why


def test_keys_and_values_stay_when_experts_move() -> None:
    c = serving(TIGHT)
    c.handle(DrainAsked(SECOND), 1)
    assert c.pipeline.coming is not None and c.pipeline.coming.workers == (FIRST,)
    assert c.pipeline.coming.keep[STAGE] == range(4), "all layers of the stage"
