"""Experts on workers: every expert somewhere, memory kept, nothing moved that may stay, replicas where there is room."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.placement.experts import (
    ASKING,
    ATTENDING,
    Asking,
    Table,
    WorkerPlan,
    alone,
    asking,
    away,
    covered,
    dealt,
    divided,
    shared,
    union,
    without,
)
from shoal.placement.profile import LinkSpeed, LinkSpeeds, NodeProfile
from tests.support.nodes import MB

EACH = MB


def model(layers: int = 4, count: int = 8, chosen: int = 2, popularity: tuple[float, ...] = ()) -> ModelCost:
    """The first layer is dense."""
    experts = ExpertsCost(count, chosen, Matrices(EACH, EACH), popularity)
    dense = LayerCost(Matrices(10 * MB, 10 * MB), 1024, attention=4096)
    sparse = LayerCost(Matrices(5 * MB, 5 * MB), 1024, attention=4096, experts=experts)
    return ModelCost((dense, *(sparse,) * (layers - 1)), Matrices(MB, MB), 4096, MB)


def worker(name: str, experts: int = 1000, speed: float = 10e9, disk: float = 0.0) -> NodeProfile:
    """experts: that it has room for."""
    return NodeProfile(name, experts * EACH + MB, speed, 1e12, disk, worker=True)


def bytes_of(plan: WorkerPlan) -> int:
    return sum(map(len, plan.table)) * EACH


@given(
    share=st.integers(0, 16),
    workers=st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1e9, 5e9, 40e9])), min_size=1, max_size=5),
    count=st.integers(2, 24),
)
def test_every_expert_is_somewhere_within_every_memory(share: int, workers: list[tuple[int, float]], count: int) -> None:
    cost = model(count=count)
    elsewhere = away(cost, share / 16)
    nodes = [worker(f"w{i}", room, speed) for i, (room, speed) in enumerate(workers)]
    plans = dealt(cost, elsewhere, nodes, {})
    room = sum(room for room, _ in workers)
    if plans is None:
        assert sum(map(len, elsewhere)) > room - 3 * len(workers), "there is room"
        return
    assert covered(elsewhere, plans)
    for plan in plans:
        assert plan.weight_bytes == bytes_of(plan) <= next(node.memory for node in nodes if node.name == plan.node) - cost.workspace
        assert all(mine <= wanted for mine, wanted in zip(plan.table, elsewhere, strict=True)), "what a stage holds needs no worker"


def test_the_share_of_a_worker_is_that_of_its_speed() -> None:
    cost = model(count=32)
    plans = dealt(cost, away(cost, 1.0), [worker("slow", 24, speed=1e9), worker("fast", 72, speed=3e9)], {})
    assert plans is not None
    assert {plan.node: [len(experts) for experts in plan.table] for plan in plans} == {"slow": [0, 8, 8, 8], "fast": [0, 24, 24, 24]}


def test_there_are_replicas_as_far_as_memory_goes() -> None:
    cost = model()
    elsewhere = away(cost, 1.0)
    plenty = dealt(cost, elsewhere, [worker("a"), worker("b"), worker("c")], {})
    scarce = dealt(cost, elsewhere, [worker("a", 14), worker("b", 14)], {})
    assert plenty is not None and scarce is not None
    assert alone(elsewhere, plenty) == 0
    assert sum(map(bytes_of, plenty)) == 2 * 24 * EACH, "two of each are enough"
    assert alone(elsewhere, scarce) == 24 - 4


@given(
    workers=st.lists(st.tuples(st.integers(1, 30), st.sampled_from([1e9, 5e9, 40e9]), st.sampled_from([0.0, 1e9])), min_size=1, max_size=3),
    count=st.integers(2, 24),
)
def test_workers_with_disks_hold_what_no_memory_has_room_for(workers: list[tuple[int, float, float]], count: int) -> None:
    cost = model(count=count)
    elsewhere = away(cost, 1.0)
    nodes = {f"w{i}": worker(f"w{i}", *one) for i, one in enumerate(workers)}
    plans = dealt(cost, elsewhere, list(nodes.values()), {}, streamed=True)
    if plans is None:
        assert not any(node.disk for node in nodes.values()), "there is room"
        return
    assert covered(elsewhere, plans)
    for plan in plans:
        node = nodes[plan.node]
        assert plan.weight_bytes == bytes_of(plan) and plan.memory == node.memory - cost.workspace
        assert plan.weight_bytes <= plan.memory or (node.disk and plan.streamed == 1 - plan.memory / plan.weight_bytes)


def test_disks_are_used_alike() -> None:
    cost = model(count=32)
    plans = dealt(cost, away(cost, 1.0), [worker("a", 16, disk=1e9), worker("b", 32, disk=1e9)], {}, streamed=True)
    assert plans is not None
    assert [len(plan.table[1]) for plan in plans] == [11, 21]
    assert all(0.48 < plan.streamed < 0.52 for plan in plans)


def test_a_stage_waits_for_the_disk_of_a_worker() -> None:
    cost = model(count=16, chosen=8)
    stage, here = NodeProfile("stage", 1000 * MB, 10e9, 1e12), LinkSpeeds({name: LinkSpeed(1e-6, 100e9) for name in ("w", "stage")})
    seconds: list[float] = []
    for room in (48, 24):
        node = worker("w", room, speed=40e9, disk=1e9)
        plans = dealt(cost, away(cost, 1.0), [node], {}, streamed=True)
        assert plans is not None
        asked = asking(cost, [here.between(stage.name, node.name)])
        seconds.append(divided(cost, 0, 4, stage, [(plans[0], node)], away(cost, 1.0), asked, 1).change)
    assert 0.010 < seconds[1] - seconds[0] < 0.013, "half of eight experts in three layers, at 1 GB/s"


@given(st.integers(1, 4), st.integers(0, 3))
def test_what_a_worker_has_it_keeps(others: int, gone: int) -> None:
    """When one comes and when one goes."""
    cost = model(count=16)
    elsewhere = away(cost, 1.0)
    nodes = [worker(f"w{i}", 20) for i in range(others + 3)]
    before = dealt(cost, elsewhere, nodes, {})
    assert before is not None
    held = {plan.node: plan.table for plan in before}
    again = dealt(cost, elsewhere, nodes, held)
    assert again is not None and {plan.node: plan.table for plan in again} == held
    left = [node for i, node in enumerate(nodes) if i != gone]
    after = dealt(cost, elsewhere, left, held)
    if after is not None:
        assert moved(held, after) <= 2 * sum(map(len, held[f"w{gone}"])) + 3 * len(left)


def moved(held: dict[str, Table], plans: Sequence[WorkerPlan]) -> int:
    """Experts that a worker has to load."""
    nothing: Table = (frozenset[int](),) * 4
    return sum(len(mine - had) for plan in plans for mine, had in zip(plan.table, held.get(plan.node, nothing), strict=True))


def test_the_most_used_experts_stay_with_the_stage() -> None:
    popularity = (0.9, 0.1, 0.3, 0.7)
    cost = model(count=4, popularity=popularity)
    assert away(cost, 0.5) == (frozenset(), *(frozenset({1, 2}),) * 3)
    kept = without(cost, away(cost, 0.5)).layers[1].experts
    assert kept is not None and kept.count == 2
    assert without(cost, away(cost, 1.0)).layers[1].experts is None
    assert without(cost, away(cost, 0.0)) == cost


NEAR = LinkSpeeds({name: LinkSpeed(1e-6, 10e9) for name in ("w", "stage")})
STAGE = NodeProfile("stage", 1000 * MB, 10e9, 1e12)


def changed(cost: ModelCost, share: float, node: NodeProfile, links: LinkSpeeds, rows: int, layers: range, both: bool = False) -> float:
    """By a worker that holds that share alone, and if `both`, what the stage holds, too."""
    absent = away(cost, share)
    plans = dealt(cost, absent, [node], {})
    assert plans is not None
    if both:
        plans = shared(cost, absent, plans, [node], {})
    if not plans:
        return 0.0
    asked = asking(cost, [links.between(STAGE.name, node.name)])
    return divided(cost, layers.start, layers.stop, STAGE, [(plans[0], node)], absent, asked, rows).change


def test_a_stage_waits_for_a_far_worker_and_not_for_one_that_is_faster_than_itself() -> None:
    cost = model(count=16)
    slow = LinkSpeeds({"w": LinkSpeed(0.01)})
    assert abs(changed(cost, 0.25, worker("w", speed=40e9), NEAR, 64, range(4)) - 3 * ATTENDING) < 1e-5
    assert 0.049 <= changed(cost, 0.25, worker("w", speed=40e9), slow, 1, range(4)) < 0.07, (
        "three round trips, if all layers need any of them"
    )
    assert changed(cost, 0.25, worker("w", speed=40e9), slow, 1, range(1)) == 0, "the first layer is dense"


def test_what_both_hold_is_divided_so_that_both_end_at_once() -> None:
    cost = model(layers=2, count=16)
    node = worker("w", speed=10e9)
    whole = 16 * cost.layers[1].experts.touched(64) / 16 * EACH / 10e9  # pyright: ignore[reportOptionalMemberAccess]
    saved = -changed(cost, 0.0, node, NEAR, 64, range(2), both=True)
    question = asking(cost, [NEAR.between(STAGE.name, node.name)])
    assert abs(saved - ((whole - question.seconds - 64 * question.per_row) / 2 - ATTENDING)) < 1e-9
    far = LinkSpeeds({"w": LinkSpeed(1.0)})
    assert changed(cost, 0.0, node, far, 64, range(2), both=True) == 0, "a stage that holds all asks nobody who is too far"


@given(share=st.integers(0, 16), room=st.integers(0, 60), speed=st.sampled_from([1e9, 10e9, 80e9]), rows=st.sampled_from([1, 8, 64]))
def test_to_hold_what_stages_hold_never_takes_longer(share: int, room: int, speed: float, rows: int) -> None:
    cost = model(count=16)
    node = worker("w", room + 3 * share, speed)
    apart = changed(cost, share / 16, node, NEAR, rows, range(4))
    assert changed(cost, share / 16, node, NEAR, rows, range(4), both=True) <= apart + 1e-12


@given(
    share=st.integers(0, 16),
    workers=st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1e9, 5e9, 40e9])), min_size=1, max_size=5),
    count=st.integers(2, 24),
)
def test_what_is_shared_keeps_every_memory_and_all_that_was_dealt(share: int, workers: list[tuple[int, float]], count: int) -> None:
    cost = model(count=count)
    absent = away(cost, share / 16)
    nodes = [worker(f"w{i}", room, speed) for i, (room, speed) in enumerate(workers)]
    if (plans := dealt(cost, absent, nodes, {})) is None:
        return
    dealt_to = {plan.node: plan.table for plan in plans}
    for plan in shared(cost, absent, plans, nodes, {}):
        assert plan.weight_bytes == bytes_of(plan) <= next(node.memory for node in nodes if node.name == plan.node) - cost.workspace
        before = dealt_to.pop(plan.node, (frozenset[int](),) * 4)
        more = [after - had for after, had in zip(plan.table, before, strict=True)]
        assert all(had <= after for had, after in zip(before, plan.table, strict=True))
        assert not any(some & gone for some, gone in zip(more, absent, strict=True)), "others need not have what is dealt"
        assert len({len(some) for some in more[1:]}) == 1 and not more[0], "of each layer with experts as many as of any other"
    assert not dealt_to


def test_workers_share_different_experts_and_the_most_used_ones_first() -> None:
    cost = model(count=8, popularity=(0.1, 0.5, 0.2, 0.3, 0.4, 0.25, 0.15, 0.1))
    absent = away(cost, 0.0)
    plans = shared(cost, absent, (), [worker("a", 6), worker("b", 6), worker("c", 12)], {})
    assert [plan.table[1] for plan in plans] == [{1, 4}, {3, 5}, {2, 6, 7, 1} - {1} | {0}]


def test_asking_counts_the_way_there_and_back() -> None:
    cost = model()
    links = LinkSpeeds({"w": LinkSpeed(0.002, 1e9), "v": LinkSpeed(0.001, 1e6)})
    found = asking(cost, [links.between(STAGE.name, name) for name in ("w", "v")])
    assert abs(found.seconds - ASKING - 0.004) < 1e-3 and found.per_row > 1e-3
    assert asking(cost, []) == Asking(ASKING, 0.0)


def test_tables_are_joined_by_layer() -> None:
    a, b = (frozenset({1}), frozenset[int]()), (frozenset({2}), frozenset({3}))
    assert union([a, b]) == (frozenset({1, 2}), frozenset({3}))
