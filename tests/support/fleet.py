"""Nodes of a cluster as they really are, beside what its state machine believes of them.

Each node obeys, refuses or ignores what it is told, in the order in which it was told. It knows for itself which of its layers hold good
keys and values: those that it ran when the last route was filled, as far as every epoch that it entered since kept them. What the
cluster says of them is compared whenever it says it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

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
from shoal.membership.instructions import Cut, Dismiss, Instruction, LinkStage, LoadStage, Pause, RefuseNode, Report, RestStage, Serve
from shoal.membership.route_machine import SERVING
from shoal.placement.partition import Placement
from shoal.placement.profile import NodeProfile
from tests.support.membership import OnePipeline

Told = LoadStage | LinkStage | RestStage


@dataclass
class Node:
    id: int
    slot: int
    told: deque[Told] = field(default_factory=deque[Told])
    orders: dict[int, LoadStage] = field(default_factory=dict[int, LoadStage])
    good: set[int] = field(default_factory=set[int])
    pool: int = 0
    """Tokens; 0: it has none."""


class Fleet:
    def __init__(self, cluster: OnePipeline, slots: list[NodeProfile]) -> None:
        """slots: machines; each start of a node on one has an id of its own, and the same name and address."""
        self.cluster, self.slots = cluster, slots
        self.now = 0.0
        self.story: list[str] = []
        self.nodes: dict[int, Node] = {}
        """That run, whether they are members or not."""
        self.loaded: dict[int, set[int]] = {}
        """By epoch: the nodes that said so."""
        self.linked: dict[int, set[int]] = {}
        self.dismissed: set[int] = set()
        self.opened: Serve | None = None
        """The route that the head drives, or is about to."""
        self.filled = False
        self.pausing = False
        self._next = 1

    # What happens

    def handle(self, event: Event) -> None:
        epoch = self.cluster.pipeline.epoch
        self.story.append(f"{self.now:7.2f} {event}")
        out = self.cluster.handle(event, self.now)
        assert self.cluster.pipeline.epoch >= epoch, "an epoch came back"
        for instruction in out:
            self.story.append(f"          {instruction}")
            self._carry_out(instruction, epoch)
        self.check()

    def start(self, slot: int) -> None:
        node = Node(self._next, slot)
        self._next += 1
        for ghost in [n for n, other in self.nodes.items() if other.slot == slot]:
            del self.nodes[ghost]
        self.nodes[node.id] = node
        self.handle(Joined(node.id, node.id, self.slots[slot], "host", slot, self.cluster.members.version))

    def die(self, node: int, seen: bool) -> None:
        """seen: its connection ends; else it falls silent."""
        del self.nodes[node]
        if seen:
            self.handle(Left(node, "its connection ended"))

    def beat(self) -> None:
        for node in [*self.nodes]:
            self.handle(Heard(node))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.beat()
        self.handle(Tick())

    def drain(self, node: int) -> None:
        self.handle(DrainAsked(node))

    def slow(self, node: int, times: float) -> None:
        self.handle(SpeedSeen(node, times))

    def break_route(self) -> None:
        if self.opened is not None:
            epoch, self.opened = self.opened.epoch, None
            self.handle(RouteBroken(epoch, "eof"))

    # What the nodes do

    def obey(self, node: int) -> None:
        match self._next_order(node):
            case LoadStage(epoch=epoch) as order:
                self.nodes[node].orders[epoch] = order
                if epoch == max(self.nodes[node].orders):
                    self.loaded.setdefault(epoch, set()).add(node)
                    self.handle(StageLoaded(node, epoch, 5, "native"))
            case LinkStage(epoch=epoch):
                if epoch == max(self.nodes[node].orders):
                    self._enter(self.nodes[node], epoch)
                    self.linked.setdefault(epoch, set()).add(node)
                    self.handle(StageLinked(node, epoch))
            case RestStage():
                self.nodes[node].good, self.nodes[node].pool = set(), 0
            case None:
                pass

    def obey_all(self) -> None:
        for node in [*self.nodes]:
            while node in self.nodes and self.nodes[node].told:
                self.obey(node)

    def refuse(self, node: int) -> None:
        """It tries, and fails; a node always can rest."""
        match self._next_order(node):
            case LoadStage(epoch=epoch) as order:
                self.nodes[node].orders[epoch] = order
                self.handle(StageFailed(node, epoch, "no memory"))
            case LinkStage(epoch=epoch):
                if epoch == max(self.nodes[node].orders):
                    self._enter(self.nodes[node], epoch)
                    self.handle(StageFailed(node, epoch, "no link"))
            case RestStage():
                self.nodes[node].good, self.nodes[node].pool = set(), 0
            case None:
                pass

    def ignore(self, node: int) -> None:
        """The order is on record, but nothing comes of it."""
        if isinstance(order := self._next_order(node), LoadStage):
            self.nodes[node].orders[order.epoch] = order

    def _next_order(self, node: int) -> Told | None:
        told = self.nodes[node].told
        return told.popleft() if told else None

    @staticmethod
    def _enter(node: Node, epoch: int) -> None:
        order = node.orders[epoch]
        assert not order.keep or node.pool == order.kv_tokens, "it is to keep what lies in another pool"
        assert set(order.keep) <= node.good, "it is to keep what is not good"
        node.good &= set(order.keep)
        node.pool = order.kv_tokens

    # What the head does

    def drive(self) -> None:
        """Fills the route that was opened, or pauses it where that was asked for."""
        if self.opened is None:
            return
        if not self.filled:
            self.filled = True
            self._fill(self.opened.placement)
            self.handle(RouteFilled(self.opened.epoch))
        elif self.pausing:
            epoch, self.opened = self.opened.epoch, None
            self.handle(RoutePaused(epoch))

    def _fill(self, placement: Placement) -> None:
        """Steps run from here on: what takes no part in them is behind."""
        layers = {stage.node: set(range(stage.first, stage.end)) for stage in placement.stages}
        for node in self.nodes.values():
            node.good = layers.get(self.slots[node.slot].name, set())

    # What the cluster says

    def _carry_out(self, instruction: Instruction, before: int) -> None:
        match instruction:
            case LoadStage(node, epoch):
                assert before < epoch == self.cluster.pipeline.epoch, "a stage of an epoch that is no new one"
                self._tell(node, instruction)
            case LinkStage(node, epoch):
                assert self.cluster.pipeline.coming is not None and epoch == self.cluster.pipeline.coming.epoch
                assert self.loaded.get(epoch, set()) >= set(self.cluster.pipeline.coming.nodes), "linked before all have loaded"
                self._tell(node, instruction)
            case RestStage(node):
                assert node not in self.cluster.pipeline.route, "a stage is to rest"
                self._tell(node, instruction)
            case Serve():
                self._serve(instruction)
            case Pause(epoch):
                assert self.opened is not None and self.opened.epoch == epoch and self.filled
                self.pausing = True
            case Cut(epoch):
                if self.opened is not None and self.opened.epoch == epoch:
                    self.opened = None
            case Dismiss(node):
                assert node not in self.dismissed, "dismissed twice"
                assert node not in self.cluster.pipeline.route, "a stage is sent home"
                self.dismissed.add(node)
                self.nodes.pop(node, None)
                self.handle(Left(node, "it was sent home", graceful=True))
            case RefuseNode(node):
                assert node not in self.cluster.members
                self.nodes.pop(node, None)
            case Report(_, message):
                assert message

    def _tell(self, node: int, told: Told) -> None:
        assert node in self.cluster.members, "an instruction to a node that is no member"
        if node in self.nodes:
            self.nodes[node].told.append(told)

    def _serve(self, order: Serve) -> None:
        path = self.cluster.pipeline.coming
        assert path is not None and path.epoch == order.epoch and self.opened is None, "two routes at once"
        assert self.linked.get(order.epoch, set()) >= set(path.nodes), "opened before all are linked"
        refilled = {layer for first, end in order.spans for layer in range(first, end)}
        for node in path.nodes:
            if node in self.nodes:
                assert set(path.layers(node)) - refilled <= self.nodes[node].good, "a layer is called good that is not"
        self.opened, self.filled, self.pausing = order, False, False

    def check(self) -> None:
        pipeline = self.cluster.pipeline
        serving, coming = pipeline.serving, pipeline.coming
        if serving is not None and coming is not None:
            assert serving.epoch < coming.epoch
        for path in (serving, coming):
            if path is not None:
                assert set(path.nodes) <= pipeline.members.keys(), "a route of nodes that are no members"
                self._check_cover(path.placement)
        assert (serving is None and coming is None) == (pipeline.route == []) == (pipeline.placement is None)
        if serving is not None:
            assert self.opened is None or self.opened.epoch == serving.epoch, "another route is driven than the one that serves"

    def _check_cover(self, placement: Placement) -> None:
        at = 0
        for stage in placement.stages:
            assert stage.first == at < stage.end
            at = stage.end
        assert len({stage.node for stage in placement.stages}) == len(placement.stages)

    # From here on all is well

    def settle(self, done: Callable[[], bool], rounds: int = 500) -> bool:
        """All nodes obey, nobody dies and nothing breaks: whether it comes to what is wanted."""
        for _ in range(rounds):
            self.obey_all()
            self.drive()
            if done():
                return True
            self.tick(10)
        return False

    @property
    def serves(self) -> bool:
        pipeline = self.cluster.pipeline
        return pipeline.state == SERVING and pipeline.coming is None and not any(m.draining for m in pipeline.members.values())
