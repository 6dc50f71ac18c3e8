"""The cluster's state: nodes that come and go, and the pipelines that they serve.

Pure: it is given what happens and returns what to do. Nodes are the affair of membership.members, the routes of one pipeline that of
membership.route_machine, and which nodes serve which copy of a model that of membership.replica_groups; here is what concerns all of
them. A node may have a part in several pipelines: what each takes of its memory, the others do not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType

from shoal.errors import CapacityError
from shoal.membership import events
from shoal.membership.admission import AdmissionRules
from shoal.membership.holding import Holding
from shoal.membership.instructions import Dismiss, HoldExperts, Instruction, LoadStage, RefuseNode, Report
from shoal.membership.members import Members
from shoal.membership.planner import Planner
from shoal.membership.replica_groups import CopyNeed, ReplicaGroups
from shoal.membership.replica_room import CopyTerms, CopyThere, ReplicaRoom
from shoal.membership.route_machine import RouteMachine
from shoal.membership.words import pace
from shoal.observed.event import EventKind
from shoal.pipeline_id import PipelineId
from shoal.placement.profile import NodeProfile
from shoal.sizes import human_bytes

_EPOCHS = 1024  # the latest, of which it is known to which pipeline they belong


@dataclass(frozen=True)
class Terms:
    """How a pipeline is served."""

    planner: Planner
    min_nodes: int = 1
    """That must be there before the first route."""
    need: CopyNeed = CopyNeed()
    degrade: bool = False
    """See RouteMachine."""
    pinned: frozenset[str] = frozenset()
    """Names of the nodes that may serve it; empty: all."""
    priority: int = 0
    """Where memory is short, those of a higher one are placed first."""


class Cluster:
    def __init__(self, version: str, silence: float, admission: AdmissionRules | None = None) -> None:
        """See Members."""
        self.members = Members(version, silence, admission or AdmissionRules())
        self.pipelines: dict[PipelineId, RouteMachine] = {}
        """Those of the highest priority first."""
        self._terms: dict[PipelineId, Terms] = {}
        self._groups: dict[str, ReplicaGroups] = {}
        self._pipeline_of: dict[int, PipelineId] = {}
        """By epoch, of pipelines that are there."""
        self._epochs = 0
        self._arranged: tuple[object, ...] = ()
        """What the nodes were dealt to copies of models by last."""
        self.released = ""
        """Why nodes that are being drained and that no pipeline needs may go home; '': they wait."""

    # Pipelines

    def open(self, id: PipelineId, terms: Terms, now: float) -> RouteMachine:
        """Begins to serve one more pipeline. It looks for a route as soon as time passes, or a node joins."""
        pipeline = RouteMachine(id, self.members, terms.min_nodes, terms.planner, _Tenant(self, id), terms.degrade)
        pipeline.holdings = {node: Holding() for node in self.members}
        self.pipelines[id], self._terms[id] = pipeline, terms
        self.pipelines = dict(sorted(self.pipelines.items(), key=lambda item: -self._terms[item[0]].priority))
        self._groups.setdefault(id.model, ReplicaGroups(terms.need))
        self._arrange(now)
        return pipeline

    def close(self, id: PipelineId, reason: str, now: float) -> list[Instruction]:
        """Ends a pipeline. What it held is free for others."""
        out = self.pipelines.pop(id).close(reason, now)
        del self._terms[id]
        self._pipeline_of = {epoch: owner for epoch, owner in self._pipeline_of.items() if owner != id}
        if all(other.model != id.model for other in self.pipelines):
            del self._groups[id.model]
        self._arrange(now)
        self.released = "it holds no layers; it may leave"
        return self._freed(out, now)

    def hopeless(self, id: PipelineId, now: float) -> str:
        """Why a pipeline could not be placed even if no other took memory of its nodes; '' if it could."""
        nodes = [member.profile for node, member in self.members.available(now).items() if self._may_serve(id, node)]
        try:
            self._terms[id].planner.first(nodes, {})
        except CapacityError as error:
            return str(error)
        return ""

    def room(self, now: float, known: Mapping[str, CopyTerms] = MappingProxyType({})) -> ReplicaRoom:
        """Where more copies would run. known: terms of models without a pipeline."""
        nodes = {node: member.profile for node, member in self.members.available(now).items()}
        copies = [
            CopyThere(
                id,
                pipeline.placed,
                {node: size for node in nodes if (size := pipeline.takes(node))},
                frozenset(node for node in nodes if pipeline.needs(node)),
            )
            for id, pipeline in self.pipelines.items()
        ]
        own = {id.model: CopyTerms(terms.need, terms.pinned, dict(self._groups[id.model].replica_of)) for id, terms in self._terms.items()}
        return ReplicaRoom(nodes, copies, {**known, **own})

    def pinned(self, id: PipelineId) -> frozenset[str]:
        """Names of the nodes that may serve it; empty: all."""
        return self._terms[id].pinned

    def awaited(self, id: PipelineId) -> list[str]:
        """Names of the nodes that may serve it, and are not there."""
        return sorted(self.pinned(id) - {member.name for member in self.members.values()})

    def owner(self, epoch: int) -> PipelineId | None:
        """The pipeline of a route; None if that is gone."""
        return self._pipeline_of.get(epoch)

    def taken(self, id: PipelineId, node: int, waiting: bool) -> int | None:
        """See Tenancy."""
        if not self._may_serve(id, node):
            return None
        others = [pipeline for other, pipeline in self.pipelines.items() if other != id]
        if any(pipeline.id.model == id.model and pipeline.needs(node) for pipeline in others):
            return None  # until that copy has left it
        taken = sum(pipeline.takes(node) for pipeline in others)
        if not waiting:
            return taken
        free = max(self.members[node].profile.memory - taken, 0)
        want = self._terms[id].need.total
        wanted = want + sum(self._terms[p.id].need.total for p in others if not p.placed and self._may_serve(p.id, node))
        return taken + free - free * want // wanted if wanted else taken

    def barred(self, id: PipelineId, node: int) -> str:
        """See Tenancy."""
        name = self.members[node].name
        if not self._pinned(id, node):
            return f"{name} is none of the nodes that {id.model} is pinned to"
        other = next((other for other, p in self.pipelines.items() if other != id and other.model == id.model and p.needs(node)), None)
        return f"{name} runs {other}" if other is not None else f"{name} is for another copy of {id.model}"

    def crowded(self, node: int) -> bool:
        """See Tenancy."""
        member = self.members[node]
        return member.cap is not None and self._will_take(node) > member.profile.memory

    def _may_serve(self, id: PipelineId, node: int) -> bool:
        return self._pinned(id, node) and not self._for_other(id, node)

    def _pinned(self, id: PipelineId, node: int) -> bool:
        """Whether the settings allow a member to serve it."""
        pinned = self.pinned(id)
        return not pinned or self.members[node].name in pinned

    def _for_other(self, id: PipelineId, node: int) -> bool:
        """Whether a member was not dealt to this copy."""
        return self._divided(id.model) and self._groups[id.model].replica_of.get(node) != id.replica

    def _divided(self, model: str) -> bool:
        """Whether there are several copies of a model, or one is left of several."""
        return bool(self._groups[model].replica_of) or sum(id.model == model for id in self.pipelines) > 1

    def _arrange(self, now: float) -> None:
        """Deals the nodes to the copies of models that have several, once enough nodes are there."""
        self._arranged = self._occasion(now)
        available = self.members.available(now)
        for model, groups in self._groups.items():
            copies = sorted(id for id in self.pipelines if id.model == model)
            replicas = [id for id in copies if self.pipelines[id].placed or len(available) >= self._terms[id].min_nodes]
            if not self._divided(model) or not replicas:
                continue
            profiles = {n: self._free(n, m.profile, model) for n, m in available.items() if self._pinned(replicas[0], n)}
            serving = sorted(replicas, key=lambda id: self.pipelines[id].serving is None)
            parts = {id.replica: [n for n in self.members if self.pipelines[id].needs(n)] for id in replicas}
            running = {n: replica for replica, nodes in parts.items() if not any(map(self.crowded, nodes)) for n in nodes}
            groups.arrange([id.replica for id in serving], profiles, running)
            if len(copies) == 1:
                groups.replica_of.clear()  # all nodes are its own again

    def _occasion(self, now: float) -> tuple[object, ...]:
        """What nodes are dealt by: other values may be an occasion to deal them anew."""
        limits = ((node, member.cap) for node, member in self.members.available(now).items())
        routes = (path and path.epoch for pipeline in self.pipelines.values() for path in (pipeline.serving, pipeline.coming))
        return (*limits, *routes)

    def _free(self, node: int, profile: NodeProfile, model: str) -> NodeProfile:
        """With the memory that other models leave."""
        others = sum(pipeline.takes(node) for id, pipeline in self.pipelines.items() if id.model != model)
        return replace(profile, memory=max(profile.memory - others, 0))

    def new_epoch(self, id: PipelineId) -> int:
        self._epochs += 1
        self._pipeline_of[self._epochs] = id
        current = {path.epoch for pipeline in self.pipelines.values() for path in (pipeline.serving, pipeline.coming) if path is not None}
        for old in [*self._pipeline_of][:-_EPOCHS]:
            if old not in current:
                del self._pipeline_of[old]
        return self._epochs

    # Events

    def handle(self, event: events.Event, now: float) -> list[Instruction]:
        """Returns what to do about an event. `now`: monotonic seconds."""
        return self._freed(self._happened(event, now), now)

    def _happened(self, event: events.Event, now: float) -> list[Instruction]:
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
                if (id := self.owner(event.epoch)) is None:
                    return []
                return self._settled(self.pipelines[id].handle(event, now))

    def _settled(self, *parts: list[Instruction]) -> list[Instruction]:
        """Where a node is to load a part of one pipeline, it first drops what it keeps of others without need."""
        out: list[Instruction] = []
        for instruction in chain(*parts):
            if isinstance(instruction, LoadStage | HoldExperts):
                id = self.owner(instruction.epoch)
                out += chain(*(p.spare(instruction.node) for other, p in self.pipelines.items() if other != id))
            out.append(instruction)
        return out

    def rename(self, node: int, name: str) -> None:
        """Call it with a name that no other member has."""
        member = self.members[node]
        for pipeline in self.pipelines.values():
            pipeline.rename(member.name, name)
        for id, terms in self._terms.items():
            if member.name in terms.pinned:
                self._terms[id] = replace(terms, pinned=terms.pinned - {member.name} | {name})
        member.rename(name)

    def _joined(self, event: events.Joined, now: float) -> list[Instruction]:
        ghosts = self.members.ghosts(event)
        if why := self.members.refusal(event, len(ghosts)):
            return [RefuseNode(event.node, why), Report(EventKind.REFUSED, f"{event.profile.name} was refused: {why}", event.profile.name)]
        out = self._gone(ghosts, now)
        admitted = self.members.admit(event, now)
        self._arrange(now)
        for id, pipeline in self.pipelines.items():
            pipeline.admit(event.node, event.loaded.get(id))
        return [*out, admitted, *self._settled(*(pipeline.joined(now) for pipeline in self.pipelines.values()))]

    def _gone(self, lost: Mapping[int, str], now: float, graceful: bool = False) -> list[Instruction]:
        """Nodes have left or are no longer heard. lost: the reason, by node."""
        gone = self.members.part(lost, now, graceful)
        if not gone:
            return []
        self._arrange(now)
        for pipeline in self.pipelines.values():
            pipeline.forget(gone.keys())
        why = "; ".join(told.message for told in gone.values())
        return [*gone.values(), *self._settled(*(p.lost(gone.keys(), why, now) for p in self.pipelines.values()))]

    def _freed(self, out: list[Instruction], now: float) -> list[Instruction]:
        """Sends home the nodes that are being drained and that no pipeline needs, if any were released."""
        while self.released:
            reason, self.released = self.released, ""
            home = [n for n, m in self.members.items() if m.draining and not any(p.needs(n) for p in self.pipelines.values())]
            out = [*out, *(Dismiss(node, reason) for node in home), *self._gone(dict.fromkeys(home, reason), now, graceful=True)]
        return out

    def _drain(self, node: int, now: float) -> list[Instruction]:
        if (member := self.members.get(node)) is None or member.draining:
            return []
        member.draining = True
        needing = [pipeline for pipeline in self.pipelines.values() if pipeline.needs(node)]
        moved = self._settled(*(pipeline.drained(now) for pipeline in needing))
        if not any(pipeline.needs(node) for pipeline in needing):
            self.released = "it holds no layers; it may leave"
        told = [Report(EventKind.DRAINING, f"{member.name} is to be drained", member.name)] if needing else []
        return [*told, *moved]

    def _cap(self, node: int, memory: int | None, now: float) -> list[Instruction]:
        """Moves what does not fit any more; if it has nowhere to go, all stays as it was."""
        if (member := self.members.get(node)) is None:
            return []
        before, member.cap = member.cap, memory
        limit = "all of its memory" if memory is None else f"at most {human_bytes(memory)}"
        told = Report(EventKind.CAPPED, f"{member.name} may use {limit}", member.name, {} if memory is None else {"bytes": memory})
        try:
            return [told, *self._limited(node, now)]
        except CapacityError as error:
            member.cap = before
            return [Report(EventKind.GIVEN_UP, f"the memory of {member.name} cannot be limited: {error}", member.name)]

    def _limited(self, node: int, now: float) -> list[Instruction]:
        """Pipelines make room on the node one after another, until what is left fits. Raises CapacityError; then none has begun."""
        memory, having = self.members[node].profile.memory, [p for p in self.pipelines.values() if p.takes(node)]
        moving = [p for p in having if p.coming is not None and (p.serving is not None or p.will_take(node) > memory)]
        if moving:
            raise CapacityError("layers are being moved; try again when that is done")
        if self._will_take(node) <= memory:
            return self._settled(*(p.limited(node, now) for p in self.pipelines.values() if p not in having or len(having) == 1))
        out: list[list[Instruction]] = []
        why = CapacityError(f"what {' and '.join(str(p.id) for p in having)} have there does not fit into it, and not elsewhere")
        begun: list[RouteMachine] = []
        for pipeline in sorted(having, key=lambda p: -p.takes(node)):
            try:
                out.append(pipeline.limited(node, now))
            except CapacityError as error:
                if len(having) == 1:
                    raise
                why = error
                continue
            begun.append(pipeline)
            if self._will_take(node) <= memory or len(having) == 1:
                return self._settled(*out)
        for pipeline in begun:
            pipeline.stay(now)
        raise why

    def _will_take(self, node: int) -> int:
        return sum(pipeline.will_take(node) for pipeline in self.pipelines.values())

    def _speed(self, node: int, slower: float, now: float) -> list[Instruction]:
        if (member := self.members.get(node)) is None or not member.mend(slower):
            return []
        return [pace(member, slower), *self._settled(*(p.improve(now) for p in self.pipelines.values()))]

    def _tick(self, now: float) -> list[Instruction]:
        silent, told = self.members.listen(now)
        refused = [RefuseNode(node, "no heartbeat came", again=True) for node in silent]
        gone = self._gone(silent, now)
        if self._occasion(now) != self._arranged:
            self._arrange(now)
        return [*told, *refused, *gone, *self._settled(*(p.tick(now) for p in self.pipelines.values()))]


class _Tenant:
    """A membership.tenancy.Tenancy."""

    def __init__(self, cluster: Cluster, id: PipelineId) -> None:
        self._cluster, self._id = cluster, id

    def epoch(self) -> int:
        return self._cluster.new_epoch(self._id)

    def taken(self, node: int, waiting: bool) -> int | None:
        return self._cluster.taken(self._id, node, waiting)

    def barred(self, node: int) -> str:
        return self._cluster.barred(self._id, node)

    def awaited(self) -> list[str]:
        return self._cluster.awaited(self._id)

    def crowded(self, node: int) -> bool:
        return self._cluster.crowded(node)

    def release(self, reason: str) -> None:
        self._cluster.released = reason
