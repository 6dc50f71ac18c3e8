"""A pipeline without room is planned again when something has changed, and not whenever time passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.errors import NotEnoughMemory
from shoal.membership.events import DrainAsked, Left, MemoryCapped
from shoal.placement.moves import Residency
from shoal.placement.partition import Placement
from shoal.placement.profile import NodeProfile
from tests.support.membership import Halves, OnePipeline, joined, tick


class Counted(Halves):
    looks = 0

    def first(self, nodes: Sequence[NodeProfile], residencies: Mapping[str, Residency]) -> Placement:
        self.looks += 1
        if sum(node.memory for node in nodes) < 3:
            raise NotEnoughMemory(3, sum(node.memory for node in nodes))
        return super().first(nodes, residencies)


def short() -> tuple[OnePipeline, Counted]:
    planner = Counted()
    c = OnePipeline("1", 1, planner, silence=8)
    c.handle(joined(1, memory=1), 0)
    c.handle(joined(2, memory=1), 0)
    assert c.pipeline.short and c.pipeline.state == "waiting"
    return c, planner


def test_time_alone_is_no_reason_to_plan_again() -> None:
    c, planner = short()
    before = planner.looks
    for i in range(1, 100):
        tick(c, i / 10)
    assert planner.looks == before


def test_a_node_that_comes_is() -> None:
    c, planner = short()
    before = planner.looks
    c.handle(joined(3, memory=1), 1)
    assert planner.looks > before and c.pipeline.coming is not None


def test_memory_that_changes_is_and_so_is_a_node_that_leaves_or_is_drained() -> None:
    for event in (MemoryCapped(2, 0), Left(2, "gone"), DrainAsked(2)):
        c, planner = short()
        before = planner.looks
        c.handle(event, 1)
        for i in range(11, 60):
            tick(c, i / 10)
        assert before < planner.looks <= before + 4, event


def test_a_node_that_failed_is_tried_again_in_its_time() -> None:
    c, planner = short()
    c.pipeline.holdings[1].blame("no disk", 1)
    c.handle(joined(3, memory=1), 1)  # with node 1 there would be room
    assert c.pipeline.coming is None
    before = planner.looks
    for i in range(2, 60):
        tick(c, i)
    assert c.pipeline.coming is not None and before < planner.looks <= before + 2
