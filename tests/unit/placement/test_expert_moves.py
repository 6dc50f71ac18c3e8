"""Placements with workers: what stages keep and workers hold, when they come and go."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.errors import CapacityError, NotEnoughMemory
from shoal.placement import shares
from shoal.placement.expert_moves import ExpertMoves
from shoal.placement.experts import alone, covered
from shoal.placement.moves import Moves
from shoal.placement.partition import Placement
from shoal.placement.profile import Demand, LinkSpeed, LinkSpeeds, NodeProfile
from tests.support.nodes import MB
from tests.unit.placement.test_experts import model, worker

DEMAND = Demand(slots=1, kv_tokens=1024, least_kv_tokens=256)
FAST = LinkSpeeds({name: LinkSpeed(10e-6, 1e9) for name in ("a", "b", "v", "w", "x")})


def planner(links: LinkSpeeds = FAST, chosen: int = 2) -> ExpertMoves:
    return ExpertMoves(Moves(model(count=16, chosen=chosen), DEMAND, links=links))


def stage(name: str = "a", memory: int = 500) -> NodeProfile:
    """memory: MB; all of the model takes about 80."""
    return NodeProfile(name, memory * MB, 10e9, 1e12)


def kept(placement: Placement) -> list[int]:
    return [len(experts) for experts in placement.elsewhere]


def test_without_workers_nothing_is_elsewhere() -> None:
    placement = planner().first([stage()], {})
    assert placement.elsewhere == () and placement.workers == ()


def test_a_worker_takes_what_makes_a_step_faster() -> None:
    """What both have they divide."""
    placement = planner(chosen=12).first([stage(), worker("w")], {})
    assert kept(placement) == [0, 0, 0, 0], "the stage needs no worker"
    assert [len(experts) for experts in placement.workers[0].table] == [0, 16, 16, 16]
    assert placement.stages[0].asking.seconds > 0
    assert placement.tokens_per_second > planner(chosen=12).first([stage()], {}).tokens_per_second


def test_a_worker_behind_a_slow_link_takes_nothing_that_the_stage_has_room_for() -> None:
    slow = LinkSpeeds({"w": LinkSpeed(0.05, 1e6)})
    assert not any(kept(planner(slow).first([stage(), worker("w")], {})))
    tight = planner(slow).first([stage(memory=60), worker("w")], {})
    assert sum(kept(tight)) > 0


def test_a_stage_without_room_for_anything_but_attention() -> None:
    placement = planner().first([stage(memory=30), worker("w", 30), worker("x", 30)], {})
    assert covered(placement.elsewhere, placement.workers)
    assert kept(placement)[1] >= 14


def test_where_not_even_workers_have_room() -> None:
    with pytest.raises(NotEnoughMemory):
        planner().first([stage(memory=30), worker("w", 3)], {})


def test_a_worker_reads_from_disk_what_nobody_has_memory_for() -> None:
    placement = planner().first([stage(memory=30), worker("w", 24, disk=1e9)], {})
    assert covered(placement.elsewhere, placement.workers)
    (plan,) = placement.workers
    assert plan.memory == 24 * MB < plan.weight_bytes and plan.streamed


def test_no_disk_is_used_where_there_is_memory() -> None:
    roomy = planner().first([stage(), worker("w", 4, disk=1e9)], {})
    tight = planner().first([stage(memory=60), worker("w", 30, disk=1e9)], {})
    assert tight.elsewhere
    assert not any(worker.streamed for placement in (roomy, tight) for worker in placement.workers)


def test_whose_disk_is_faster_is_read() -> None:
    """Either the stage's or the worker's."""
    for here, there in ((20e9, 0.1e9), (0.1e9, 20e9)):
        node = NodeProfile("a", 50 * MB, 10e9, 1e12, here)
        placement = planner().first([node, worker("w", 16, disk=there)], {})
        assert placement.stages[0].memory > 0 if here > there else placement.workers[0].streamed > 0


def test_workers_alone_are_refused() -> None:
    with pytest.raises(CapacityError, match="at least one that runs layers"):
        planner().first([worker("w")], {})


def test_a_model_of_few_chosen_experts_is_faster_where_all_are_here() -> None:
    assert not any(kept(planner().first([stage(), worker("w")], {})))


def test_nothing_moves_when_a_replica_is_left() -> None:
    plan = planner(chosen=12)
    nodes = [stage(), worker("w"), worker("x")]
    before = plan.first(nodes, {})
    assert alone(before.elsewhere, before.workers) == 0
    after = plan.recover(before, nodes[:2], {}, 0)
    assert after.elsewhere == before.elsewhere
    assert [worker.node for worker in after.workers] == ["w"]


def test_the_stage_takes_over_what_nobody_has_any_more() -> None:
    plan = planner()
    before = plan.first([stage(), worker("w")], {})
    after = plan.recover(before, [stage()], {}, 0)
    assert not any(kept(after)) and after.workers == ()
    assert plan.cost(after) == plan.moves.model


def test_a_lost_stage_is_replaced_while_the_workers_stay() -> None:
    plan = planner(chosen=12)
    nodes = [stage(), stage("b"), worker("w")]
    before = plan.first(nodes, {})
    left = [node for node in nodes if node.worker or node.name != before.stages[0].node]
    after = plan.recover(before, left, {}, 0)
    assert after.elsewhere == before.elsewhere and after.workers == before.workers
    assert after.stages[0].node != before.stages[0].node


def test_a_worker_that_comes_is_used_for_speed_and_for_safety() -> None:
    plan = planner(chosen=12)
    alone_before = plan.first([stage()], {})
    better = plan.improve(alone_before, [stage(), worker("w")], {}, 0)
    assert better is not None and better.workers
    tight = stage(memory=60)
    before = plan.first([tight, worker("w")], {})
    assert alone(before.elsewhere, before.workers) > 0
    safer = plan.improve(before, [tight, worker("w"), worker("x")], {}, 0)
    assert safer is not None and alone(safer.elsewhere, safer.workers) == 0
    assert plan.improve(safer, [tight, worker("w"), worker("x")], {}, 0) is None


def test_a_stage_that_streams_shares_nothing() -> None:
    """Which of its experts are in memory changes from step to step."""
    streaming = NodeProfile("a", 40 * MB, 10e9, 1e12, disk=2e9)
    placement = planner(chosen=12).first([streaming, worker("w", 20)], {})
    assert placement.streams
    assert all(mine <= gone for plan in placement.workers for mine, gone in zip(plan.table, placement.elsewhere, strict=True))


def test_the_model_of_a_dense_layer_alone_has_no_use_for_workers() -> None:
    dense = ExpertMoves(Moves(model(layers=1), DEMAND, links=FAST))
    placement = dense.first([stage(), worker("w")], {})
    assert placement.workers == ()


def every_share(tried: Callable[[int], Placement | shares.Lacking], guess: int, least: int = 0, fine: bool = True) -> Placement | None:
    """In place of shares.best."""
    found = [placement for step in range(least, shares.STEPS + 1) if isinstance(placement := tried(step), Placement)]
    return max(found, key=shares.rank, default=None)


@given(
    st.lists(st.tuples(st.sampled_from([28, 40, 60, 100]), st.sampled_from([3e9, 10e9])), min_size=1, max_size=2),
    st.lists(st.tuples(st.sampled_from([4, 10, 20, 60]), st.sampled_from([3e9, 10e9])), min_size=1, max_size=3),
    st.integers(1, 16),
    st.sampled_from([0.0, 1e9]),
)
@example([(28, 10e9), (60, 3e9)], [(10, 3e9)], 1, 0.0)  # best with a share between two that are worse than none
def test_few_shares_are_as_good_as_all(stages: list[tuple[int, float]], workers: list[tuple[int, float]], chosen: int, disk: float) -> None:
    nodes = [NodeProfile("ab"[i], memory * MB, speed, 1e12, disk) for i, (memory, speed) in enumerate(stages)]
    nodes += [worker("vwx"[i], room, speed) for i, (room, speed) in enumerate(workers)]
    few, every = list[Placement](), list[Placement]()
    for found, search in ((few, shares.best), (every, every_share)):
        with pytest.MonkeyPatch.context() as patch, suppress(CapacityError):
            patch.setattr(shares, "best", search)
            found.append(planner(chosen=chosen).first(nodes, {}))
    assert [placement.streams for placement in few] == [placement.streams for placement in every]
    for a, b in zip(few, every, strict=True):
        assert a.tokens_per_second >= 0.95 * b.tokens_per_second


def test_stages_that_run_at_once_share_the_workers() -> None:
    """Two stages with a slow worker: while it answers one, the other one waits."""
    slow = planner(chosen=16).first([stage("a", 40), stage("b", 40), worker("w", speed=0.5e9)], {})
    assert slow.workers and slow.working > slow.slowest
    assert slow.tokens_per_second <= 1 / slow.working


def test_a_placement_is_priced_again_for_nodes_as_they_are_now() -> None:
    plan = planner(chosen=12)
    nodes = [stage(), worker("w")]
    now = plan.first(nodes, {})
    assert plan.priced(now, nodes) == now
    tight = [stage(memory=60), worker("w")]
    now = plan.first(tight, {})
    slower = plan.priced(now, [tight[0], worker("w", speed=1e9)])
    assert slower.tokens_per_second < 0.5 * now.tokens_per_second
    pair = [stage("a", 70), stage("b", 70)]
    assert plan.priced(plan.first(pair, {}), pair) == plan.first(pair, {})


def test_a_worker_without_room_for_anything_does_no_harm() -> None:
    for place in (stage(), stage(memory=60)):
        nodes = [place, worker("w", 30), NodeProfile("tiny", 1024, 10e9, 1e12, worker=True)]
        links = LinkSpeeds({name: LinkSpeed(10e-6, 1e9) for name in ("a", "w", "tiny")})
        assert "tiny" not in [plan.node for plan in planner(links).first(nodes, {}).workers]


def test_what_is_safer_is_not_much_slower() -> None:
    """A worker behind a slow link holds no replicas that every step would wait for."""
    far = LinkSpeeds({"a": LinkSpeed(10e-6, 1e9), "w": LinkSpeed(10e-6, 1e9), "x": LinkSpeed(0.05, 1e6)})
    plan, tight = planner(far), stage(memory=60)
    before = plan.first([tight, worker("w")], {})
    assert alone(before.elsewhere, before.workers) > 0
    assert plan.improve(before, [tight, worker("w"), worker("x")], {}, 0) is None


def test_a_stage_that_became_slow_is_left() -> None:
    plan = planner(chosen=12)
    links = [stage("a"), stage("b"), worker("w")]
    before = plan.first(links, {})
    assert len(before.stages) == 1
    slow = [node if node.name != before.stages[0].node else replace(node, bytes_per_second=node.bytes_per_second / 8) for node in links]
    after = plan.improve(before, slow, {}, 0)
    assert after is not None and after.stages[0].node != before.stages[0].node
