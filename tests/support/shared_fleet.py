"""Nodes of a cluster that serves several pipelines, as they really are, beside what its state machines believe of them.

Like tests.support.fleet, but a node has a part in any number of pipelines, and pipelines come and go. What all of them take of a
node's memory is counted after every event, by what is believed and by what the nodes really hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shoal.errors import CapacityError
from shoal.membership.events import (
    DrainAsked,
    Event,
    Heard,
    Joined,
    Left,
    MemoryCapped,
    RouteBroken,
    RouteFilled,
    RoutePaused,
    SpeedSeen,
    StageFailed,
    StageLinked,
    StageLoaded,
    Tick,
)
from shoal.membership.instructions import (
    Cut,
    Dismiss,
    DropModel,
    Instruction,
    LinkStage,
    LoadStage,
    Pause,
    RefuseNode,
    Report,
    RestStage,
    Serve,
)
from shoal.membership.path import Path
from shoal.membership.replica_groups import CopyNeed
from shoal.membership.route_machine import SERVING, RouteMachine
from shoal.membership.state import Cluster, Terms
from shoal.pipeline_id import PipelineId
from shoal.placement.moves import Moves
from shoal.placement.profile import NodeProfile

Told = LoadStage | LinkStage | RestStage | DropModel


@dataclass
class Share:
    """What a node has of one pipeline."""

    orders: dict[int, LoadStage] = field(default_factory=dict[int, LoadStage])
    weights: set[int] = field(default_factory=set[int])
    """Layers in memory."""
    running: range = range(0)
    """Layers of the epoch that it entered."""
    good: set[int] = field(default_factory=set[int])
    """Layers whose keys and values are good."""
    pool: int = 0
    """Tokens; 0: it has none."""

    @property
    def latest(self) -> int:
        return max(self.orders, default=0)


@dataclass
class Machine:
    id: int
    slot: int
    told: deque[Told] = field(default_factory=deque[Told])
    shares: dict[PipelineId, Share] = field(default_factory=dict[PipelineId, Share])
    latest: dict[PipelineId, int] = field(default_factory=dict[PipelineId, int])
    """The last epochs in which it was told to load something."""


@dataclass
class Drive:
    """What the head does for one pipeline."""

    opened: Serve | None = None
    """The route that it drives, or is about to."""
    filled: bool = False
    pausing: bool = False


class SharedFleet:
    def __init__(self, cluster: Cluster, slots: list[NodeProfile]) -> None:
        """slots: machines; each start of a node on one has an id of its own, and the same name and address."""
        self.cluster, self.slots = cluster, slots
        self.now = 0.0
        self.story: list[str] = []
        self.machines: dict[int, Machine] = {}
        """That run, whether they are members or not."""
        self.drives: dict[PipelineId, Drive] = {}
        self.planners: dict[PipelineId, Moves] = {}
        self.epochs: dict[int, PipelineId] = {}
        self.loaded: dict[int, set[int]] = {}
        """By epoch: the nodes that said so."""
        self.linked: dict[int, set[int]] = {}
        self.dismissed: set[int] = set()
        self.over: dict[int, int] = {}
        """Bytes by which what was there before its memory was limited exceeds the limit of a node."""
        self._closing: PipelineId | None = None
        self._leaving = set[int]()
        self._next = 1

    # What happens

    def handle(self, event: Event) -> None:
        if not isinstance(event, Heard):
            self.story.append(f"{self.now:7.2f} {event}")
        self._carry_out_all(self.cluster.handle(event, self.now))

    def open(self, id: PipelineId, moves: Moves, min_nodes: int = 1, pinned: frozenset[str] = frozenset(), priority: int = 0) -> None:
        self.story.append(f"{self.now:7.2f} open {id}")
        self.cluster.open(id, Terms(moves, min_nodes, CopyNeed.of(moves), pinned=pinned, priority=priority), self.now)
        self.drives[id], self.planners[id] = Drive(), moves
        self.check()

    def close(self, id: PipelineId) -> None:
        self.story.append(f"{self.now:7.2f} close {id}")
        out = self.cluster.close(id, "it is not wanted any more", self.now)
        self._closing = id
        self._carry_out_all(out)
        self._closing = None
        assert self.drives[id].opened is None, "a closed pipeline is still driven"
        del self.drives[id], self.planners[id]
        self.check()

    def _carry_out_all(self, out: list[Instruction]) -> None:
        self._leaving = {instruction.node for instruction in out if isinstance(instruction, Dismiss)}
        for instruction in out:
            self.story.append(f"          {instruction}")
            self._carry_out(instruction)
        if self._closing is None:
            self.check()

    def start(self, slot: int) -> None:
        machine = Machine(self._next, slot)
        self._next += 1
        for ghost in [n for n, other in self.machines.items() if other.slot == slot]:
            del self.machines[ghost]
        self.machines[machine.id] = machine
        self.handle(Joined(machine.id, machine.id, self.slots[slot], "host", slot, self.cluster.members.version))

    def die(self, node: int, seen: bool) -> None:
        """seen: its connection ends; else it falls silent."""
        del self.machines[node]
        if seen:
            self.handle(Left(node, "its connection ended"))

    def beat(self) -> None:
        for node in [*self.machines]:
            self.handle(Heard(node))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.beat()
        self.handle(Tick())

    def drain(self, node: int) -> None:
        self.handle(DrainAsked(node))

    def cap(self, node: int, memory: int | None) -> None:
        before = self._excess(node)
        self.handle(MemoryCapped(node, memory))
        if (member := self.cluster.members.get(node)) is not None and member.cap == memory and self._excess(node) > max(before, 0):
            assert any(pipeline.coming is not None for pipeline in self.cluster.pipelines.values()), "a limit that nothing comes of"

    def slow(self, node: int, times: float) -> None:
        self.handle(SpeedSeen(node, times))

    def break_route(self, id: PipelineId) -> None:
        if (opened := self.drives[id].opened) is not None:
            self.drives[id].opened = None
            self.handle(RouteBroken(opened.epoch, "eof"))

    # What the nodes do

    def obey(self, node: int) -> None:
        machine = self.machines[node]
        match self._next_order(node):
            case LoadStage(epoch=epoch) as order:
                share = self._ordered(machine, order)
                if epoch == share.latest:
                    share.weights = {*share.running, *range(order.first, order.end)}
                    self.loaded.setdefault(epoch, set()).add(node)
                    self.handle(StageLoaded(node, epoch, 5, "native"))
            case LinkStage(epoch=epoch):
                if self._enter(machine, epoch):
                    self.linked.setdefault(epoch, set()).add(node)
                    self.handle(StageLinked(node, epoch))
            case order:
                self._let_go(machine, order)

    def obey_all(self) -> None:
        for node in [*self.machines]:
            while node in self.machines and self.machines[node].told:
                self.obey(node)

    def refuse(self, node: int) -> None:
        """It tries, and fails; a node always can let go."""
        machine = self.machines[node]
        match self._next_order(node):
            case LoadStage(epoch=epoch) as order:
                self._ordered(machine, order)
                self.handle(StageFailed(node, epoch, "no memory"))
            case LinkStage(epoch=epoch):
                if self._enter(machine, epoch):
                    self.handle(StageFailed(node, epoch, "no link"))
            case order:
                self._let_go(machine, order)

    def ignore(self, node: int) -> None:
        """The order is on record, but nothing comes of it."""
        machine = self.machines[node]
        match self._next_order(node):
            case LoadStage() as order:
                self._ordered(machine, order)
            case LinkStage():
                pass
            case order:
                self._let_go(machine, order)

    def _next_order(self, node: int) -> Told | None:
        told = self.machines[node].told
        return told.popleft() if told else None

    def _ordered(self, machine: Machine, order: LoadStage) -> Share:
        share = machine.shares.setdefault(self.epochs[order.epoch], Share())
        share.orders[order.epoch] = order
        return share

    def _enter(self, machine: Machine, epoch: int) -> bool:
        """Whether it is the latest epoch of its pipeline."""
        share = machine.shares.get(self.epochs[epoch])
        if share is None or epoch != share.latest:
            return False
        order = share.orders[epoch]
        assert not order.keep or share.pool == order.kv_tokens, "it is to keep what lies in another pool"
        assert set(order.keep) <= share.good, "it is to keep what is not good"
        share.good &= set(order.keep)
        share.pool, share.running = order.kv_tokens, range(order.first, order.end)
        share.weights = set(share.running)
        return True

    def _let_go(self, machine: Machine, order: Told | None) -> None:
        match order:
            case RestStage(epoch=epoch):
                if (share := machine.shares.get(self.epochs[epoch])) is not None:
                    share.good, share.pool, share.running = set(), 0, range(0)
            case DropModel(_, id):
                machine.shares.pop(id, None)
            case _:
                pass

    # What the head does

    def drive(self, id: PipelineId) -> None:
        """Fills the route that was opened, or pauses it where that was asked for."""
        if id not in self.drives or (opened := self.drives[id].opened) is None:
            return
        drive = self.drives[id]
        if not drive.filled:
            drive.filled = True
            layers = {stage.node: set(range(stage.first, stage.end)) for stage in opened.placement.stages}
            for machine in self.machines.values():  # steps run from here on: what takes no part in them is behind
                if (share := machine.shares.get(id)) is not None:
                    share.good = layers.get(self.slots[machine.slot].name, set())
            self.handle(RouteFilled(opened.epoch))
        elif drive.pausing:
            drive.opened = None
            self.handle(RoutePaused(opened.epoch))

    def drive_all(self) -> None:
        for id in [*self.drives]:
            self.drive(id)

    # What the cluster says

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case LoadStage(_, epoch):
                if epoch not in self.epochs:
                    self._begin(epoch)
                self._tell(instruction)
            case LinkStage(_, epoch):
                coming = self._pipeline(epoch).coming
                assert coming is not None and epoch == coming.epoch
                assert self.loaded.get(epoch, set()) >= set(coming.nodes), "linked before all have loaded"
                self._tell(instruction)
            case RestStage(node, epoch):
                assert node not in self._pipeline(epoch).route, "a stage is to rest"
                self._tell(instruction)
            case DropModel(node, id):
                if id == self._closing:
                    assert id not in self.cluster.pipelines
                else:
                    needed = [path.epoch for path in _paths(self.cluster.pipelines[id])]
                    assert node not in self.machines or self.machines[node].latest.get(id) not in needed, "it is to drop what a route needs"
                self._tell(instruction)
            case Serve():
                self._serve(instruction)
            case Pause(epoch):
                drive = self.drives[self.epochs[epoch]]
                assert drive.opened is not None and drive.opened.epoch == epoch and drive.filled
                drive.pausing = True
            case Cut(epoch):
                drive = self.drives[self.epochs[epoch]]
                if drive.opened is not None and drive.opened.epoch == epoch:
                    drive.opened = None
            case Dismiss(node):
                assert node not in self.dismissed, "dismissed twice"
                assert not any(p.has_part(node) for p in self.cluster.pipelines.values()), "a node with a part is sent home"
                self.dismissed.add(node)
                self.machines.pop(node, None)
            case RefuseNode(node):
                assert node not in self.cluster.members
                self.machines.pop(node, None)
            case Report(_, message):
                assert message
            case _:
                raise AssertionError(f"nobody holds experts here: {instruction}")

    def _begin(self, epoch: int) -> None:
        assert epoch > max(self.epochs, default=0), "an epoch came back"
        id = self.cluster.owner(epoch)
        assert id is not None, "an epoch of no pipeline"
        coming = self.cluster.pipelines[id].coming
        assert coming is not None and coming.epoch == epoch, "an epoch of another pipeline"
        self.epochs[epoch] = id

    def _pipeline(self, epoch: int) -> RouteMachine:
        id = self.epochs[epoch]
        assert self.cluster.owner(epoch) == id
        return self.cluster.pipelines[id]

    def _tell(self, told: Told) -> None:
        assert told.node in self.cluster.members or told.node in self._leaving, "an instruction to a node that is no member"
        if told.node in self.machines:
            machine = self.machines[told.node]
            machine.told.append(told)
            if isinstance(told, LoadStage):
                machine.latest[self.epochs[told.epoch]] = told.epoch

    def _serve(self, order: Serve) -> None:
        pipeline, drive = self._pipeline(order.epoch), self.drives[self.epochs[order.epoch]]
        path = pipeline.coming
        assert path is not None and path.epoch == order.epoch and drive.opened is None, "two routes at once"
        assert self.linked.get(order.epoch, set()) >= set(path.nodes), "opened before all are linked"
        refilled = {layer for first, end in order.spans for layer in range(first, end)}
        for node in path.nodes:
            if node in self.machines:
                good = self.machines[node].shares[pipeline.id].good
                assert set(path.layers(node)) - refilled <= good, "a layer is called good that is not"
        drive.opened, drive.filled, drive.pausing = order, False, False

    # What must hold

    def check(self) -> None:
        cluster = self.cluster
        assert cluster.pipelines.keys() == self.drives.keys()
        for id, pipeline in cluster.pipelines.items():
            self._check_pipeline(id, pipeline)
        epochs = [path.epoch for pipeline in cluster.pipelines.values() for path in _paths(pipeline)]
        assert len(epochs) == len(set(epochs)), "two routes of one epoch"
        assert {id.model for id in cluster.pipelines} == cluster._groups.keys()
        assert set(cluster._pipeline_of.values()) <= cluster.pipelines.keys(), "an epoch of a closed pipeline"
        assert cluster._terms.keys() == cluster.pipelines.keys()
        self._check_copies()
        for node in cluster.members:
            self._check_memory(node)

    def _check_pipeline(self, id: PipelineId, pipeline: RouteMachine) -> None:
        serving, coming = pipeline.serving, pipeline.coming
        assert pipeline.holdings.keys() == cluster_members(self.cluster), "nodes of which a pipeline does not know"
        if serving is not None and coming is not None:
            assert serving.epoch < coming.epoch
        for path in _paths(pipeline):
            assert self.cluster.owner(path.epoch) == id, "a route whose epoch is not its pipeline's"
            assert set(path.nodes) <= pipeline.members.keys(), "a route of nodes that are no members"
            at = 0
            for stage in path.placement.stages:
                assert stage.first == at < stage.end
                at = stage.end
            assert at == len(self.planners[id].model.layers)
            assert len({stage.node for stage in path.placement.stages}) == len(path.placement.stages)
        opened = self.drives[id].opened
        if serving is not None:
            assert opened is None or opened.epoch == serving.epoch, "another route is driven than the one that serves"

    def _check_copies(self) -> None:
        """Copies of one model share no node."""
        at: dict[tuple[str, int], PipelineId] = {}
        for id, pipeline in self.cluster.pipelines.items():
            for path in _paths(pipeline):
                for node in path.members:
                    assert at.setdefault((id.model, node), id) == id, "two copies of one model share a node"

    def taken(self, node: int) -> int:
        """Bytes that all routes take of a member's memory, each alone."""
        name = self.cluster.members[node].name
        return sum(
            max((self.planners[id].takes(path.placement).get(name, 0) for path in _paths(pipeline)), default=0)
            for id, pipeline in self.cluster.pipelines.items()
        )

    def _excess(self, node: int) -> int:
        return 0 if node not in self.cluster.members else self.taken(node) - self.cluster.members[node].profile.memory

    def _check_memory(self, node: int) -> None:
        """What is more than a member offers was there before its memory was limited."""
        excess, allowed = self._excess(node), self.over.get(node, 0)
        if excess > 0 and node not in self.over:
            assert self.cluster.members[node].cap is not None, f"the routes take {excess} bytes too much of node {node}"
            physical = self.cluster.members[node].joined.profile.memory
            assert self.taken(node) <= physical, f"the routes take more of node {node} than it has"
            self.over[node] = excess
        elif excess > allowed:
            self.over[node] = excess
        elif excess <= 0:
            self.over.pop(node, None)

    def held(self, node: int) -> int:
        """Bytes that a node really holds, but for what it loaded for moves that were given up."""
        total = 0
        for id, share in self.machines[node].shares.items():
            if id not in self.planners:
                continue
            model = self.planners[id].model
            weights = set(share.running) or share.weights
            total += sum(model.layers[layer].held_bytes for layer in weights)
            total += model.head.size if len(model.layers) - 1 in weights else 0
            if share.pool:
                total += model.workspace + sum(model.layers[layer].kv_bytes for layer in share.running) * share.pool
        return total

    # From here on all is well

    def settle(self, rounds: int = 400) -> None:
        """All nodes obey, nobody dies and nothing breaks, until nothing changes any more."""
        quiet = 0
        for _ in range(rounds):
            before = self._state()
            self.obey_all()
            self.drive_all()
            self.tick(5 if quiet < 5 else 70)
            quiet = quiet + 1 if self._state() == before else 0
            if quiet > 40:  # a node may be left out for ten minutes, and load for half an hour
                return
        raise AssertionError("it never comes to rest")

    def _state(self) -> object:
        told = [(n, len(machine.told)) for n, machine in self.machines.items()]
        return (
            told,
            [(id, p.state, [path.epoch for path in _paths(p)]) for id, p in self.cluster.pipelines.items()],
            [*self.cluster.members],
        )

    def check_rest(self) -> None:
        """What must hold once all is well and nothing changes any more."""
        members = self.cluster.members
        assert not any(member.draining for member in members.values()), "a node that is to leave never does"
        for id, pipeline in self.cluster.pipelines.items():
            assert pipeline.coming is None, f"{id} is being moved for ever"
            assert pipeline.state == SERVING or not self.suffices(id), f"{id} does not serve, and could: {pipeline.why}"
            if pipeline.state != SERVING:
                assert pipeline.why
        for node, machine in self.machines.items():
            if node in members:
                stuck = any(pipeline._stuck and pipeline.has_part(node) for pipeline in self.cluster.pipelines.values())
                assert stuck or self._excess(node) <= 0, f"node {node} holds more than it may"
                assert self.held(node) <= self.slots[machine.slot].memory, f"node {node} holds more than it has"
                assert machine.shares.keys() <= self.cluster.pipelines.keys(), "a node keeps what belongs to a closed pipeline"

    def suffices(self, id: PipelineId) -> bool:
        """Whether a pipeline could be placed beside the others as they are, on nodes that no other copy of its model uses."""
        pipeline, terms = self.cluster.pipelines[id], self.cluster._terms[id]
        if pipeline._base is None and len(self.cluster.members) < terms.min_nodes:
            return False
        profiles = [
            replace(member.profile, memory=max(member.profile.memory - self.taken(node), 0))
            for node, member in self.cluster.members.items()
            if (not terms.pinned or member.name in terms.pinned) and not self._of_another_copy(id, node)
        ]
        try:
            self.planners[id].first(profiles, {})
        except CapacityError:
            return False
        return True

    def _of_another_copy(self, id: PipelineId, node: int) -> bool:
        return any(p.has_part(node) for other, p in self.cluster.pipelines.items() if other.model == id.model and other != id)


def cluster_members(cluster: Cluster) -> object:
    return cluster.members.keys()


def _paths(pipeline: RouteMachine) -> list[Path]:
    return [path for path in (pipeline.serving, pipeline.coming) if path is not None]


def profiles(memories: Mapping[str, int]) -> list[NodeProfile]:
    """By name, bytes."""
    return [NodeProfile(name, memory, (5 + 5 * i) * 1e9, 1e12) for i, (name, memory) in enumerate(memories.items())]
