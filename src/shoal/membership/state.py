"""The cluster's state machine.

    waiting ──enough nodes──▶ loading ──all loaded──▶ linking ──all linked──▶ serving
       ▲                         │                      │                       │
       └──────── a stage was lost or failed, and memory or nodes no longer suffice ─┘   (else: loading again, next epoch)

Every attempt at a route is an epoch of its own; what belongs to an older one is dropped. A node that fails at a stage is left
out until it joins anew, so a broken one cannot make the cluster load for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal.errors import CapacityError
from shoal.membership.events import Event, Heard, Joined, Left, RouteBroken, StageFailed, StageLinked, StageLoaded, Tick
from shoal.membership.instructions import Abandon, Instruction, LinkStage, LoadStage, Refuse, Report, Serve, UnloadStage
from shoal.placement.partition import Placement
from shoal.placement.profile import NodeProfile

_LINK_TRIES = 3
WAITING, LOADING, LINKING, SERVING = "waiting", "loading", "linking", "serving"


@dataclass
class Member:
    joined: Joined
    heard: float
    failed: str = ""
    """Why it is left out of routes."""
    weight_bytes: int = 0
    runtime: str = ""


Placer = Callable[[list[NodeProfile]], Placement]
"""Splits the model over nodes; raises CapacityError."""


class Cluster:
    def __init__(self, version: str, min_nodes: int, placer: Placer, silence: float) -> None:
        """silence: seconds without a heartbeat after which a node counts as lost."""
        self.version = version
        self.min_nodes = min_nodes
        self.silence = silence
        self.state = WAITING
        self.why = f"0 of {min_nodes} nodes have joined"
        self.epoch = 0
        self.members: dict[int, Member] = {}
        self.route: list[int] = []
        self.placement: Placement | None = None
        self._placer = placer
        self._ready: set[int] = set()
        self._failures = 0  # since a route was last opened

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """What is to be done about an event. `now`: monotonic seconds."""
        match event:
            case Joined():
                return self._joined(event, now)
            case Left(node, reason):
                return self._left(node, reason)
            case Heard(node):
                if node in self.members:
                    self.members[node].heard = now
                return []
            case StageLoaded():
                return self._loaded(event)
            case StageLinked(node, epoch):
                return self._linked(node, epoch)
            case StageFailed(node, epoch, reason):
                return self._failed(node, epoch, reason)
            case RouteBroken(epoch, reason, opened):
                return self._route_broken(reason, opened) if epoch == self.epoch and self.state == SERVING else []
            case Tick():
                return self._tick(now)

    def _joined(self, event: Joined, now: float) -> list[Instruction]:
        if event.version != self.version:
            return [Refuse(event.node, f"this cluster runs shoal {self.version}, the node {event.version}; install the same version")]
        self.members[event.node] = Member(event, now)
        report = Report(f"{event.profile.name} joined from {event.host}")
        return [report, *(self._place() if self.state == WAITING else [])]

    def _left(self, node: int, reason: str) -> list[Instruction]:
        member = self.members.pop(node, None)
        if member is None:
            return []
        out: list[Instruction] = [Report(f"{member.joined.profile.name} left: {reason}")]
        return [*out, *(self._broken(f"node {member.joined.profile.name} left: {reason}") if node in self.route else [])]

    def _failed(self, node: int, epoch: int, reason: str) -> list[Instruction]:
        if epoch != self.epoch or node not in self.route:
            return []
        member = self.members[node]
        self._failures += 1
        # A link fails for its other end's sake as often as not; leave a node out for it only when it happens again and again.
        if self.state != LINKING or self._failures > _LINK_TRIES:
            member.failed = reason
        return self._broken(f"node {member.joined.profile.name} failed: {reason}")

    def _route_broken(self, reason: str, opened: bool) -> list[Instruction]:
        self._failures = 0 if opened else self._failures + 1
        if self._failures > _LINK_TRIES:
            self.members[self.route[0]].failed = f"the head cannot reach it: {reason}"
        return self._broken(reason)

    def _broken(self, reason: str) -> list[Instruction]:
        """Fences the route off and tries for another."""
        out: list[Instruction] = [Abandon(reason)] if self.state == SERVING else []
        out += [UnloadStage(n, self.epoch) for n in self.route if n in self.members]
        self.route, self.placement, self.state, self.why = [], None, WAITING, reason
        return [*out, Report(f"the route is lost: {reason}"), *self._place()]

    def _place(self) -> list[Instruction]:
        usable = {n: m for n, m in self.members.items() if not m.failed}
        if len(usable) < self.min_nodes:
            broken = "; ".join(f"{m.joined.profile.name} failed: {m.failed}" for m in self.members.values() if m.failed)
            self.why = f"{len(usable)} of {self.min_nodes} nodes have joined" + (f" ({broken})" if broken else "")
            return []
        try:
            placement = self._placer([m.joined.profile for m in usable.values()])
        except CapacityError as error:
            self.why = str(error)
            return [Report(self.why)]
        by_name = {m.joined.profile.name: n for n, m in usable.items()}
        self.epoch += 1
        self.state, self.why, self.placement = LOADING, "the model is being loaded", placement
        self.route = [by_name[stage.node] for stage in placement.stages]
        self._ready = set()
        return [
            LoadStage(node, self.epoch, i, len(self.route), stage.first, stage.end, placement.kv_tokens)
            for i, (node, stage) in enumerate(zip(self.route, placement.stages, strict=True))
        ]

    def _loaded(self, event: StageLoaded) -> list[Instruction]:
        if event.epoch != self.epoch or self.state != LOADING or event.node not in self.route:
            return []
        member = self.members[event.node]
        member.weight_bytes, member.runtime = event.weight_bytes, event.runtime
        self._ready.add(event.node)
        if len(self._ready) < len(self.route):
            return []
        self.state, self._ready = LINKING, set()
        following: list[int | None] = [*self.route[1:], None]
        return [LinkStage(node, self.epoch, after) for node, after in zip(self.route, following, strict=True)]

    def _linked(self, node: int, epoch: int) -> list[Instruction]:
        if epoch != self.epoch or self.state != LINKING or node not in self.route:
            return []
        self._ready.add(node)
        if len(self._ready) < len(self.route) or self.placement is None:
            return []
        self.state, self.why = SERVING, ""
        return [Serve(self.epoch, self.route[0], self.placement)]

    def _tick(self, now: float) -> list[Instruction]:
        silent = {n: m.joined.profile.name for n, m in self.members.items() if now - m.heard > self.silence}
        out: list[Instruction] = []
        for node, name in silent.items():  # all of them, before a new route is sought
            del self.members[node]
            out += [Refuse(node, "no heartbeat came"), Report(f"{name} left: nothing was heard from it for {self.silence:g} s")]
        lost = [name for node, name in silent.items() if node in self.route]
        return [*out, *(self._broken(f"nothing was heard from {', '.join(lost)} for {self.silence:g} s") if lost else [])]
