"""The cluster's state machine: events in, instructions out; nothing of an old epoch counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from shoal.errors import CapacityError, NotEnoughMemory
from shoal.membership.admission import Admission
from shoal.membership.events import (
    DrainAsked,
    Event,
    Heard,
    Joined,
    Left,
    RouteBroken,
    RouteFilled,
    RoutePaused,
    SpeedSeen,
    StageFailed,
    StageLinked,
    StageLoaded,
    Tick,
)
from shoal.membership.instructions import Cut, Dismiss, Instruction, LinkStage, LoadStage, Pause, Refuse, Report, RestStage, Serve
from shoal.membership.state import FILLING, LINKING, LOADING, PAUSING, SERVING, WAITING, Cluster
from shoal.placement.moves import Residency
from shoal.placement.partition import Placement, StagePlan
from shoal.placement.profile import NodeProfile

LAYERS = 4


def dealt(*stages: tuple[str, int, int], kv_tokens: int = 64) -> Placement:
    return Placement(tuple(StagePlan(name, first, end, 1, 1.0, 1.0) for name, first, end in stages), kv_tokens, 0.0, 1)


@dataclass
class Halves:
    """Two nodes, two layers each: the first by name. What is lost goes to the first spare by name, else to the other node."""

    better: Placement | None = None
    alone: bool = True
    """One node can hold all."""
    beside: list[bool] = field(default_factory=list[bool])
    """Whether each recovery was while the old route served on."""

    def first(self, nodes: Sequence[NodeProfile], residencies: Mapping[str, Residency]) -> Placement:
        names = sorted(node.name for node in nodes)[:2]
        if len(names) < 2:
            raise NotEnoughMemory(2, 1)
        return dealt((names[0], 0, 2), (names[1], 2, 4))

    def recover(
        self, old: Placement, nodes: Sequence[NodeProfile], residencies: Mapping[str, Residency], tokens: int, beside: bool = False
    ) -> Placement:
        self.beside.append(beside)
        names = [node.name for node in nodes]
        spares = sorted(set(names) - {stage.node for stage in old.stages})
        stages = [stage.node if stage.node in names else (spares.pop(0) if spares else "") for stage in old.stages]
        left = [name for name in stages if name]
        if not left:
            raise CapacityError("no node is left")
        if len(stages) == len(left) == 2:
            return dealt((stages[0], 0, 2), (stages[1], 2, 4))
        if not self.alone:
            raise NotEnoughMemory(2, 1)
        return dealt((left[0], 0, 4))

    def improve(self, now: Placement, nodes: Sequence[NodeProfile], residencies: Mapping[str, Residency], tokens: int) -> Placement | None:
        better, self.better = self.better, None
        return better


def cluster(min_nodes: int = 2, admission: Admission | None = None, **planner: bool) -> Cluster:
    return Cluster("1", min_nodes, Halves(**planner), silence=8, admission=admission)


def planner(c: Cluster) -> Halves:
    assert isinstance(c._planner, Halves)
    return c._planner


def joined(node: int, version: str = "1", *, memory: int = 1, speed: float = 1.0, port: int = 0, start: int = 0) -> Joined:
    return Joined(node, start or node * 11, NodeProfile(f"n{node}", memory, speed, 1.0), "host", port or node, version)


def orders(out: list[Instruction]) -> list[Instruction]:
    return [i for i in out if not isinstance(i, Report)]


def reports(out: list[Instruction]) -> str:
    return "\n".join(i.message for i in out if isinstance(i, Report))


def loads(out: list[Instruction]) -> dict[int, tuple[int, int]]:
    return {i.node: (i.first, i.end) for i in out if isinstance(i, LoadStage)}


def only(out: list[Instruction], kind: type) -> list[Instruction]:
    return [i for i in out if isinstance(i, kind)]


# The way to a route, one phase after the other


def loading(*nodes: int, **options: bool) -> Cluster:
    c = cluster(**options)
    for n in nodes:
        c.handle(joined(n), 0)
    assert c.state == LOADING
    return c


def load(c: Cluster, now: float = 0) -> list[Instruction]:
    assert c.coming is not None
    return [i for n in c.coming.nodes for i in c.handle(StageLoaded(n, c.coming.epoch, 5, "native"), now)]


def link(c: Cluster, now: float = 0) -> list[Instruction]:
    assert c.coming is not None
    return [i for n in c.coming.nodes for i in c.handle(StageLinked(n, c.coming.epoch), now)]


def fill(c: Cluster, now: float = 0) -> list[Instruction]:
    return c.handle(RouteFilled(c.epoch), now)


def finish(c: Cluster, now: float = 0) -> list[Instruction]:
    """Whatever is coming serves."""
    out = load(c, now)
    if c.serving is not None:
        out += c.handle(RoutePaused(c.serving.epoch), now)
    out += [*link(c, now), *fill(c, now)]
    assert c.state == SERVING
    return out


def linking(*nodes: int, **options: bool) -> Cluster:
    c = loading(*nodes, **options)
    load(c)
    assert c.state == LINKING
    return c


def filling(*nodes: int, **options: bool) -> Cluster:
    c = linking(*nodes, **options)
    link(c)
    assert c.state == FILLING
    return c


def serving(*nodes: int, **options: bool) -> Cluster:
    c = filling(*nodes, **options)
    fill(c)
    assert c.state == SERVING
    return c


def moving(phase: str = LOADING) -> Cluster:
    """1 and 2 serve; 3 is to take 2's place."""
    c = serving(1, 2, 3)
    planner(c).better = dealt(("n1", 0, 2), ("n3", 2, 4))
    tick(c, 6)
    if phase == PAUSING:
        load(c, 6)
    assert (c._phase, c.state) == (phase, SERVING)
    return c


def tick(c: Cluster, now: float, silent: Sequence[int] = ()) -> list[Instruction]:
    """Time passes, and all are heard but some."""
    for n in c.members:
        if n not in silent:
            c.handle(Heard(n), now)
    return c.handle(Tick(), now)


# From waiting to serving


def test_it_waits_for_enough_nodes():
    c = cluster()
    assert orders(c.handle(joined(1), 0)) == []
    assert (c.state, c.why) == (WAITING, "1 of 2 nodes have joined")


def test_with_enough_nodes_each_loads_its_layers():
    c = cluster()
    c.handle(joined(1), 0)
    assert orders(c.handle(joined(2), 0)) == [
        LoadStage(1, 1, 0, 2, 0, 2, range(0), 64),
        LoadStage(2, 1, 1, 2, 2, 4, range(0), 64),
    ]


def test_links_follow_when_all_have_loaded():
    c = loading(1, 2)
    assert c.handle(StageLoaded(1, 1, 5, "native"), 0) == []
    assert c.handle(StageLoaded(1, 1, 5, "native"), 0) == []
    assert c.handle(StageLoaded(2, 1, 6, "native"), 0) == [LinkStage(1, 1, 2), LinkStage(2, 1, None)]
    assert (c.state, c.members[2].weight_bytes) == (LINKING, 6)


def test_it_says_how_far_loading_has_come():
    c = loading(1, 2)
    c.handle(StageLoaded(1, 1, 5, "native"), 0)
    late = c.members[2].name
    assert c.progress == f"the model is being loaded: loading, 1 of 2 nodes are done, not yet {late}"
    c.handle(StageLoaded(2, 1, 6, "native"), 0)
    assert c.progress.startswith("the model is being loaded: linking, 0 of 2 nodes are done")


def test_nothing_is_said_while_it_serves():
    assert serving(1, 2).progress == ""


def test_the_route_is_opened_when_all_are_linked():
    c = linking(1, 2)
    assert c.handle(StageLinked(2, 1), 0) == []
    (serve,) = c.handle(StageLinked(1, 1), 0)
    assert c.placement is not None
    assert serve == Serve(1, 1, c.placement, ((0, 4),))
    assert c.state == FILLING


def test_it_serves_when_all_is_filled():
    c = filling(1, 2)
    assert orders(fill(c)) == []
    assert (c.state, c.why, c.route) == (SERVING, "", [1, 2])
    assert [c.members[n].filled for n in (1, 2)] == [range(2), range(2, 4)]


def test_memory_that_does_not_suffice_is_said_once():
    c = cluster(1)
    assert "not enough memory" in reports(c.handle(joined(1), 0))
    assert (c.state, tick(c, 1)) == (WAITING, [])


# Who is taken in


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (joined(1, "2"), "install the same version"),
        (joined(1, memory=9), "raise --memory"),
        (joined(1, memory=20, speed=0.1), "GB/s"),
    ],
)
def test_who_does_not_fit_is_refused_and_not_counted(event: Joined, why: str):
    c = cluster(1, Admission(min_memory=10, min_speed=1.0))
    (refuse,) = orders(c.handle(event, 0))
    assert isinstance(refuse, Refuse)
    assert why in refuse.reason and not refuse.again
    assert c.members == {}


def test_no_more_than_the_most_nodes_are_taken_in():
    c = cluster(2, Admission(max_nodes=1))
    assert orders(c.handle(joined(1), 0)) == []
    assert "takes no more" in reports(c.handle(joined(2), 0))


def test_a_node_that_is_started_anew_ends_its_ghost():
    c = serving(1, 2)
    out = c.handle(joined(3, port=2), 0)
    assert set(c.members) == {1, 3}
    assert "n2 left: it was started anew" in reports(out)
    assert only(out, Cut) != []
    assert finish(c) and c.state == SERVING


def test_a_node_that_comes_back_before_it_was_missed_ends_its_earlier_membership():
    c = serving(1, 2)
    assert "n2 left: it came back" in reports(c.handle(joined(3, port=2, start=22), 0))
    assert set(c.members) == {1, 3}


def test_a_node_that_is_started_anew_takes_its_ghosts_place_in_a_full_cluster():
    c = cluster(2, Admission(max_nodes=2))
    c.handle(joined(1), 0)
    c.handle(joined(2), 0)
    assert only(c.handle(joined(3, port=2), 0), Refuse) == []
    assert set(c.members) == {1, 3}


def test_a_node_that_joins_while_it_serves_is_a_spare():
    c = serving(1, 2)
    assert orders(c.handle(joined(3), 0)) == []
    assert c.described(3, 0) == "idle, ready to take over"


def test_a_node_that_makes_it_better_is_made_ready_while_it_serves():
    c = serving(1, 2)
    planner(c).better = dealt(("n1", 0, 2), ("n3", 2, 4))
    c.handle(joined(3), 1)
    assert c.coming is None  # it moved a moment ago
    out = c.handle(joined(4), 6)
    assert loads(out) == {1: (0, 2), 3: (2, 4)}
    assert (c.state, c.moving) == (SERVING, "layers are being moved (loading)")


# What does not count


def test_what_belongs_to_an_old_epoch_is_dropped():
    c = serving(1, 2, 3)
    c.handle(Left(1, "gone"), 0)
    assert (c.epoch, c.state) == (2, LOADING)
    old: list[Event] = [StageLoaded(2, 1, 1, ""), StageLinked(2, 1), StageFailed(2, 1, "x"), RouteBroken(1, "x"), RouteFilled(1)]
    for event in [*old, RoutePaused(1)]:
        assert c.handle(event, 0) == []
    assert (c.epoch, c.state) == (2, LOADING)


def test_what_comes_from_nodes_outside_the_route_is_dropped():
    c = loading(1, 2)
    c.handle(joined(3), 0)
    for stray in (StageLoaded(3, 1, 1, ""), StageLinked(3, 1), StageFailed(3, 1, "x"), StageFailed(99, 1, "x"), Heard(99)):
        assert c.handle(stray, 0) == []


@pytest.mark.parametrize("event", [StageLinked(1, 1), RouteFilled(1), RoutePaused(1)])
def test_what_comes_too_early_does_not_count(event: Event):
    c = loading(1, 2)
    assert c.handle(event, 0) == []
    assert c.state == LOADING


# Loss


def test_a_spare_takes_what_was_lost_and_the_others_keep_theirs():
    c = serving(1, 2, 3)
    out = c.handle(Left(1, "gone"), 0)
    assert orders(out) == [
        Cut(1, "n1 left: gone"),
        LoadStage(3, 2, 0, 2, 0, 2, range(0), 64),
        LoadStage(2, 2, 1, 2, 2, 4, range(2, 4), 64),
    ]
    (serve,) = only(finish(c), Serve)
    assert isinstance(serve, Serve)
    assert serve.spans == ((0, 2),)


def test_a_neighbour_takes_what_was_lost():
    c = serving(1, 2)
    assert loads(c.handle(Left(2, "gone"), 0)) == {1: (0, 4)}
    (serve,) = only(finish(c), Serve)
    assert isinstance(serve, Serve)
    assert serve.spans == ((2, 4),)


def test_losing_what_nothing_can_replace_waits_for_another():
    c = serving(1, 2, alone=False)
    c.handle(Left(2, "gone"), 0)
    assert (c.state, c.route, c.placement) == (WAITING, [], None)
    assert loads(c.handle(joined(3), 0)) == {1: (0, 2), 3: (2, 4)}


def test_losing_a_spare_changes_nothing():
    c = serving(1, 2, 3)
    assert orders(c.handle(Left(3, "gone"), 0)) == []
    assert c.state == SERVING


def test_leaving_twice_is_leaving_once():
    c = serving(1, 2)
    c.handle(Left(2, "gone"), 0)
    assert c.handle(Left(2, "gone"), 0) == []


@pytest.mark.parametrize("begin", [loading, linking])
def test_a_loss_before_the_route_is_opened_cuts_nothing(begin: type):
    c = begin(1, 2, 3)
    out = c.handle(Left(1, "gone"), 0)
    assert only(out, Cut) == []
    assert loads(out) == {2: (0, 2), 3: (2, 4)} or loads(out) == {3: (0, 2), 2: (2, 4)}
    assert finish(c)


def test_a_loss_while_it_fills_cuts_the_route_and_keeps_what_was_good():
    c = serving(1, 2, 3, 4)
    c.handle(Left(1, "gone"), 0)
    load(c)
    link(c)
    out = c.handle(Left(3, "gone"), 0)
    assert only(out, Cut) == [Cut(2, "n3 left: gone")]
    assert [i.keep for i in out if isinstance(i, LoadStage)] == [range(0), range(2, 4)]


def test_a_node_that_was_being_filled_has_nothing_good():
    c = serving(1, 2, 3, 4)
    c.handle(Left(1, "gone"), 0)
    load(c)
    link(c)
    c.handle(Left(2, "gone"), 0)  # 3 was being filled
    (serve,) = only(finish(c), Serve)
    assert isinstance(serve, Serve)
    assert serve.spans == ((0, 4),)


def test_what_is_being_moved_may_be_lost_while_the_old_route_serves_on():
    c = moving()
    out = c.handle(Left(3, "gone"), 6)
    assert orders(out) == []
    assert (c.state, c.route, c.coming) == (SERVING, [1, 2], None)
    assert "given up" in reports(out)


def test_a_loss_while_it_pauses_takes_the_old_route_again():
    c = moving(PAUSING)
    out = c.handle(Left(3, "gone"), 6)
    assert only(out, Cut) == [Cut(1, "n3 left: gone")]
    assert {i.node: i.keep for i in out if isinstance(i, LoadStage)} == {1: range(2), 2: range(2, 4)}


@pytest.mark.parametrize("phase", [LOADING, PAUSING])
def test_losing_a_stage_that_serves_ends_the_move_too(phase: str):
    c = moving(phase)
    out = c.handle(Left(1, "gone"), 6)
    assert only(out, Cut) == [Cut(1, "n1 left: gone")]
    assert (c.serving, c.state) == (None, LOADING)
    assert set(loads(out)) == {2, 3}


def test_several_that_fall_silent_together_are_lost_at_once():
    c = serving(1, 2, 3, 4)
    out = tick(c, 9, silent=[1, 2])
    assert only(out, Refuse) == [Refuse(1, "no heartbeat came", True), Refuse(2, "no heartbeat came", True)]
    assert set(loads(out)) == {3, 4}
    assert c.epoch == 2


def test_all_are_lost_and_one_comes_back():
    c = serving(1, 2)
    tick(c, 9, silent=[1, 2])
    assert (c.state, c.members) == (WAITING, {})
    assert loads(c.handle(joined(5), 9)) == {5: (0, 4)}


# Moves


def test_a_better_split_is_loaded_beside_paused_for_and_linked():
    c = moving()
    assert load(c, 6) == [Pause(1)]
    out = c.handle(RoutePaused(1), 6)
    assert out == [RestStage(2, 2), LinkStage(1, 2, 3), LinkStage(3, 2, None)]
    (serve,) = only(link(c, 6), Serve)
    assert isinstance(serve, Serve)
    assert serve.spans == ((2, 4),)
    fill(c, 6)
    assert (c.route, c.members[2].filled) == ([1, 3], range(0))


def test_after_a_move_there_is_a_rest():
    c = moving()
    finish(c, 7)
    planner(c).better = dealt(("n1", 0, 2), ("n2", 2, 4))
    assert tick(c, 11) == []
    assert set(loads(tick(c, 12.5))) == {1, 2}


def test_keys_and_values_of_another_pool_are_not_kept():
    c = serving(1, 2)
    planner(c).better = dealt(("n1", 0, 2), ("n2", 2, 4), kv_tokens=32)
    assert {i.node: i.keep for i in tick(c, 6) if isinstance(i, LoadStage)} == {1: range(0), 2: range(0)}


def test_a_node_that_is_slower_than_it_said_is_measured_anew():
    c = serving(1, 2, 3)
    planner(c).better = dealt(("n1", 0, 2), ("n3", 2, 4))
    assert set(loads(c.handle(SpeedSeen(2, 2.0), 6))) == {1, 3}
    assert c.members[2].profile.bytes_per_second == 0.5
    assert "2.0 times slower" in c.described(2, 6)


@pytest.mark.parametrize(("seen", "slower"), [(1.9, 1.0), (0.5, 1.0), (2.6, 2.6)])
def test_speed_is_mended_only_where_it_matters(seen: float, slower: float):
    c = serving(1, 2)
    c.handle(SpeedSeen(1, seen), 1)
    assert c.members[1].slower == slower


def test_a_node_that_recovered_its_speed_counts_as_measured():
    c = serving(1, 2)
    c.handle(SpeedSeen(1, 3.0), 1)
    assert c.handle(SpeedSeen(1, 3.3), 2) == []
    c.handle(SpeedSeen(1, 1.1), 3)
    assert c.members[1].slower == 1.0


def test_the_unknown_is_neither_slow_nor_drained():
    c = serving(1, 2)
    assert c.handle(SpeedSeen(9, 3.0), 1) == c.handle(DrainAsked(9), 1) == []


# Leaving in peace


def test_who_holds_no_layers_may_leave_at_once():
    c = serving(1, 2, 3)
    assert orders(c.handle(DrainAsked(3), 0)) == [Dismiss(3, "it holds no layers; it may leave")]


def test_a_node_is_drained_while_the_route_serves_on():
    c = serving(1, 2, 3)
    out = c.handle(DrainAsked(2), 0)
    assert loads(out) == {1: (0, 2), 3: (2, 4)}
    assert (c.state, only(out, Cut)) == (SERVING, [])
    assert "draining" in c.described(2, 0)
    assert planner(c).beside == [True]
    assert only(finish(c), Dismiss) == [Dismiss(2, "its layers have been moved; it may leave")]


def test_asking_twice_is_asking_once():
    c = serving(1, 2, 3)
    c.handle(DrainAsked(2), 0)
    assert c.handle(DrainAsked(2), 0) == []


def test_who_leaves_in_peace_is_not_held_off():
    c = serving(1, 2, 3)
    for node in (3, 4, 5):
        c.handle(Left(node, "it was drained", graceful=True), 0)
        c.handle(Joined(node + 1, 0, NodeProfile("n3", 1, 1.0, 1.0), "host", 3, "1"), 0)
    assert c.described(6, 0) == "idle, ready to take over"


def test_who_cannot_be_done_without_stays_and_that_is_said():
    c = serving(1, 2, alone=False)
    out = c.handle(DrainAsked(2), 0)
    assert "n2 cannot be drained: not enough memory" in reports(out)
    assert (orders(out), c.members[2].draining, c.state) == ([], False, SERVING)


def test_a_drain_overrides_a_move_that_counts_on_the_node():
    c = moving()
    out = c.handle(DrainAsked(1), 6)
    assert 1 not in loads(out)
    assert (c.epoch, c.state) == (3, SERVING)
    assert only(finish(c, 6), Dismiss) == [Dismiss(1, "its layers have been moved; it may leave")]


def test_a_drain_waits_for_a_route_that_is_being_opened():
    c = filling(1, 2, 3)
    assert orders(c.handle(DrainAsked(1), 0)) == []
    fill(c)
    assert loads(tick(c, 0.1)) == {3: (0, 2), 2: (2, 4)}


def test_who_is_being_drained_and_lost_is_only_lost():
    c = serving(1, 2, 3)
    c.handle(DrainAsked(2), 0)
    assert loads(c.handle(Left(2, "gone"), 0)) == {1: (0, 2), 3: (2, 4)}
    assert only(finish(c), Dismiss) == []


def test_who_is_being_drained_stays_when_the_others_are_lost():
    c = serving(1, 2)
    c.handle(DrainAsked(2), 0)
    out = c.handle(Left(1, "gone"), 0)
    assert "n2 cannot be drained" in reports(out)
    assert loads(out) == {2: (0, 4)}


def test_who_is_being_drained_may_leave_when_no_route_can_be_had_anyway():
    c = loading(1, 2)
    c.handle(DrainAsked(2), 0)
    assert only(c.handle(Left(1, "gone"), 0), Dismiss) == [Dismiss(2, "it holds no layers; it may leave")]


def test_who_is_needed_to_mend_a_broken_route_is_not_sent_home():
    """A route broke a moment ago: who was part of it holds keys and values still."""
    c = serving(1, 2, alone=False)
    c.handle(RouteBroken(1, "eof"), 1)
    assert only(c.handle(DrainAsked(2), 1.1), Dismiss) == []
    out = tick(c, 1.4)
    assert "n2 cannot be drained" in reports(out)
    assert set(loads(out)) == {1, 2}


# Silence


def test_a_node_is_suspected_after_half_the_silence():
    c = serving(1, 2)
    assert tick(c, 4, silent=[2]) == []
    out = tick(c, 4.5, silent=[2])
    assert (orders(out), reports(out)) == ([], "n2 has been silent for 4.5 s; it is given up at 8 s")
    assert tick(c, 5, silent=[2]) == []
    assert c.described(2, 5) == "silent for 5.0 s; given up at 8 s"


def test_who_is_heard_again_is_no_longer_suspected():
    c = serving(1, 2)
    tick(c, 5, silent=[2])
    assert reports(c.handle(Heard(2), 6)) == "n2 is heard again"
    tick(c, 13.5, silent=[1, 2])
    assert set(c.members) == {2}


def test_silence_is_a_loss_and_a_heartbeat_prevents_it():
    c = serving(1, 2)
    c.handle(Heard(1), 7)
    assert orders(c.handle(Tick(), 8)) == []
    out = c.handle(Tick(), 9)
    assert Refuse(2, "no heartbeat came", True) in out
    assert set(c.members) == {1}


def test_who_keeps_getting_lost_is_held_off():
    c = serving(1, 2, 3)
    for i in range(3):
        c.handle(Left(3 + i, "its connection ended"), i)
        c.handle(Joined(4 + i, 0, NodeProfile("n3", 1, 1.0, 1.0), "host", 3, "1"), i)
    assert c.described(6, 2) == "held off for 4 s: it was lost 3 times"
    assert loads(c.handle(Left(1, "gone"), 2)) == {2: (0, 4)}


def test_who_was_held_off_comes_back():
    c = serving(1, 2, alone=False)
    for i in range(2):
        c.handle(Left(2 + i, "gone"), 0)
        c.handle(Joined(3 + i, 0, NodeProfile("n2", 1, 1.0, 1.0), "host", 2, "1"), 0)
    assert (c.state, tick(c, 1)) == (WAITING, [])
    assert c.described(4, 1) == "held off for 1 s: it was lost 2 times"
    assert set(loads(tick(c, 2.1))) == {1, 4}


# Failures


def test_a_node_that_cannot_load_is_left_out_at_once_and_comes_back():
    c = loading(1, 2, 3)
    out = c.handle(StageFailed(1, 1, "no memory"), 0)
    assert set(loads(out)) == {2, 3}
    assert c.described(1, 5) == "failed: no memory; tried again in 10 s"
    finish(c)
    c.handle(Left(2, "gone"), 16)
    assert 1 in c.route


def test_a_node_that_cannot_load_a_better_split_leaves_the_old_one_serving():
    c = moving()
    out = c.handle(StageFailed(3, 2, "no memory"), 6)
    assert (orders(out), c.route, c.coming) == ([], [1, 2], None)
    assert c.members[3].failed


def test_a_link_that_fails_once_is_tried_again_with_the_same_nodes():
    c = linking(1, 2, 3)
    assert loads(c.handle(StageFailed(1, 1, "refused"), 0)) == {1: (0, 2), 2: (2, 4)}
    assert c.epoch == 2


def test_a_link_that_fails_again_and_again_is_taken_from_another_node():
    c = linking(1, 2, 3)
    out: list[Instruction] = []
    for _ in range(4):
        out = c.handle(StageFailed(1, c.epoch, "refused"), 0)
        load(c)
    assert c.members[1].failed == "refused"
    assert 1 not in loads(out)


def test_a_route_that_broke_with_no_one_lost_is_tried_again_as_it_was():
    c = serving(1, 2)
    out = c.handle(RouteBroken(1, "eof"), 1)
    assert orders(out) == [Cut(1, "eof")]
    assert c.confirming
    assert orders(tick(c, 1.2)) == []
    out = tick(c, 1.4)
    assert {i.node: i.keep for i in out if isinstance(i, LoadStage)} == {1: range(2), 2: range(2, 4)}
    (serve,) = only(finish(c, 2), Serve)
    assert isinstance(serve, Serve)
    assert (serve.epoch, serve.spans) == (2, ())


def test_a_loss_that_is_learnt_right_after_the_route_broke_is_mended_at_once():
    c = serving(1, 2, 3)
    c.handle(RouteBroken(1, "eof"), 1)
    assert loads(c.handle(Left(2, "gone"), 1.1)) == {1: (0, 2), 3: (2, 4)}


def test_who_joins_right_after_the_route_broke_does_not_preempt_the_loss():
    c = serving(1, 2)
    c.handle(RouteBroken(1, "eof"), 1)
    assert orders(c.handle(joined(3), 1.1)) == []


def broken_again_and_again(c: Cluster, times: int, now: float = 10) -> float:
    """Each time the route is filled, and breaks at once."""
    for _ in range(times):
        c.handle(RouteBroken(c.epoch, "a step failed"), now)
        while c.coming is None:
            tick(c, now := now + 0.5)
        finish(c, now)
    return now


def test_a_route_that_breaks_whenever_it_serves_is_not_tried_for_ever():
    """Its layers can be filled, so each time it serves for a moment."""
    c = serving(1, 2, 3)
    broken_again_and_again(c, 4)
    assert [n for n, m in c.members.items() if m.failed] != []


def test_routes_that_break_once_in_a_while_are_nobodys_fault():
    c, now = serving(1, 2, 3), 0.0
    for _ in range(8):
        now = broken_again_and_again(c, 1, now)
        tick(c, now := now + 100)
    assert [n for n, m in c.members.items() if m.failures] == []


def test_everyone_on_a_route_that_breaks_is_blamed_in_turn():
    """Who is at fault is not known; blaming the first one alone would never leave out the last."""
    c = serving(1, 2, 3)
    broken_again_and_again(c, 12)
    assert [m.failures for m in c.members.values()] == [1, 1, 1]


def test_nodes_that_are_lost_one_after_the_other_are_nobody_elses_fault():
    """As a rule the route is seen to break a moment before the node is seen to be gone."""
    c = serving(1, 2)
    for node in range(2, 8):
        c.handle(joined(node + 1), node)
        c.handle(RouteBroken(c.epoch, "eof"), node)
        c.handle(Left(node, "gone"), node + 0.1)
        finish(c, node + 0.2)
    assert [m.failures for m in c.members.values()] == [0, 0]


def test_one_more_failure_does_not_blame_the_next_node_at_once():
    c = linking(1, 2, 3)
    for _ in range(4):
        c.handle(StageFailed(1, c.epoch, "refused"), 0)
        load(c)
    c.handle(StageFailed(c.route[0], c.epoch, "refused"), 0)
    assert [n for n, m in c.members.items() if m.failed] == [1]


def test_a_node_that_served_again_is_no_longer_called_failed():
    c = loading(1, 2)
    c.handle(StageFailed(1, 1, "no memory"), 0)
    assert c.state == WAITING
    assert "n1 failed: no memory" in c.why
    tick(c, 15.5)
    finish(c, 16)
    assert c.described(1, 16) == "serving"


def test_who_fails_again_is_left_out_for_longer():
    c = loading(1, 2)
    waits: list[float] = []
    now = 0.0
    for _ in range(8):
        c.handle(StageFailed(1, c.epoch, "no memory"), now)
        waits.append(c.members[1].retry - now)
        tick(c, now := c.members[1].retry)
    assert waits == [15, 30, 60, 120, 240, 480, 600, 600]


# Deadlines


@pytest.mark.parametrize(("begin", "deadline"), [(loading, 1800.0), (linking, 20.0)])
def test_what_takes_too_long_is_begun_anew(begin: type, deadline: float):
    c = begin(1, 2)
    assert orders(tick(c, deadline)) == []
    assert set(loads(tick(c, deadline + 1))) == {1, 2}
    assert c.epoch == 2


def test_who_is_late_again_and_again_is_left_out():
    c, now = linking(1, 2, 3), 0.0
    for _ in range(4):
        c.handle(StageLinked(1, c.epoch), now)
        tick(c, now := now + 21)
        load(c, now)
    assert [n for n, m in c.members.items() if m.failed] == [2]
    assert c.route == [1, 3]


def test_a_pause_that_takes_too_long_becomes_a_cut():
    c = moving(PAUSING)
    out = tick(c, 37)
    assert [type(i) for i in only(out, Cut)] == [Cut]
    assert c.serving is None
    finish(c, 38)


def test_a_move_that_takes_too_long_to_load_is_given_up():
    c = moving()
    assert orders(tick(c, 1807)) == []
    assert (c.route, c.coming) == ([1, 2], None)


def test_a_node_that_was_linked_but_never_filled_rests_when_it_is_left_out():
    """It holds a KV pool: nothing of it is good, but its memory is taken."""
    c = linking(1, 2, 3)
    c.handle(Left(2, "gone"), 0)
    c.handle(joined(4), 0)
    planner(c).alone = True
    assert 1 in c.route
    c.handle(StageFailed(1, c.epoch, "no memory"), 0)
    assert 1 not in c.route
    assert RestStage(1, c.epoch) in load(c)


def test_nodes_that_fall_silent_together_are_not_asked_to_load():
    """_tick handles them one by one: the second one is still a member when the first one's route is replaced."""
    c = serving(1, 2, 3)
    c.handle(joined(4), 8.5)
    c.members[3].heard = 8.5
    out = c.handle(Tick(), 9)
    assert {i.node for i in out if isinstance(i, LoadStage)} == {3, 4}
    assert c.epoch == 2
