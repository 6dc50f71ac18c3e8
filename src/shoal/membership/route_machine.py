"""The state machine of the routes over which one model is served.

At most one route serves and one is being prepared, each with its own epoch; anything that belongs to an older epoch is dropped
wherever it arrives.

    waiting ──nodes suffice──▶ loading ──all loaded──▶ linking ──all linked──▶ filling ──▶ serving
       ▲                          │  ▲                    ▲                                   │
       │                          │  └── a better split, a drain: loaded while it serves ─────┤
       │                          └────── pausing (the steps in flight end) ──▶ linking       │
       └──── nothing suffices ──── a node is lost, anywhere: fence, place again over the rest ┘

A node's keys and values are good for the layers that it ran when the last route was filled, as long as it has been part of
every route since: `Holding.filled`. All other layers are refilled before the next route serves. A node may run layers in one route
and hold experts in the next; what it held for the other part is freed when no route needs it any more.

A node that fails at a stage is left out for a while, and for longer each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from shoal.errors import CapacityError
from shoal.membership import events
from shoal.membership.faults import Faults, blame_one
from shoal.membership.holding import Holding
from shoal.membership.instructions import Cut, DropModel, Instruction, Pause, Report, RestStage
from shoal.membership.member import Member
from shoal.membership.members import Members
from shoal.membership.path import Path
from shoal.membership.planner import Planner
from shoal.membership.tenancy import Tenancy
from shoal.membership.words import condition, doing
from shoal.observed.event import EventKind
from shoal.pipeline_id import PipelineId
from shoal.placement.moves import Residency, overlap
from shoal.placement.partition import Placement
from shoal.placement.profile import NodeProfile
from shoal.sizes import human_bytes

WAITING, LOADING, PAUSING, LINKING, FILLING, SERVING = "waiting", "loading", "pausing", "linking", "filling", "serving"

_SOUND = 30.0  # seconds that a route must have served before earlier failures are forgotten
_CONFIRM = 0.3  # seconds to wait for news of the node whose loss broke a route, before the same route is tried again
_REST = 5.0  # seconds after a move before another unforced one
_DEADLINES = {LOADING: 1800.0, PAUSING: 30.0, LINKING: 20.0}  # seconds


class RouteMachine:
    def __init__(self, id: PipelineId, members: Members, min_nodes: int, planner: Planner, tenancy: Tenancy, degrade: bool = False) -> None:
        """min_nodes: that must be there before the first route. degrade: a route serves on without experts that nobody has, until another one
        has them."""
        self.id = id
        self.members = members
        self.min_nodes = min_nodes
        self.epoch = 0
        """Of the latest route; epochs are unique among all pipelines."""
        self.tokens = 0
        """Computed tokens of all sequences; the head keeps it up to date."""
        self.holdings: dict[int, Holding] = {}
        """Of every member."""
        self.serving: Path | None = None
        self.coming: Path | None = None
        self.why = f"0 of {min_nodes} nodes have joined"
        self.short = False
        """Whether there are nodes, and the model finds no room on them."""
        self._planner = planner
        self._tenancy = tenancy
        self._degrade = degrade
        self._phase = WAITING
        self._phase_began = 0.0
        self._base: Placement | None = None  # the placement by which the layers' keys and values are laid out
        self._ready: set[int] = set()
        self._faults = Faults()
        self._seek_at: float | None = None
        self._doubted: Path | None = None  # the route that broke, while the loss of its nodes is being confirmed, and why it broke
        self._broke = ""
        self._next_move = 0.0
        self._stuck = ""  # why what was to leave a node is still there, as it was told
        self._in_vain: tuple[object, ...] | None = None  # what was there when no placement was found last
        self._considered: tuple[int, tuple[tuple[int, float, int], ...]] | None = None

    # For people

    @property
    def state(self) -> str:
        if self.serving is not None:
            return SERVING
        return self._phase

    @property
    def confirming(self) -> bool:
        """Whether a route broke a moment ago and the cluster still waits to learn which nodes are lost."""
        return self._seek_at is not None

    @property
    def moving(self) -> str:
        """What is being prepared beside the route that serves, or ''."""
        return "" if self.serving is None or self.coming is None else f"layers are being moved ({self._phase})"

    @property
    def placement(self) -> Placement | None:
        """Of the route that serves, or is about to."""
        return None if (path := self.serving or self.coming) is None else path.placement

    @property
    def placed(self) -> bool:
        """Whether it has ever been placed, and so has its share of the nodes' memory."""
        return self._base is not None or self.coming is not None

    def takes(self, node: int) -> int:
        """Bytes of a member's memory."""
        return max((path.takes.get(node, 0) for path in self._wanted), default=0)

    def will_take(self, node: int) -> int:
        """The same, once the route in preparation serves."""
        return 0 if (path := self.coming or self.serving or self._doubted) is None else path.alone.get(node, 0)

    @property
    def _wanted(self) -> list[Path]:
        """Routes whose parts stay where they are: also one that broke a moment ago, for it may go on."""
        return [path for path in (self.serving, self.coming, self._doubted) if path is not None]

    @property
    def route(self) -> list[int]:
        return [] if (path := self.serving or self.coming) is None else list(path.nodes)

    @property
    def workers(self) -> list[int]:
        """Nodes of the route that hold experts and no layers."""
        return [] if (path := self.serving or self.coming) is None else list(path.workers)

    @property
    def _awaited(self) -> tuple[int, ...]:
        """Who has to be done before the route in preparation goes on."""
        return () if self.coming is None else self.coming.members if self._phase == LOADING else self.coming.nodes

    @property
    def progress(self) -> str:
        """Why no route serves, and how far the one in preparation has come; '' while one serves."""
        if self.serving is not None or self.coming is None or self._phase not in (LOADING, LINKING):
            return self.why
        late = [self.members[node].name for node in self._awaited if node not in self._ready and node in self.members]
        done = f"{len(self._ready)} of {len(self._awaited)} nodes are done"
        return f"{self.why}: {self._phase}, {done}" + (f", not yet {', '.join(late)}" if late else "")

    def _report(self, kind: EventKind, message: str, node: str = "", figures: Mapping[str, float] = MappingProxyType({})) -> Report:
        return Report(kind, message, node, figures, self.id)

    def _part(self, node: int) -> str:
        """What a member does in a route; '' if it has no part in one."""
        if self.serving is not None and node in self.serving.members:
            return SERVING
        return self._phase if self.coming is not None and node in self.coming.members else ""

    def condition(self, node: int, now: float) -> str:
        """The same as `described`, in a word for programs."""
        return condition(self.members[node], self.holdings[node], self._part(node), self.members.holdoff, now)

    def described(self, node: int, now: float) -> str:
        """What a member is doing, in words."""
        part = self._part(node)
        if part == SERVING and self.serving is not None and node in self.serving.workers:
            plan = self.serving.placement.workers[self.serving.workers.index(node)]
            part = f"serving {sum(map(len, plan.table))} experts"
        return doing(self.members[node], self.holdings[node], part, self.members.silence, self.members.holdoff, now)

    # Members

    def admit(self, node: int, loaded: tuple[range, ...] | None) -> None:
        """A node is a member now; `joined` comes next. loaded: layers of this model whose weights it holds; None: it has nothing of the model
        in memory."""
        self.holdings[node] = Holding(loaded or (), ordered=loaded is not None)

    def forget(self, gone: Set[int]) -> None:
        """Nodes are members no more; `lost` comes next."""
        for node in gone:
            del self.holdings[node]

    def joined(self, now: float) -> list[Instruction]:
        if self.serving is None and self.coming is None and self._seek_at is None:
            return self._seek(now)
        return self.improve(now)

    def lost(self, gone: Set[int], why: str, now: float) -> list[Instruction]:
        out: list[Instruction] = []
        if self.serving is not None and not gone.isdisjoint(self.serving.members):
            whole = self.serving.goes_on(self.members)
            if not whole and not (self._degrade and self.serving.stands(self.members)):
                return [*self._fence(why, now), *self._seek(now)]
            words = "other workers have its experts; streams go on" if whole else "streams go on without experts that nobody has"
            out.append(self._report(EventKind.RESUMED if whole else EventKind.DEGRADED, words))
            self._next_move = now  # to have each of them again, and twice if there is room
        if self.coming is not None and not gone.isdisjoint(self.coming.members):
            return [*out, *self._forsake(why, now)]
        if self._seek_at is not None:  # this is the loss that broke the route
            return [*out, *self._seek(now)]
        if self.serving is None and self.coming is None:
            self.why = self._shortage(now)
        return out

    def has_part(self, node: int) -> bool:
        return node in self.route or node in self.workers

    def needs(self, node: int) -> bool:
        """Whether it has a part in a route, or had one in the route that broke a moment ago."""
        return any(node in path.members for path in self._wanted)

    def drained(self, now: float) -> list[Instruction]:
        """One of its nodes is to be drained."""
        if self.serving is not None and self.coming is not None and self._phase == LOADING:
            self.coming = None  # the route in preparation relies on this node
            self._enter(SERVING, now)
        return self.improve(now)

    def limited(self, node: int, now: float) -> list[Instruction]:
        """A member may use more or less memory from now on. Raises CapacityError if what does not fit any more has nowhere to go."""
        if self.serving is None:
            return self._seek(now) if self.coming is None else []
        if node not in self.serving.members:
            return self.improve(now)
        return self._begin_other(self.capped(self.serving, node, self.members[node].cap, now)(), now)

    def stay(self, now: float) -> None:
        """What `limited` began is not wanted any more; nobody has been told of it."""
        if self.serving is not None and self.coming is not None:
            self.coming = None
            self._enter(SERVING, now)

    def rename(self, old: str, name: str) -> None:
        for path in (self.serving, self.coming):
            if path is not None:
                path.rename(old, name)
        if self._base is not None:
            base = Path(0, (), self._base)
            base.rename(old, name)
            self._base = base.placement

    # Events

    def handle(self, event: events.OfRoute, now: float) -> list[Instruction]:
        match event:
            case events.StageLoaded():
                return self._loaded(event, now)
            case events.StageLinked(node, epoch):
                return self._linked(node, epoch, now)
            case events.StageFailed(node, epoch, reason):
                return self._failed(node, epoch, reason, now)
            case events.RouteBroken(epoch, reason):
                return self._broken(epoch, reason, now)
            case events.RoutePaused(epoch):
                return self._paused(epoch, now)
            case events.RouteFilled(epoch):
                return self._filled(epoch, now)

    def _fence(self, reason: str, now: float) -> list[Instruction]:
        """Ends whatever serves or is about to; nothing from it is accepted any more."""
        out: list[Instruction] = []
        for path in (self.serving, self.coming):
            if path is not None and (path is self.serving or self._phase == FILLING):
                out.append(Cut(path.epoch, reason))
        if (path := self.serving or self.coming) is not None:
            out.append(self._report(EventKind.FENCED, f"the route of epoch {path.epoch} is lost: {reason}", figures={"epoch": path.epoch}))
        self.serving = self.coming = None
        self.why = reason
        self._enter(WAITING, now)
        return out

    def _forsake(self, reason: str, now: float) -> list[Instruction]:
        """Ends the route in preparation; the one that serves, if any, goes on."""
        if self.serving is None:
            return [*self._fence(reason, now), *self._seek(now)]
        pausing = self._phase == PAUSING
        self.coming = None
        self._next_move = now + _REST
        out: list[Instruction] = [self._report(EventKind.GIVEN_UP, f"a move of layers is given up: {reason}")]
        if pausing:  # the driver has stopped already: open the same route again
            return [*out, *self._fence(reason, now), *self._seek(now)]
        self._enter(SERVING, now)
        return out

    def _failed(self, node: int, epoch: int, reason: str, now: float) -> list[Instruction]:
        path = next((p for p in (self.coming, self.serving) if p is not None and p.epoch == epoch), None)
        if path is None or node not in path.members or node not in self.members:
            return []
        member = self.members[node]
        why = f"{member.name} failed: {reason}"
        told = self._report(EventKind.FAILED, why, member.name)
        if self._phase == LOADING and path is self.coming:
            self.holdings[node].blame(reason, now)
        elif node in path.nodes and self._faults.too_often():  # a failing link is as often as not the fault of its other end
            self._blame(path.nodes[path.nodes.index(node) :][:2], reason, now)
        if path is self.coming and self.serving is not None:
            return [told, *self._forsake(why, now)]
        return [told, *self._fence(why, now), *self._seek(now)]

    def _broken(self, epoch: int, reason: str, now: float) -> list[Instruction]:
        path = self.serving if self.serving is not None and self.serving.epoch == epoch else self.coming
        if path is None or path.epoch != epoch:
            return []
        out = self._fence(reason, now)
        self._seek_at, self._doubted, self._broke = now + _CONFIRM, path, reason
        return out

    def _unexplained(self, now: float) -> list[Instruction]:
        """A route broke, but no node was lost with it."""
        if self._faults.too_often() and self._doubted is not None:
            self._blame(self._doubted.nodes, f"the route breaks again and again: {self._broke}", now)
        return self._seek(now)

    def _blame(self, suspects: Sequence[int], reason: str, now: float) -> None:
        blame_one([self.holdings[n] for n in suspects if n in self.holdings], reason, now)

    # Routes

    def _sound(self, now: float) -> dict[int, Member]:
        """Nodes of which nothing speaks against a part in a route."""
        return {n: m for n, m in self.members.available(now).items() if self.holdings[n].usable(now)}

    def _usable(self, now: float) -> dict[int, Member]:
        return {n: m for n, m in self._sound(now).items() if self._tenancy.taken(n, waiting=False) is not None}

    def _profiles(self, nodes: Mapping[int, Member], waiting: bool = False) -> list[NodeProfile]:
        """With the memory that this pipeline may use. waiting: see Tenancy.taken."""
        out: list[NodeProfile] = []
        for node, member in nodes.items():
            profile, taken = member.profile, self._tenancy.taken(node, waiting) or 0
            out.append(replace(profile, memory=max(profile.memory - taken, 0)) if taken else profile)
        return out

    def _residencies(self) -> dict[str, Residency]:
        return {self.members[n].name: Residency(holding.loaded, holding.filled) for n, holding in self.holdings.items()}

    def _shortage(self, now: float) -> str:
        usable = self._sound(now)
        out = "; ".join(f"{m.name} {self.described(n, now)}" for n, m in self.members.items() if n not in usable)
        return f"{len(usable)} of {self.min_nodes} nodes have joined" + (f" ({out})" if out else "")

    def _seek(self, now: float) -> list[Instruction]:
        """Looks for a route when none serves."""
        self._seek_at = self._doubted = self._in_vain = None
        usable = self._usable(now)
        nodes = self._profiles(usable)
        if self._base is None and len(self._sound(now)) < self.min_nodes:
            self.why = self._shortage(now)
            self._tenancy.release("it holds no layers; it may leave")
            return []
        try:
            if not nodes and (words := [self._tenancy.barred(node) for node in self._sound(now)]):
                raise CapacityError(self._awaiting() or f"none of the nodes that have joined is meant for it: {', '.join(words)}")
            placement = self._sought(usable, now)
        except CapacityError as error:
            if leaving := self._wanted_back(usable, now):
                return [self.members.stop_draining(leaving, error), *self._seek(now)]
            self._tenancy.release("no route needs it; it may leave")
            self._in_vain = self._there(now) if nodes else None
            words = f"{error}{self._shared(usable)}"
            if nodes and (awaited := self._awaiting()):
                words += f"; {awaited}"
            if words == self.why:
                return []
            self.why, self.short = words, bool(nodes)
            return [self._report(EventKind.SHORT, self.why)]
        return self._begin(placement, now)

    def _there(self, now: float) -> tuple[object, ...]:
        """What a placement is sought by, where none serves."""
        return (*self._profiles(self._usable(now)), *(n for n, m in self.members.items() if m.draining))

    def _sought(self, nodes: Mapping[int, Member], now: float) -> Placement:
        """Over these nodes, where no route serves. Raises CapacityError."""
        profiles = self._profiles(nodes)
        if self._base is None:
            return self._first(profiles, self._profiles(nodes, waiting=True))
        if not profiles:
            raise CapacityError(self._shortage(now))
        return self._planner.recover(self._base, profiles, self._residencies(), self.tokens)

    def _wanted_back(self, usable: Mapping[int, Member], now: float) -> list[int]:
        """The nodes that are to be drained, if these do not suffice without them."""
        leaving = {n: m for n, m in self.members.items() if m.draining and self._tenancy.taken(n, waiting=False) is not None}
        if leaving:
            with suppress(CapacityError):
                self._sought({**usable, **leaving}, now)
                return [*leaving]
        return []

    def _shared(self, nodes: Mapping[int, Member]) -> str:
        """What others have of these nodes, for people."""
        taken = {m.name: taken for n, m in nodes.items() if (taken := self._tenancy.taken(n, waiting=False))}
        return f"; others have {', '.join(f'{human_bytes(size)} of {name}' for name, size in taken.items())}" if taken else ""

    def _awaiting(self) -> str:
        """Which nodes it is pinned to and are not there, for people; ''."""
        names = self._tenancy.awaited()
        return f"it waits for node{'s' * (len(names) > 1)} {' or '.join(names)}" if names else ""

    def _first(self, nodes: list[NodeProfile], sharing: list[NodeProfile]) -> Placement:
        """sharing: the nodes, as far as other pipelines that wait for their first route leave them. Raises CapacityError."""
        if sharing != nodes:
            with suppress(CapacityError):
                return self._planner.first(sharing, self._residencies())
        return self._planner.first(nodes, self._residencies())

    def _begin(self, placement: Placement, now: float) -> list[Instruction]:
        by_name = {m.name: n for n, m in self.members.items()}
        self.epoch, self.short = self._tenancy.epoch(), False
        workers = tuple(by_name[plan.node] for plan in placement.workers)
        path = Path(self.epoch, tuple(by_name[stage.node] for stage in placement.stages), placement, workers=workers)
        running = self.serving.running(self.members) if self.serving is not None else None
        path.takes = self._taken(placement, running)
        path.alone = self._taken(placement, None)
        for node in path.members:
            self.holdings[node].ordered = True
        # A pool of another size is allocated anew, and its contents are lost.
        same_pool = self._base is not None and self._base.kv_tokens == placement.kv_tokens
        path.keep = {n: overlap(path.layers(n), self.holdings[n].filled) if same_pool else range(0) for n in path.nodes}
        self.coming, self._ready = path, set()
        self._enter(LOADING, now)
        out: list[Instruction] = [self._report(EventKind.PLACED, f"epoch {self.epoch}: {path.layout}", figures={"epoch": self.epoch})]
        if self.serving is None:
            self.why = "the model is being loaded"
            out += self._relieve(path)
        return [*out, *path.load()]

    def _taken(self, placement: Placement, beside: Placement | None) -> dict[int, int]:
        """See Planner.takes; by member."""
        taken = self._planner.takes(placement, beside)
        return {node: taken[member.name] for node, member in self.members.items() if member.name in taken}

    def _relieve(self, path: Path) -> list[Instruction]:
        """Nodes that held layers and are to hold experts, or the other way round, make room, when no other route needs what they held."""
        out: list[Instruction] = []
        for node in path.members:
            holding = self.holdings[node]
            if node in path.workers and holding.loaded:
                holding.loaded, holding.filled = (), range(0)
                out.append(RestStage(node, path.epoch))
            elif node in path.nodes and holding.experts and not len(holding.filled):  # with keys and values it makes room when it enters
                holding.experts = False
                out.append(RestStage(node, path.epoch))
        return out

    def _loaded(self, event: events.StageLoaded, now: float) -> list[Instruction]:
        path = self.coming
        if path is None or event.epoch != path.epoch or self._phase != LOADING or event.node not in path.members:
            return []
        holding = self.holdings[event.node]
        holding.weight_bytes, holding.runtime = event.weight_bytes, event.runtime
        if event.node in path.nodes:
            holding.loaded = (*holding.loaded, path.layers(event.node))
        else:
            holding.experts = True
        self._ready.add(event.node)
        if len(self._ready) < len(path.members):
            return []
        if self.serving is None:
            return self._link(now)
        self._enter(PAUSING, now)
        return [Pause(self.serving.epoch)]

    def _paused(self, epoch: int, now: float) -> list[Instruction]:
        if self.serving is None or self.serving.epoch != epoch:
            return []
        self.serving = None
        if self.coming is not None and self._phase == PAUSING:
            self.why = "layers are being moved"
            return self._link(now)
        return [*self._fence("it was paused for nothing", now), *self._seek(now)]

    def _link(self, now: float) -> list[Instruction]:
        assert self.coming is not None
        path, self._base = self.coming, self.coming.placement
        out = self._relieve(path)
        for node, holding in self.holdings.items():
            if node not in path.members and holding.staged:
                out.append(RestStage(node, path.epoch))
            holding.staged = node in path.members
            holding.filled = path.keep.get(node, range(0))
            if node in path.nodes:
                holding.loaded, holding.experts = (path.layers(node),), False
        self._ready = set()
        self._enter(LINKING, now)
        return [*out, *path.link()]

    def _linked(self, node: int, epoch: int, now: float) -> list[Instruction]:
        path = self.coming
        if path is None or epoch != path.epoch or self._phase != LINKING or node not in path.nodes:
            return []
        self._ready.add(node)
        if len(self._ready) < len(path.nodes):
            return []
        self._enter(FILLING, now)
        return [path.serve()]

    def _filled(self, epoch: int, now: float) -> list[Instruction]:
        if self.coming is None or self.coming.epoch != epoch or self._phase != FILLING:
            return []
        self.serving, self.coming, self.why = self.coming, None, ""
        self.serving.takes = self.serving.alone
        for node in self.serving.nodes:
            self.holdings[node].filled = self.serving.layers(node)
        for node in self.serving.members:
            self.holdings[node].failed = ""
        self._enter(SERVING, now)
        self._next_move = now + _REST
        self._tenancy.release("its layers have been moved; it may leave")
        words = f"serving over {len(self.serving.nodes)} stage(s), epoch {epoch}"
        return [self._report(EventKind.SERVING, words, figures={"epoch": epoch})]

    def improve(self, now: float) -> list[Instruction]:
        """Looks for a better route while one serves."""
        if self.serving is None or self.coming is not None:
            return []
        usable = self._usable(now)
        nodes, here = self._profiles(usable), [n for n in self.serving.members if n in self.members]
        leaving = any(self.members[n].draining for n in here)
        forced = leaving or (now >= self._next_move and any(self._must_leave(n) for n in here))
        lacking = any(n not in self.members for n in self.serving.workers) and not self.serving.goes_on(self.members)
        try:
            if forced:
                self._next_move, away = now + _REST, self._away(nodes)
                self._stuck = ""
                return self._begin_other(away, now)
            if now < self._next_move or any(n not in usable for n in self.serving.nodes):
                return []
            considered = (self.serving.epoch, tuple((n, m.slower, p.memory) for (n, m), p in zip(usable.items(), nodes, strict=True)))
            if considered == self._considered:
                return []  # nothing has changed since the last look, and looking is expensive
            self._considered = considered
            if lacking:
                return self._begin(self._away(nodes), now)
            better = self._planner.improve(self.serving.running(self.members), nodes, self._residencies(), self.tokens)
        except CapacityError as error:
            self._next_move = now + _REST
            if lacking and not forced:
                return [self._report(EventKind.SHORT, f"nobody can take over the lost experts: {error}")]
            return self._stay(error, leaving)
        self._next_move = now + _REST
        return [] if better is None else [self._report(EventKind.RESPLIT, "a better split was found"), *self._begin(better, now)]

    def _away(self, nodes: list[NodeProfile]) -> Placement:
        """Of the running route, over these nodes. Raises CapacityError."""
        assert self.serving is not None
        return self._planner.recover(self.serving.running(self.members), nodes, self._residencies(), self.tokens, beside=True)

    def _begin_other(self, placement: Placement, now: float) -> list[Instruction]:
        """Moves to a placement, unless all layers and experts are where it has them, and take no more memory than it allows."""
        assert self.serving is not None
        running = self.serving.placement
        smaller = any(new.held_bytes < old.held_bytes for new, old in zip(placement.stages, running.stages, strict=False))
        if placement.holdings != running.holdings or placement.kv_tokens != running.kv_tokens or smaller:
            return self._begin(placement, now)
        self.serving.takes = self.serving.alone = self._taken(placement, None)  # experts need no more than they take
        return []

    def _must_leave(self, node: int) -> bool:
        """Whether a member's part is to be moved off it, or to be made smaller."""
        return self.members[node].draining or self._tenancy.taken(node, waiting=False) is None or self._tenancy.crowded(node)

    def _stay(self, why: CapacityError, leaving: bool) -> list[Instruction]:
        """What was to leave has nowhere to go."""
        if leaving:
            assert self.serving is not None
            return [self.members.stop_draining([n for n in self.serving.members if n in self.members and self.members[n].draining], why)]
        if str(why) == self._stuck:
            return []
        self._stuck = str(why)
        return [self._report(EventKind.GIVEN_UP, f"layers cannot be moved to the nodes that are meant for this pipeline: {why}")]

    def without(self, path: Path, node: int, now: float, beside: bool = True) -> Callable[[], Placement]:
        """What would come of draining a member of the path, as it is now, or of its loss, which serves nobody meanwhile (not `beside`).
        The result plans it, in any thread: for many nodes that takes seconds. It raises CapacityError."""
        return self._replan(path, self._profiles({n: m for n, m in self._usable(now).items() if n != node}), beside)

    def capped(self, path: Path, node: int, memory: int | None, now: float) -> Callable[[], Placement]:
        """Likewise, of a limit for the memory of a member; see MemoryCapped. Raises CapacityError itself while layers are being moved."""
        if self.coming is not None:
            raise CapacityError("layers are being moved; try again when that is done")
        members = {n: replace(m, cap=memory) if n == node else m for n, m in self._usable(now).items()}
        return self._replan(path, self._profiles(members), beside=True)

    def _replan(self, path: Path, nodes: list[NodeProfile], beside: bool) -> Callable[[], Placement]:
        return partial(self._planner.recover, path.running(self.members), nodes, self._residencies(), self.tokens, beside=beside)

    # The end

    def spare(self, node: int) -> list[Instruction]:
        """A node needs its memory for another pipeline: frees what it keeps of this one without a part in a route."""
        holding = self.holdings[node]
        if not holding.ordered or self.needs(node):
            return []
        self.holdings[node] = Holding(failed=holding.failed, failures=holding.failures, retry=holding.retry)
        return [DropModel(node, self.id)]

    def close(self, reason: str, now: float) -> list[Instruction]:
        """Ends the routes, and has the nodes free what they hold. Nothing may be asked of it after that."""
        out = self._fence(reason, now) if self.serving is not None or self.coming is not None else []
        return [*out, *(DropModel(node, self.id) for node, holding in self.holdings.items() if holding.ordered)]

    # Time

    def _enter(self, phase: str, now: float) -> None:
        self._phase, self._phase_began = phase, now

    def tick(self, now: float) -> list[Instruction]:
        if self._seek_at is not None:
            return self._unexplained(now) if now >= self._seek_at else []
        if self.coming is not None and now - self._phase_began > _DEADLINES.get(self._phase, float("inf")):
            late = [node for node in self._awaited if node not in self._ready and node in self.members]
            if self._faults.too_often():
                for node in late:
                    self.holdings[node].blame(f"{self._phase} took too long", now)
            return self._forsake(f"{self._phase} took too long ({', '.join(self.members[node].name for node in late)})", now)
        if self.serving is None and self.coming is None and self._sound(now):
            # A node that was held off may be back. Nothing else comes of another look, which takes long where there are many nodes.
            return [] if self._in_vain is not None and self._in_vain == self._there(now) else self._seek(now)
        if self._phase == SERVING and now - self._phase_began > _SOUND:
            self._faults.forget()
        return self.improve(now)
