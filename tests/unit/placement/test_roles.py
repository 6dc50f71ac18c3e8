"""Who runs layers and who holds experts: never slower than layers for all, as given where it is given, and not changed for a trifle."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import CapacityError
from shoal.placement.cost import ModelCost
from shoal.placement.expert_moves import ExpertMoves
from shoal.placement.experts import covered
from shoal.placement.moves import Moves, Residency
from shoal.placement.partition import Placement
from shoal.placement.profile import Demand, LinkSpeed, LinkSpeeds, NodeProfile
from shoal.placement.roles import _TRIES, GAIN, RoleMoves, assigned
from tests.support.nodes import MB
from tests.unit.placement.test_experts import model

FAST = LinkSpeeds({name: LinkSpeed(10e-6, 1e9) for name in "abcdefgh"})
BIG = 4000


def moves(cost: ModelCost | None = None, slots: int = 1, links: LinkSpeeds = FAST, spares: int = 0, spread: bool = False) -> Moves:
    """Of a model whose layers are nearly all experts, all of them chosen: to have them elsewhere makes a step faster."""
    cost = cost or model(count=16, chosen=16)
    return Moves(cost, Demand(slots, 1024, 256), spread, spares, links)


def node(name: str, memory: int = BIG, speed: float = 1e9, **role: bool) -> NodeProfile:
    """memory: MB; all of the model takes about 80."""
    return NodeProfile(name, memory * MB, speed, 1e12, **(role or {"auto": True}))


def with_disk(name: str, memory: int) -> NodeProfile:
    return NodeProfile(name, memory * MB, 40e9, 1e12, disk=1e9, auto=True)


def layers_for_all(of: Moves, nodes: list[NodeProfile]) -> Placement | None:
    try:
        return ExpertMoves(of).first(assigned(nodes, ()), {})
    except CapacityError:
        return None


def roles(placement: Placement) -> tuple[set[str], set[str]]:
    return {stage.node for stage in placement.stages}, {plan.node for plan in placement.workers}


def held(placement: Placement) -> dict[str, Residency]:
    return {s.node: Residency((range(s.first, s.end),), range(s.first, s.end)) for s in placement.stages}


kinds = st.sampled_from([{"auto": True}, {"auto": True}, {"worker": True}, {"worker": False}])
clusters = st.lists(
    st.tuples(st.sampled_from([20, 35, 50, 90, 500]), st.sampled_from([2e8, 1e9, 5e9]), st.sampled_from([0.0, 2e8]), kinds),
    min_size=1,
    max_size=7,
).map(
    lambda found: [
        NodeProfile("abcdefgh"[i], memory * MB, speed, 1e12, disk, **kind) for i, (memory, speed, disk, kind) in enumerate(found)
    ]
)


@given(clusters, st.sampled_from([1, 4, 8]), st.sampled_from([2, 12]))
def test_a_plan_is_not_slower_than_layers_for_all_and_keeps_the_roles_that_are_given(
    nodes: list[NodeProfile], slots: int, chosen: int
) -> None:
    plan = moves(model(count=16, chosen=chosen), slots)
    pipeline = layers_for_all(plan, nodes)
    try:
        placement = RoleMoves(plan).first(nodes, {})
    except CapacityError:
        assert pipeline is None
        return
    stages, workers = roles(placement)
    assert not stages & workers
    assert not stages & {node.name for node in nodes if node.worker}
    assert not workers & {node.name for node in nodes if not node.worker and not node.auto}
    assert covered(placement.elsewhere, placement.workers)
    if pipeline is not None and placement != pipeline:
        assert placement.tokens_per_second >= GAIN * pipeline.tokens_per_second
    assert RoleMoves(plan).first(nodes, {}) == placement


@given(clusters, st.sampled_from([1, 4]))
def test_moves_come_to_an_end_and_no_node_changes_its_part_for_less_than_the_gain(nodes: list[NodeProfile], slots: int) -> None:
    plan = RoleMoves(moves(slots=slots))
    try:
        now = plan.first(nodes[:1], {})
    except CapacityError:
        return
    for _ in range(6):
        better = plan.improve(now, nodes, held(now), 0)
        if better is None:
            return
        (stages, workers), (other_stages, other_workers) = roles(now), roles(better)
        if stages & other_workers or workers & other_stages:
            assert better.tokens_per_second >= GAIN * now.tokens_per_second
        now = better
    raise AssertionError("it moves for ever")


def test_for_one_stream_a_second_node_reads_at_the_same_time() -> None:
    placement = RoleMoves(moves()).first([node("a"), node("b")], {})
    assert [map(len, found) for found in roles(placement)] and roles(placement)[1] in ({"a"}, {"b"})
    pipeline = layers_for_all(moves(), [node("a"), node("b")])
    assert pipeline is not None and placement.tokens_per_second > 1.3 * pipeline.tokens_per_second


def test_where_experts_are_small_all_run_layers() -> None:
    nodes = [node("a", 60, 40e9), node("b", 60, 40e9)]
    placement = RoleMoves(moves(model(count=16, chosen=2), slots=8)).first(nodes, {})
    assert roles(placement) == ({"a", "b"}, set())


def test_layers_too_large_for_the_small_node_go_to_the_large_one_instead_of_the_disk() -> None:
    """The small one has room for no layer with experts, and for nine experts. Both is needed."""
    large, small = with_disk("a", 70), with_disk("b", 10)
    plan = moves(model(count=16, chosen=2), slots=4)
    pipeline = layers_for_all(plan, [large, small])
    assert pipeline is not None and pipeline.streams
    placement = RoleMoves(plan).first([large, small], {})
    assert not placement.streams and roles(placement) == ({"a"}, {"b"})


def test_a_dense_model_has_layers_alone() -> None:
    nodes = [node("a"), node("b")]
    plan = moves(model(layers=1))
    assert RoleMoves(plan).first(nodes, {}) == layers_for_all(plan, nodes)


def test_where_every_node_is_to_have_layers_none_is_a_worker() -> None:
    assert not RoleMoves(moves(spread=True)).first([node("a"), node("b")], {}).workers


def test_spares_stay_spare() -> None:
    assert not RoleMoves(moves(spares=1)).first([node("a"), node("b")], {}).workers
    placement = RoleMoves(moves(spares=1)).first([node("a"), node("b"), node("c")], {})
    stages, workers = roles(placement)
    assert len(stages) == len(workers) == 1


def test_of_many_nodes_a_few_roles_are_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    priced = list[object]()
    place = ExpertMoves.first
    monkeypatch.setattr(ExpertMoves, "first", lambda *given: (priced.append(given), place(*given))[1])
    nodes = [replace(node("a"), name=f"n{i}", bytes_per_second=1e9 * (1 + i % 3)) for i in range(30)]
    placement = RoleMoves(moves(links=LinkSpeeds())).first(nodes, {})
    assert placement.stages
    assert len(priced) <= _TRIES + 2


def test_of_many_nodes_none_is_asked_that_is_far_away() -> None:
    names = "abcdefgh"
    links = LinkSpeeds({name: LinkSpeed(10e-6 if name != "h" else 0.05, 1e9) for name in names})
    placement = RoleMoves(moves(links=links)).first([node(name) for name in names], {})
    assert placement.workers and "h" not in roles(placement)[0] | roles(placement)[1]


# From one placement to the next


def test_a_node_that_comes_holds_experts_where_that_is_faster() -> None:
    plan = RoleMoves(moves())
    now = plan.first([node("a")], {})
    better = plan.improve(now, [node("a"), node("b")], held(now), 0)
    assert better is not None and sorted(map(len, roles(better))) == [1, 1]
    assert plan.improve(better, [node("a"), node("b")], held(better), 0) is None


def test_a_node_changes_its_role_only_where_both_parts_fit_side_by_side() -> None:
    """Two run layers; with one of them as worker a stream would be faster."""
    pair = [node("a"), node("b")]
    both = moves().with_pool(1024)
    now = ExpertMoves(replace(both, spread=True)).first(assigned(pair, ()), {})
    assert roles(now) == ({"a", "b"}, set())
    better = RoleMoves(both).improve(now, pair, held(now), 0)
    assert better is not None and len(better.workers) == 1
    tight = [replace(one, memory=58 * MB) for one in pair]
    now = ExpertMoves(replace(both, spread=True)).first(assigned(tight, ()), {})
    assert RoleMoves(both).first(tight, {}).workers, "it is faster"
    assert RoleMoves(both).improve(now, tight, held(now), 0) is None


def test_a_gain_below_a_tenth_changes_no_roles() -> None:
    """The slower the link, the less is gained."""
    pair, found = [node("a"), node("b")], set[bool]()
    for micros in range(0, 30000, 500):
        plan = moves(links=LinkSpeeds({"a": LinkSpeed(1e-6, 1e9), "b": LinkSpeed(micros * 1e-6, 1e9)}))
        now = ExpertMoves(plan).first(assigned([pair[0], replace(pair[1], worker=False)], ()), {})
        best = max(ExpertMoves(plan).first(assigned(pair, names), {}).tokens_per_second for names in ({"a"}, {"b"}))
        better = RoleMoves(plan).improve(now, pair, held(now), 0)
        changed = better is not None and bool(better.workers)
        assert changed == (best >= GAIN * now.tokens_per_second)
        found.add(changed)
    assert found == {True, False}


def test_roles_stay_when_a_node_is_lost_that_others_replace() -> None:
    plan = RoleMoves(moves())
    nodes = [node("a"), node("b"), node("c"), node("d")]
    now = plan.first(nodes, {})
    stages, workers = roles(now)
    assert len(workers) > 1
    lost = max(workers)
    after = plan.recover(now, [one for one in nodes if one.name != lost], held(now), 100)
    assert roles(after) == (stages, workers - {lost})


def test_when_the_only_stage_is_lost_a_worker_runs_layers() -> None:
    plan = RoleMoves(moves())
    nodes = [node("a"), node("b")]
    now = plan.first(nodes, {})
    (lost,), (left,) = roles(now)
    after = plan.recover(now, [one for one in nodes if one.name != lost], {}, 100)
    assert roles(after) == ({left}, set())


def test_a_loss_makes_an_idle_node_a_worker_rather_than_a_stage_read_from_disk() -> None:
    plan = RoleMoves(moves(model(count=16, chosen=2), slots=4))
    nodes = [with_disk("a", 70), with_disk("b", 10), with_disk("c", 10)]
    now = plan.first(nodes[:2], {})
    assert roles(now) == ({"a"}, {"b"})
    after = plan.recover(now, [nodes[0], nodes[2]], held(now), 100)
    assert not after.streams and roles(after) == ({"a"}, {"c"})


def test_given_roles_that_cannot_be_are_refused() -> None:
    with pytest.raises(CapacityError, match="at least one that runs layers"):
        RoleMoves(moves()).first([node("a", worker=True)], {})
    with pytest.raises(CapacityError, match="no node has joined"):
        RoleMoves(moves()).first([], {})
