"""The cluster's state: nodes that come and go, and the routes over which they serve a model.

Pure: it is given what happens and returns what to do. Nodes are the affair of membership.members, routes that of
membership.route_machine; here is what concerns both.
"""

from __future__ import annotations

from shoal.errors import CapacityError
from shoal.membership import events
from shoal.membership.admission import AdmissionRules
from shoal.membership.instructions import Dismiss, Instruction, RefuseNode, Report
from shoal.membership.members import Members
from shoal.membership.planner import Planner
from shoal.membership.route_machine import RouteMachine
from shoal.membership.words import pace
from shoal.observed.event import EventKind
from shoal.sizes import human_bytes


class Cluster:
    def __init__(
        self,
        version: str,
        min_nodes: int,
        planner: Planner,
        silence: float,
        admission: AdmissionRules | None = None,
        degrade: bool = False,
    ) -> None:
        """See Members and RouteMachine."""
        self.members = Members(version, silence, admission or AdmissionRules())
        self.pipeline = RouteMachine(self.members, min_nodes, planner, self._dismiss, degrade)

    def handle(self, event: events.Event, now: float) -> list[Instruction]:
        """Returns what to do about an event. `now`: monotonic seconds."""
        match event:
            case events.Joined():
                return self._joined(event, now)
            case events.Left(node, reason, graceful):
                return self._gone({node: reason}, now, graceful)
            case events.Heard(node):
                return [*self.members.heard(node, now)]
            case events.DrainAsked(node):
                return self._drain(node, now)
            case events.MemoryCapped(node, memory):
                return self._cap(node, memory, now)
            case events.SpeedSeen(node, slower):
                return self._speed(node, slower, now)
            case events.Tick():
                return self._tick(now)
            case _:
                return self.pipeline.handle(event, now)

    def rename(self, node: int, name: str) -> None:
        """Call it with a name that no other member has."""
        member = self.members[node]
        self.pipeline.rename(member.name, name)
        member.rename(name)

    def _joined(self, event: events.Joined, now: float) -> list[Instruction]:
        ghosts = self.members.ghosts(event)
        if why := self.members.refusal(event, len(ghosts)):
            return [RefuseNode(event.node, why), Report(EventKind.REFUSED, f"{event.profile.name} was refused: {why}", event.profile.name)]
        out = self._gone(ghosts, now)
        return [*out, self.members.admit(event, now), *self.pipeline.joined(event.node, event.loaded, now)]

    def _gone(self, lost: dict[int, str], now: float, graceful: bool = False) -> list[Instruction]:
        """Nodes have left or are no longer heard. lost: the reason, by node."""
        gone = self.members.part(lost, now, graceful)
        if not gone:
            return []
        return [*gone.values(), *self.pipeline.lost(gone.keys(), "; ".join(told.message for told in gone.values()), now)]

    def _dismiss(self, reason: str, now: float) -> list[Instruction]:
        """Sends home the nodes that are being drained and are no part of a route; from then on they are not members."""
        home = [n for n, m in self.members.items() if m.draining and n not in self.pipeline.route and n not in self.pipeline.workers]
        return [*(Dismiss(node, reason) for node in home), *self._gone(dict.fromkeys(home, reason), now, graceful=True)]

    def _drain(self, node: int, now: float) -> list[Instruction]:
        if (member := self.members.get(node)) is None or member.draining:
            return []
        member.draining = True
        if not self.pipeline.needs(node):
            return self._dismiss("it holds no layers; it may leave", now)
        moved = self.pipeline.drained(now)
        return [Report(EventKind.DRAINING, f"{member.name} is to be drained", member.name), *moved]

    def _cap(self, node: int, memory: int | None, now: float) -> list[Instruction]:
        """Moves what does not fit any more; if it has nowhere to go, all stays as it was."""
        if (member := self.members.get(node)) is None:
            return []
        before, member.cap = member.cap, memory
        limit = "all of its memory" if memory is None else f"at most {human_bytes(memory)}"
        told = Report(EventKind.CAPPED, f"{member.name} may use {limit}", member.name, {} if memory is None else {"bytes": memory})
        try:
            return [told, *self.pipeline.limited(node, now)]
        except CapacityError as error:
            member.cap = before
            return [Report(EventKind.GIVEN_UP, f"the memory of {member.name} cannot be limited: {error}", member.name)]

    def _speed(self, node: int, slower: float, now: float) -> list[Instruction]:
        if (member := self.members.get(node)) is None or not member.mend(slower):
            return []
        return [pace(member, slower), *self.pipeline.improve(now)]

    def _tick(self, now: float) -> list[Instruction]:
        silent, told = self.members.listen(now)
        refused = [RefuseNode(node, "no heartbeat came", again=True) for node in silent]
        return [*told, *refused, *self._gone(silent, now), *self.pipeline.tick(now)]
