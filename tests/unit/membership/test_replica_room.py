"""Where more copies would run. What is said is what the cluster then does: test_scaler.py in tests/unit/node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.membership.replica_groups import CopyNeed
from shoal.membership.replica_room import CopyRoom, CopyTerms, CopyThere, ReplicaRoom
from shoal.pipeline_id import PipelineId
from tests.support.nodes import node

NEED = CopyNeed(total=100, each=10)


def there(model: str, replica: int, takes: dict[int, int], placed: bool = True) -> CopyThere:
    return CopyThere(PipelineId(model, replica), placed, takes, frozenset(takes))


def room(memories: list[int], *copies: CopyThere, **models: CopyTerms) -> ReplicaRoom:
    """Nodes n0, n1, … of these memories, and the models a and b, which need 110 bytes of one node."""
    nodes = {i: node(f"n{i}", memory) for i, memory in enumerate(memories)}
    return ReplicaRoom(nodes, copies, {"a": CopyTerms(NEED), "b": CopyTerms(NEED), **models})


def test_a_copy_gets_nodes_that_no_other_copy_of_its_model_has() -> None:
    there_is = room([200, 200], there("a", 1, {0: 110}))
    assert there_is.more(["a"]) == [CopyRoom(("n1",))]
    assert there_is.more(["a", "a"]) == [CopyRoom(("n1",)), CopyRoom(missing=110)]


def test_a_copy_over_two_nodes_can_do_with_one_of_them() -> None:
    assert room([200, 200], there("a", 1, {0: 60, 1: 60})).more(["a"])[0].nodes in (("n0",), ("n1",))


def test_copies_of_different_models_share_a_node() -> None:
    there_is = room([230, 150], there("a", 1, {0: 110}))
    assert there_is.more(["b", "b"]) == [CopyRoom(("n1",)), CopyRoom(("n0",))]
    full = room([200], there("a", 1, {0: 110}))
    assert full.more(["b"]) == [CopyRoom(missing=20)]
    assert full.more(["b"], [PipelineId("a", 1)]) == [CopyRoom(("n0",))], "once the other is gone"


def test_what_the_earlier_take_the_later_do_not_have() -> None:
    assert room([150]).more(["a", "b"]) == [CopyRoom(("n0",)), CopyRoom(missing=70)]
    assert [bool(one.nodes) for one in room([260]).more(["a", "b"])] == [True, True]


def test_a_copy_that_waits_for_its_first_route_has_its_room_first() -> None:
    waits = there("a", 1, {}, placed=False)
    assert not room([150], waits).more(["b"])[0].nodes
    assert not room([150], waits).more(["a"])[0].nodes
    assert room([150, 150], waits).more(["a"])[0].nodes


def test_only_nodes_that_a_model_is_pinned_to_count() -> None:
    pinned = CopyTerms(NEED, pinned=frozenset({"n1"}))
    assert room([200, 200], a=pinned).more(["a", "a"]) == [CopyRoom(("n1",)), CopyRoom(missing=110)]
    assert room([], a=pinned).more(["a"]) == [CopyRoom(missing=110)]


def test_how_many_nodes_a_copy_takes() -> None:
    assert room([200]).nodes_needed("a") == 1
    assert room([60, 40]).nodes_needed("a") == 2
    assert room([35]).nodes_needed("a") == 4
    assert room([]).nodes_needed("a") == 1
    assert room([11]).nodes_needed("a") == 0, "it would take a hundred of them"
    assert room([10], a=CopyTerms(CopyNeed(100, 10, spares=1))).nodes_needed("a") == 0, "as many as one likes have room for nothing"
    assert room([200], a=CopyTerms(CopyNeed(100, 10, spares=1))).nodes_needed("a") == 2


@given(st.lists(st.integers(0, 400), max_size=6), st.lists(st.sampled_from("ab"), max_size=8), st.sets(st.integers(0, 5)))
def test_no_node_is_given_more_than_it_has_and_asking_changes_nothing(memories: list[int], models: list[str], running: set[int]) -> None:
    copies = [there("a", i + 1, {i: 110}) for i in sorted(running) if i < len(memories) and memories[i] >= 110]
    there_is = room(memories, *copies)
    found = there_is.more(models)
    assert found == there_is.more(models)
    names = {f"n{i}": memory for i, memory in enumerate(memories)}
    for model in "ab":
        own = [name for one, of in zip(found, models, strict=True) if of == model for name in one.nodes]
        assert len(own) == len(set(own)), "two copies of one model on one node"
    for name, memory in names.items():
        running_there = sum(110 for copy in copies if f"n{next(iter(copy.takes))}" == name)  # of the model a
        alone = sum(110 for one, of in zip(found, models, strict=True) if one.nodes == (name,) and of == "b")
        assert running_there + alone <= memory or not alone, "two copies in the room of one"
    for one, of in zip(found, models, strict=True):
        assert not one.nodes or sum(max(names[name] - 10, 0) for name in one.nodes) >= 100, (one, of)
