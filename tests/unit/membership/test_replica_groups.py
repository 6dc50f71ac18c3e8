"""Which nodes serve which copy of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from shoal.errors import CapacityError
from shoal.membership.replica_groups import CopyNeed, ReplicaGroups
from shoal.placement.moves import Moves
from shoal.placement.profile import Demand, NodeProfile
from tests.support.nodes import MB, model, models

NEED = CopyNeed(40 * MB, MB)
Nodes = dict[int, NodeProfile]


def node(memory: int, speed: float = 10e9) -> NodeProfile:
    """memory: MB."""
    return NodeProfile("n", memory * MB, speed, 1e12)


def clusters(least: int = 1) -> st.SearchStrategy[Nodes]:
    nodes = st.builds(node, st.integers(1, 120), st.sampled_from([1e9, 5e9, 10e9, 20e9]))
    return st.lists(nodes, min_size=least, max_size=9).map(lambda found: dict(enumerate(found, 1)))


def groups_of(groups: ReplicaGroups) -> dict[int, set[int]]:
    out: dict[int, set[int]] = {}
    for n, replica in groups.replica_of.items():
        out.setdefault(replica, set()).add(n)
    return out


def served(groups: ReplicaGroups, replicas: Sequence[int], nodes: Nodes) -> list[int]:
    return [r for r in replicas if groups.need.met([nodes[n] for n in groups_of(groups).get(r, ())])]


def dealt(replicas: Sequence[int], nodes: Nodes, need: CopyNeed = NEED) -> ReplicaGroups:
    groups = ReplicaGroups(need)
    groups.arrange(replicas, nodes)
    return groups


@given(clusters(), st.integers(1, 4))
def test_every_node_serves_one_of_the_copies(nodes: Nodes, copies: int):
    groups = dealt(range(1, copies + 1), nodes)
    assert groups.replica_of.keys() == nodes.keys()
    assert set(groups.replica_of.values()) <= set(range(1, copies + 1))


@given(clusters(), st.integers(1, 4))
def test_no_more_copies_get_nodes_than_there_is_memory_for(nodes: Nodes, copies: int):
    groups = dealt(range(1, copies + 1), nodes)
    assert len(groups_of(groups)) == max(len(served(groups, range(1, copies + 1), nodes)), 1)


@given(clusters(), st.integers(2, 4))
def test_as_many_copies_are_served_as_can_be_dealt_in_order_of_speed_or_of_memory(nodes: Nodes, copies: int):
    groups = dealt(range(1, copies + 1), nodes)
    assert len(served(groups, range(1, copies + 1), nodes)) >= possible(nodes, copies)


def possible(nodes: Nodes, copies: int) -> int:
    """Nodes one by one, the largest first, each to the smallest group: how many groups can be made so."""
    for count in range(copies, 0, -1):
        for weight in ((lambda n: nodes[n].bytes_per_second), (lambda n: nodes[n].memory)):
            hands: list[list[int]] = [[] for _ in range(count)]
            for n in sorted(nodes, key=lambda n: (-weight(n), -nodes[n].memory, n)):
                min(hands, key=lambda hand: sum(weight(n) for n in hand)).append(n)
            if all(NEED.met([nodes[n] for n in hand]) for hand in hands):
                return count
    return 0


@given(clusters(), st.integers(1, 4))
def test_nothing_changes_where_nothing_happens(nodes: Nodes, copies: int):
    groups = dealt(range(1, copies + 1), nodes)
    before = dict(groups.replica_of)
    groups.arrange(range(1, copies + 1), nodes)
    assert groups.replica_of == before


@given(clusters(least=2), st.integers(2, 4), st.integers(1, 120))
def test_a_node_that_comes_where_all_copies_are_served_moves_none(nodes: Nodes, copies: int, memory: int):
    replicas = range(1, copies + 1)
    groups = dealt(replicas, nodes)
    assume(len(served(groups, replicas, nodes)) == copies)
    before = dict(groups.replica_of)
    groups.arrange(replicas, {**nodes, 99: node(memory)})
    assert {n: r for n, r in groups.replica_of.items() if n != 99} == before


@given(clusters(least=3), st.integers(2, 3), st.data())
def test_a_loss_moves_nodes_only_where_a_copy_has_too_little_now(nodes: Nodes, copies: int, data: st.DataObject):
    replicas = range(1, copies + 1)
    groups = dealt(replicas, nodes)
    before, were = dict(groups.replica_of), served(groups, replicas, nodes)
    gone = data.draw(st.sampled_from([*nodes]))
    left = {n: p for n, p in nodes.items() if n != gone}
    enough = NEED.met([left[n] for n in left if before[n] == before[gone]])
    groups.arrange(replicas, left)
    if enough or before[gone] not in were:
        assert groups.replica_of == {n: r for n, r in before.items() if n != gone}


@given(clusters(least=3), st.data())
def test_a_loss_costs_at_most_one_copy(nodes: Nodes, data: st.DataObject):
    groups = dealt((1, 2, 3), nodes)
    were = len(served(groups, (1, 2, 3), nodes))
    gone = data.draw(st.sampled_from([*nodes]))
    left = {n: p for n, p in nodes.items() if n != gone}
    groups.arrange((1, 2, 3), left)
    assert len(served(groups, (1, 2, 3), left)) >= were - 1


@given(clusters(least=2), st.integers(2, 4))
def test_where_memory_is_plenty_the_copies_are_about_equally_fast(nodes: Nodes, copies: int):
    nodes = {n: replace(p, memory=100 * MB) for n, p in nodes.items()}
    assume(len(nodes) >= copies)
    speeds = sorted(sum(nodes[n].bytes_per_second for n in group) for group in groups_of(dealt(range(1, copies + 1), nodes)).values())
    assert len(speeds) == copies
    assert speeds[-1] - speeds[0] <= max(p.bytes_per_second for p in nodes.values())


@given(clusters(least=2), st.data())
def test_a_copy_that_runs_can_go_on_over_the_nodes_that_it_keeps_or_nobody_could_do_without_its_nodes(nodes: Nodes, data: st.DataObject):
    """Copy 1 runs over some of the nodes when copy 2 comes."""
    runs = data.draw(st.sets(st.sampled_from([*nodes]), min_size=1))
    assume(NEED.met([nodes[n] for n in runs]))
    groups = ReplicaGroups(NEED)
    groups.arrange((1, 2), nodes, dict.fromkeys(runs, 1))
    keeps = [nodes[n] for n in runs if groups.replica_of[n] == 1]
    if not NEED.met(keeps) and len(served(groups, (1, 2), nodes)) == 2:
        assert not NEED.met([p for n, p in nodes.items() if n not in runs]), "what is free would have done"


def test_a_copy_that_lost_its_node_is_given_one_of_two():
    nodes: Nodes = {1: node(50), 2: node(50), 3: node(50)}
    groups = dealt((1, 2), nodes)
    (alone,) = next(group for group in groups_of(groups).values() if len(group) == 1)
    del nodes[alone]
    groups.arrange((1, 2), nodes)
    assert sorted(groups.replica_of.values()) == [1, 2]


def test_a_copy_that_comes_leaves_the_first_where_it_runs():
    """Whatever the nodes are numbered, and however fast they are."""
    for runs in (1, 2):
        groups = ReplicaGroups(NEED)
        groups.arrange((1, 2), {1: node(50), 2: node(50, 20e9)}, {runs: 1})
        assert groups.replica_of[runs] == 1


def test_a_copy_keeps_what_it_needs_of_its_nodes_when_another_comes():
    """Dealt by speed, it would have one of them and one that it does not run on: nobody could begin."""
    nodes: Nodes = {n: node(22) for n in range(1, 5)}
    groups = ReplicaGroups(NEED)
    groups.arrange((1, 2), nodes, {1: 1, 2: 1})
    assert groups.replica_of == {1: 1, 2: 1, 3: 2, 4: 2}


def test_nodes_that_run_a_copy_suffice_for_it_whatever_it_should_have():
    """It has lost its spare."""
    nodes: Nodes = {1: node(22), 2: node(22), 3: node(60)}
    groups = ReplicaGroups(replace(NEED, spares=1))
    groups.arrange((1, 2), nodes, {1: 1, 2: 1})
    assert groups.replica_of == {1: 1, 2: 1, 3: 2}


def test_a_copy_that_goes_leaves_its_nodes_to_the_others():
    groups = dealt((1, 2, 3), {n: node(50) for n in range(1, 7)})
    kept = {n for n, r in groups.replica_of.items() if r != 2}
    before = dict(groups.replica_of)
    groups.arrange((1, 3), {n: node(50) for n in range(1, 7)})
    assert all(groups.replica_of[n] == before[n] for n in kept)
    assert sorted(len(group) for group in groups_of(groups).values()) == [3, 3]


def test_without_memory_for_one_all_nodes_are_the_first_copys():
    assert dealt((2, 1), {1: node(5), 2: node(6)}).replica_of == {1: 2, 2: 2}


def test_without_copies_or_nodes_nobody_serves():
    groups = dealt((1, 2), {1: node(50), 2: node(50)})
    groups.arrange((), {1: node(50)})
    assert groups.replica_of == {}
    groups.arrange((1,), {})
    assert groups.replica_of == {}


# Whether nodes suffice for a copy


def test_layers_are_held_whole():
    need = CopyNeed.of(Moves(model(layers=4, head=0), Demand(8, 4096, 256)))
    assert need.met([node(50)])
    assert need.met([node(22), node(23)])
    assert not need.met([node(17), node(17), node(17)]), "each has room for one layer and a half"
    assert sum(n.memory for n in [node(17)] * 3) > need.total


def test_the_head_comes_with_the_last_layer():
    need = CopyNeed.of(Moves(model(layers=2, head=30 * MB), Demand(8, 4096, 256)))
    assert need.met([node(12), node(42)])
    assert need.met([node(42), node(12)])
    assert not need.met([node(30), node(30)])


def test_spares_are_left_over():
    need = CopyNeed.of(Moves(model(layers=4, head=0), Demand(8, 4096, 256), spares=1))
    assert not need.met([node(22), node(23)])
    assert need.met([node(22), node(23), node(1)])
    assert need.met([node(50)]), "the only node is no spare"


@given(models(6), clusters(), st.integers(0, 2))
def test_what_is_said_to_suffice_can_be_placed(cost: object, nodes: Nodes, spares: int):
    moves = Moves(cost, Demand(8, 4096, 256), spares=spares)  # pyright: ignore[reportArgumentType]
    profiles = [replace(p, name=f"n{n}") for n, p in nodes.items()]
    assume(CopyNeed.of(moves).met(profiles))
    assert moves.first(profiles, {}).stages


@given(st.integers(1, 6), clusters(), st.integers(0, 30))
def test_of_equal_layers_what_can_be_placed_is_said_to_suffice(layers: int, nodes: Nodes, head: int):
    moves = Moves(model(layers=layers, head=head * MB), Demand(8, 256, 256))
    profiles = [replace(p, name=f"n{n}") for n, p in nodes.items()]
    try:
        moves.first(profiles, {})
    except CapacityError:
        assert not CopyNeed.of(moves).met(profiles)
    else:
        assert CopyNeed.of(moves).met(profiles)


@given(st.lists(st.integers(1, 100), min_size=2, max_size=6))
def test_more_nodes_never_suffice_less(memories: list[int]):
    nodes = [node(memory) for memory in memories]
    found = [NEED.met(nodes[: n + 1]) for n in range(len(nodes))]
    assert all(a <= b for a, b in pairwise(found))
