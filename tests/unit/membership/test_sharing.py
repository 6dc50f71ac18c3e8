"""Several pipelines over the same nodes: what each may take, who makes room for whom, and what is told about it."""

from __future__ import annotations

import pytest

from shoal.membership.events import DrainAsked, Joined, Left, MemoryCapped, RouteBroken, StageLoaded
from shoal.membership.instructions import Dismiss, DropModel, LoadStage, Report, RestStage
from shoal.membership.route_machine import SERVING, WAITING
from shoal.membership.state import _EPOCHS, Cluster
from shoal.observed.event import EventKind
from shoal.pipeline_id import PipelineId
from shoal.placement.moves import Moves
from shoal.placement.profile import Demand, NodeProfile
from tests.support.membership import reports
from tests.support.nodes import MB, model
from tests.support.shared_fleet import SharedFleet, profiles

DEMAND = Demand(slots=8, kv_tokens=256, least_kv_tokens=256)
LARGE, SMALL = PipelineId("large"), PipelineId("small")
"""They take 42 and 21.5 MB on one node; a layer takes 10.25, a node 1 besides."""
LAYERS = {"large": 4, "small": 2}


def fleet(**memories: int) -> SharedFleet:
    """memories: MB of each node, by name. All nodes have joined."""
    f = SharedFleet(Cluster("1", silence=8), profiles({name: memory * MB for name, memory in memories.items()}))
    for slot in range(len(f.slots)):
        f.start(slot)
    return f


def opened(
    f: SharedFleet,
    *ids: PipelineId,
    spread: bool = False,
    spares: int = 0,
    pinned: frozenset[str] = frozenset(),
    min_nodes: int = 1,
    priority: int = 0,
) -> SharedFleet:
    for id in ids:
        f.open(id, Moves(model(layers=LAYERS[id.model], head=0), DEMAND, spread, spares), min_nodes, pinned, priority)
    return f


def settled(f: SharedFleet) -> SharedFleet:
    f.settle()
    f.check_rest()
    return f


def serves(f: SharedFleet, id: PipelineId) -> bool:
    return f.cluster.pipelines[id].state == SERVING


def names(f: SharedFleet, id: PipelineId) -> list[str]:
    """Of the nodes of its route."""
    return [f.cluster.members[node].name for node in f.cluster.pipelines[id].route]


def numbered(f: SharedFleet, name: str) -> int:
    return next(node for node, member in f.cluster.members.items() if member.name == name)


def interrupted(f: SharedFleet, since: int) -> bool:
    return any("FENCED" in line for line in f.story[since:])


def test_two_models_share_a_node_that_has_room_for_both():
    f = settled(opened(fleet(a=70), LARGE, SMALL))
    assert names(f, LARGE) == names(f, SMALL) == ["a"]


def test_what_has_no_room_beside_the_other_is_told_where_how_much_is_missing():
    f = settled(opened(fleet(a=45), LARGE))
    settled(opened(f, SMALL))
    assert not serves(f, SMALL)
    why = f.cluster.pipelines[SMALL].why
    assert "21.5 MiB needed, 3.0 MiB available" in why and "18.5 MiB missing" in why
    assert "others have 42.0 MiB of a" in why


def test_the_room_that_a_closed_pipeline_leaves_is_taken():
    f = settled(opened(fleet(a=45), LARGE))
    opened(f, SMALL).close(LARGE)
    settled(f)
    assert serves(f, SMALL)
    assert f.machines[1].shares.keys() == {SMALL}


def test_a_model_that_moved_off_a_node_leaves_its_memory_to_others():
    f = settled(opened(fleet(a=45, b=45), LARGE, spares=1))
    (at,) = names(f, LARGE)
    f.cap(numbered(f, at), 22 * MB)
    settled(f)
    assert at not in names(f, LARGE)
    settled(opened(f, SMALL, pinned=frozenset({at})))
    assert names(f, SMALL) == [at]


def test_models_that_are_opened_at_one_moment_leave_room_for_each_other():
    """Each is content with a smaller pool of keys and values where it would have had all memory."""
    f = fleet(a=80)
    for id in (LARGE, SMALL):
        f.open(id, Moves(model(layers=LAYERS[id.model], head=0), Demand(8, 1 << 14, 256)))
    settled(f)
    assert serves(f, LARGE) and serves(f, SMALL)


def test_what_a_route_that_broke_a_moment_ago_had_is_kept_for_it():
    """Nobody was lost: the other model, which waits for memory, must not slip in between."""
    f = opened(settled(opened(fleet(a=45), LARGE)), SMALL)
    f.tick(1)
    f.break_route(LARGE)
    f.tick(0.1)
    assert f.cluster.pipelines[SMALL].state == WAITING
    assert settled(f).cluster.pipelines[LARGE].state == SERVING


def test_weights_are_not_dropped_while_a_loss_is_being_confirmed():
    f = opened(settled(opened(fleet(a=70), LARGE)), SMALL)
    f.break_route(LARGE)
    out = f.cluster.handle(Joined(9, 9, NodeProfile("z", 10 * MB, 1e9, 1e12), "host", 9, "1"), f.now)
    assert [i for i in out if isinstance(i, LoadStage)], "the small one begins"
    assert not [i for i in out if isinstance(i, DropModel)]


def test_what_is_kept_without_need_is_dropped_before_another_model_is_loaded():
    f = settled(opened(fleet(a=45, b=45), LARGE, spares=1))
    (at,) = names(f, LARGE)
    f.cap(numbered(f, at), 22 * MB)
    settled(f)
    assert f.machines[numbered(f, at)].shares[LARGE].weights, "they are kept as long as nobody needs the memory"
    opened(f, SMALL, pinned=frozenset({at}))
    f.tick(1)
    assert [type(order) for order in f.machines[numbered(f, at)].told] == [DropModel, LoadStage]


# Copies


def test_copies_share_no_node():
    f = settled(opened(fleet(a=90, b=90), LARGE, PipelineId("large", 2)))
    assert sorted(names(f, LARGE) + names(f, PipelineId("large", 2))) == ["a", "b"]


def test_a_copy_that_comes_is_made_room_for_without_an_interruption():
    f = settled(opened(fleet(a=25, b=25, c=25, d=25), LARGE, spread=True))
    assert len(names(f, LARGE)) == 4
    since = len(f.story)
    second = PipelineId("large", 2)
    settled(opened(f, second, spread=True))
    assert len(names(f, LARGE)) == len(names(f, second)) == 2
    assert not set(names(f, LARGE)) & set(names(f, second))
    assert not interrupted(f, since)


def test_a_copy_that_goes_leaves_its_nodes_to_the_one_that_stays():
    second = PipelineId("large", 2)
    f = settled(opened(fleet(a=25, b=25, c=25, d=25), LARGE, second, spread=True))
    f.close(second)
    settled(f)
    assert len(names(f, LARGE)) == 4


def test_a_copy_that_lost_its_node_is_given_one_of_the_others():
    second = PipelineId("large", 2)
    f = settled(opened(fleet(a=45, b=45, c=45), LARGE, second, spread=True))
    alone = LARGE if len(names(f, LARGE)) == 1 else second
    f.die(numbered(f, names(f, alone)[0]), seen=True)
    settled(f)
    assert serves(f, LARGE) and serves(f, second)


def test_a_copy_for_which_no_node_is_left_says_who_has_them():
    second = PipelineId("large", 2)
    f = settled(opened(fleet(a=45), LARGE, second))
    waiting, running = (second, LARGE) if serves(f, LARGE) else (LARGE, second)
    assert f.cluster.pipelines[waiting].why == f"none of the nodes that have joined is meant for it: a runs {running}"


def test_nodes_are_dealt_by_what_other_models_leave_of_them():
    """The small model came first, and takes so much of one node that the copy that is dealt it alone could never be placed."""
    f = settled(opened(fleet(a=60, b=45, c=45), SMALL, pinned=frozenset("a")))
    second = PipelineId("large", 2)
    settled(opened(f, LARGE, second))
    assert serves(f, LARGE) and serves(f, second)


def test_a_copy_that_ran_already_does_not_wait_for_as_many_nodes_as_at_first():
    second = PipelineId("large", 2)
    f = settled(opened(fleet(a=45, b=45, c=45), LARGE, second, min_nodes=3))
    for name in "ab":
        f.die(numbered(f, name), seen=True)
    settled(f)
    assert serves(f, LARGE) != serves(f, second)
    f.start(0)
    settled(f)
    assert serves(f, LARGE) and serves(f, second), "two nodes suffice, though three had to come at first"


def test_pinned_copies_run_on_their_nodes_whatever_these_are_called_later():
    second = PipelineId("small", 2)
    f = settled(opened(fleet(a=90, b=45, c=45), SMALL, second, pinned=frozenset("bc")))
    assert sorted(names(f, SMALL) + names(f, second)) == ["b", "c"]
    f.cluster.rename(numbered(f, "b"), "renamed")
    f.slots[1] = NodeProfile("renamed", 45 * MB, 1e9, 1e12)
    since = len(f.story)
    f.tick(20)
    assert "renamed" in names(f, SMALL) + names(f, second)
    assert not [line for line in f.story[since:] if "LoadStage" in line or "cannot be moved" in line]


def test_a_pinned_model_without_its_nodes_says_so():
    f = settled(opened(fleet(a=45), SMALL, pinned=frozenset("b")))
    assert f.cluster.pipelines[SMALL].why == "it waits for node b"


def test_a_pinned_model_of_which_some_nodes_are_there_and_too_small_says_for_whom_it_waits():
    f = settled(opened(fleet(a=15, b=45), SMALL, pinned=frozenset("acd")))
    why = f.cluster.pipelines[SMALL].why
    assert "21.5 MiB needed" in why and why.endswith("; it waits for nodes c or d"), why
    f.slots.append(NodeProfile("d", 45 * MB, 1e9, 1e12))
    f.start(2)
    settled(f)
    assert "d" in names(f, SMALL) and f.cluster.awaited(SMALL) == ["c"]
    f.cluster.rename(numbered(f, "a"), "e")
    assert (f.cluster.pinned(SMALL), f.cluster.awaited(SMALL)) == ({"e", "c", "d"}, ["c"])


# Priorities


@pytest.mark.parametrize("first", [LARGE, SMALL])
def test_the_room_of_a_node_that_joins_goes_to_the_higher_priority(first: PipelineId):
    """Whichever was opened first, and however much it takes."""
    for high in (LARGE, SMALL):
        f = SharedFleet(Cluster("1", silence=8), profiles({"a": 45 * MB}))
        for id in (first, SMALL if first == LARGE else LARGE):
            opened(f, id, priority=5 if id == high else -5)
        f.start(0)
        settled(f)
        assert [id for id in (LARGE, SMALL) if serves(f, id)] == [high]


def test_the_room_that_a_model_leaves_goes_to_the_highest_priority_that_waits():
    third = PipelineId("third")
    f = settled(opened(fleet(a=45), LARGE, priority=10))
    opened(f, SMALL)
    f.open(third, Moves(model(layers=4, head=0), DEMAND), priority=1)
    f.tick(1)
    assert not serves(f, SMALL) and not serves(f, third)
    f.close(LARGE)
    settled(f)
    assert serves(f, third) and not serves(f, SMALL)
    f.close(third)
    settled(f)
    assert serves(f, SMALL)


def test_of_models_that_lose_their_node_together_the_higher_priority_finds_room_first():
    f = settled(opened(opened(fleet(a=70, b=45), SMALL, pinned=frozenset("ab")), LARGE, priority=1, pinned=frozenset("ab")))
    if names(f, SMALL) != names(f, LARGE):
        f.drain(numbered(f, "b"))
        settled(f)
        f.slots[1] = NodeProfile("b", 45 * MB, 1e9, 1e12)
        f.start(1)
    assert names(f, SMALL) == names(f, LARGE) == ["a"]
    f.die(numbered(f, "a"), seen=True)
    settled(f)
    assert names(f, LARGE) == ["b"] and not serves(f, SMALL)


def test_what_is_served_stays_whatever_is_opened_later():
    """Only on demand is a model unloaded for another."""
    f = settled(opened(fleet(a=45), SMALL))
    settled(opened(f, LARGE, priority=100))
    assert serves(f, SMALL) and not serves(f, LARGE)
    assert "others have 21.5 MiB of a" in f.cluster.pipelines[LARGE].why


# Nodes that are to leave


def test_a_node_with_two_parts_leaves_when_both_have_moved():
    f = settled(opened(fleet(a=70), LARGE, SMALL))
    f.slots.append(NodeProfile("b", 70 * MB, 1e9, 1e12))
    f.start(1)
    settled(f)
    since = len(f.story)
    f.drain(numbered(f, "a"))
    settled(f)
    assert names(f, LARGE) == names(f, SMALL) == ["b"]
    assert [member.name for member in f.cluster.members.values()] == ["b"]
    assert not interrupted(f, since)


def test_a_node_of_which_one_part_cannot_be_moved_stays():
    f = settled(opened(fleet(a=70), LARGE, SMALL))
    f.slots.append(NodeProfile("b", 25 * MB, 1e9, 1e12))
    f.start(1)
    node = numbered(f, "a")
    f.drain(node)
    assert any("cannot be drained" in line for line in f.story)
    settled(f)
    assert serves(f, LARGE) and serves(f, SMALL)
    assert node in f.cluster.members


def test_a_model_that_fits_nowhere_keeps_no_node_from_leaving():
    f = settled(opened(fleet(a=25, b=25), SMALL, PipelineId("large")))
    assert serves(f, SMALL) and not serves(f, LARGE)
    (at,) = names(f, SMALL)
    f.drain(numbered(f, at))
    f.tick(0.1)  # the large one looks for room once more
    settled(f)
    assert names(f, SMALL) and at not in [member.name for member in f.cluster.members.values()]


def test_only_the_nodes_whose_parts_cannot_be_moved_stay():
    f = settled(opened(opened(fleet(a=45, b=25), LARGE, pinned=frozenset("a")), SMALL, pinned=frozenset(("b", "c"))))
    f.slots.append(NodeProfile("c", 25 * MB, 1e9, 1e12))
    f.start(2)
    f.drain(numbered(f, "b"))
    f.drain(numbered(f, "a"))
    assert any("a cannot be drained" in line for line in f.story)
    settled(f)
    assert sorted(member.name for member in f.cluster.members.values()) == ["a", "c"]


def test_a_node_is_not_sent_home_while_a_route_that_it_had_a_part_in_may_go_on():
    f = settled(opened(fleet(a=70, b=70), LARGE, SMALL))
    node = numbered(f, names(f, LARGE)[0])
    f.break_route(LARGE)
    f.cluster.members[node].draining = True
    f.cluster.released = "somebody else's route was filled"
    assert not [i for i in f.cluster.handle(StageLoaded(node, 0, 1, ""), f.now) if isinstance(i, Dismiss)]


# Limits


def test_a_limit_moves_one_model_where_that_suffices():
    f = settled(opened(fleet(a=70), LARGE, SMALL))
    f.slots.append(NodeProfile("b", 50 * MB, 1e9, 1e12))
    f.start(1)
    settled(f)
    since = len(f.story)
    f.cap(numbered(f, "a"), 45 * MB)
    settled(f)
    assert serves(f, LARGE) and serves(f, SMALL)
    assert f.taken(numbered(f, "a")) <= 45 * MB
    assert not interrupted(f, since)


def test_a_limit_moves_both_models_where_none_fits_any_more():
    f = settled(opened(fleet(a=70), LARGE, SMALL))
    f.slots.append(NodeProfile("b", 70 * MB, 1e9, 1e12))
    f.start(1)
    settled(f)
    f.cap(numbered(f, "a"), 5 * MB)
    settled(f)
    assert names(f, LARGE) == names(f, SMALL) == ["b"]


def test_a_limit_that_only_one_of_two_models_could_keep_changes_nothing():
    f = settled(opened(fleet(a=70), LARGE, SMALL))
    f.slots.append(NodeProfile("b", 50 * MB, 1e9, 1e12))
    f.start(1)
    settled(f)
    epochs = [pipeline.epoch for pipeline in f.cluster.pipelines.values()]
    out = f.cluster.handle(MemoryCapped(numbered(f, "a"), 5 * MB), f.now)
    assert "the memory of a cannot be limited" in reports(out)
    assert not [i for i in out if isinstance(i, LoadStage)]
    assert f.cluster.members[numbered(f, "a")].cap is None
    assert all(pipeline.coming is None for pipeline in f.cluster.pipelines.values())
    settled(f)
    assert [pipeline.serving.epoch for pipeline in f.cluster.pipelines.values() if pipeline.serving] == epochs


def test_a_limit_while_the_node_loads_what_exceeds_it_is_refused():
    f = opened(fleet(a=70), LARGE)
    f.tick(1)
    assert "try again when that is done" in reports(f.cluster.handle(MemoryCapped(1, 20 * MB), f.now))
    assert "may use at most" in reports(f.cluster.handle(MemoryCapped(1, 45 * MB), f.now)), "it has room for what is being loaded"


def test_a_limit_for_which_the_pool_must_be_smaller_makes_it_smaller():
    f = fleet(a=70)
    f.open(LARGE, Moves(model(layers=4, head=0), Demand(8, 4096, 256)))
    settled(f)
    assert f.taken(1) == 57 * MB
    f.cap(1, 45 * MB)
    settled(f)
    assert f.taken(1) <= 45 * MB and serves(f, LARGE)


# Epochs


def test_a_route_is_known_however_many_epochs_another_pipeline_has_had_since():
    f = settled(opened(fleet(a=70), LARGE, SMALL))
    serving = f.cluster.pipelines[LARGE].serving
    assert serving is not None
    for _ in range(_EPOCHS + 10):
        f.cluster.new_epoch(SMALL)
    assert f.cluster.owner(serving.epoch) == LARGE
    f.cluster.handle(RouteBroken(serving.epoch, "eof"), f.now)
    assert f.cluster.pipelines[LARGE].confirming


def test_what_is_said_of_a_closed_pipeline_is_of_no_account():
    f = opened(fleet(a=70), LARGE, SMALL)
    f.tick(1)
    coming = f.cluster.pipelines[LARGE].coming
    assert coming is not None
    f.close(LARGE)
    assert f.cluster.owner(coming.epoch) is None
    assert f.cluster.handle(StageLoaded(1, coming.epoch, 5, "native"), f.now) == []


def test_one_loss_breaks_the_routes_of_all_that_had_a_part_there():
    f = settled(opened(fleet(a=70), LARGE, SMALL))
    f.slots.append(NodeProfile("b", 70 * MB, 1e9, 1e12))
    f.start(1)
    since = len(f.story)
    f.die(numbered(f, "a"), seen=True)
    assert sum("FENCED" in line for line in f.story[since:]) == 2
    settled(f)
    assert names(f, LARGE) == names(f, SMALL) == ["b"]


@pytest.mark.parametrize("id", [LARGE, SMALL])
def test_a_loss_leaves_the_routes_alone_that_had_no_part_there(id: PipelineId):
    f = settled(opened(opened(fleet(a=45, b=25), LARGE, pinned=frozenset("a")), SMALL, pinned=frozenset("b")))
    other = SMALL if id == LARGE else LARGE
    epoch = f.cluster.pipelines[other].epoch
    f.die(numbered(f, names(f, id)[0]), seen=True)
    settled(f)
    assert serves(f, other) and f.cluster.pipelines[other].epoch == epoch
    assert not serves(f, id)


def test_a_rest_of_one_pipeline_is_no_rest_of_the_other():
    f = settled(opened(fleet(a=70, b=45), LARGE, SMALL))
    at = names(f, LARGE)
    f.cap(numbered(f, at[0]), 22 * MB)
    settled(f)
    rested = [line for line in f.story if RestStage.__name__ in line]
    assert serves(f, LARGE) and serves(f, SMALL)
    assert all(f"node={numbered(f, at[0])}" in line for line in rested)


def test_reports_name_their_pipeline():
    f = opened(fleet(a=70), LARGE, SMALL)
    out = f.cluster.handle(Left(1, "its connection ended"), f.now)
    assert [i.pipeline for i in out if isinstance(i, Report) and i.kind is EventKind.LOST] == [None], "that concerns all"
    f.start(0)
    placed = [line for line in f.story if "PLACED" in line]
    assert any("model='large'" in line for line in placed) and any("model='small'" in line for line in placed)


def test_who_asks_to_drain_a_node_twice_is_told_once():
    f = settled(opened(fleet(a=70, b=70), LARGE, SMALL))
    node = numbered(f, names(f, LARGE)[0])
    f.drain(node)
    assert f.cluster.handle(DrainAsked(node), f.now) == []
