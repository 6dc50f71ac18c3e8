"""Conducts a cluster: hears the nodes, carries out what the state machine decides, keeps the requests' route open."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import structlog

from shoal import __version__
from shoal.address import is_wildcard, join_host_port
from shoal.config import HeadSettings, parse_bytes
from shoal.control import messages as control
from shoal.control.server import Conversation
from shoal.errors import ClusterError, NotReady, ProtocolError, ShoalError, StageLost
from shoal.membership import events, instructions
from shoal.membership.state import SERVING, WAITING, Admission, Cluster
from shoal.models.manifest import Manifest
from shoal.native import BLOCK_TOKENS
from shoal.node.interruption import Interruption
from shoal.node.links import Links, accept_link, greeted
from shoal.node.share import Share
from shoal.node.step_guess import step_guess
from shoal.node.world import World
from shoal.pipeline.driver import Driver
from shoal.pipeline.pace import Pace
from shoal.pipeline.route import Route
from shoal.pipeline.timing import StepTiming
from shoal.pipeline.token_stream import TokenStream
from shoal.placement.moves import Moves
from shoal.placement.partition import Placement
from shoal.placement.profile import Demand, Link, ModelCost, NodeProfile
from shoal.placement.profile import Links as Measured
from shoal.request import Request, TokenChunk
from shoal.scheduler.limits import Limits
from shoal.scheduler.scheduler import Scheduler
from shoal.transport.base import FrameStream
from shoal.wire.messages import Hello

log = structlog.get_logger()

_TICK = 0.1
_SILENCES = 8  # heartbeats that may be missing
_STORY = 200  # events that are remembered for people
_PEERS = 8  # that a node is told to fetch from
_OPENING = 10.0  # seconds in which the last stage must have connected


@dataclass(frozen=True)
class Served:
    """The model as the cluster sees it."""

    name: str
    reference: str
    """What nodes fetch it by."""
    cost: ModelCost
    context: int
    """Most tokens of a sequence."""


class Observer(Protocol):
    """Who counts."""

    def step(self, timing: StepTiming) -> None: ...
    def interruption(self, ended: Interruption) -> None: ...
    def heartbeat(self, node: str, heartbeat: control.Heartbeat) -> None: ...
    def gone(self, node: str) -> None: ...
    def drawn(self, chunks: list[TokenChunk]) -> None: ...


class _Opening:
    """The head's ends of a route that is being opened or driven."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.results: asyncio.Future[FrameStream] = asyncio.get_running_loop().create_future()
        """The last stage's link, once it has come."""
        self.over = asyncio.Event()


class Conductor:
    def __init__(self, settings: HeadSettings, model: Served, world: World, observer: Observer) -> None:
        self.settings, self.model = settings, model
        self.driver: Driver | None = None
        self._resumed: list[TokenStream] = []  # requests that began under another head; the first route takes them up
        self.story: deque[str] = deque(maxlen=_STORY)
        self.interruptions: deque[Interruption] = deque(maxlen=_STORY)
        self.changed = asyncio.Event()
        """Set whenever the state may have changed; who waits for it clears it."""
        self._world, self._observer = world, observer
        self._links = Links(world)
        self._share = Share()
        self._manifest: Manifest | None = None
        self._name = f"{world.rng.getrandbits(32):08x}"
        self._moves = Moves(model.cost, Demand.of(settings.lanes, settings.kv_tokens, model.context), settings.spread, settings.spares)
        admission = Admission(parse_bytes(settings.min_memory or "0"), settings.min_speed * 1e9, settings.max_nodes)
        self.cluster = Cluster(__version__, settings.min_nodes, self._moves, settings.heartbeat * _SILENCES, admission)
        self._conversations: dict[int, Conversation] = {}
        self._nodes: dict[Conversation, int] = {}
        self._machines: dict[int, control.Join] = {}
        self._reached: dict[str, Link] = {}
        self._probing: dict[Conversation, events.Joined] = {}
        self._next_node = 1
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._opening: _Opening | None = None
        self._pace = Pace()
        self._stopping = False
        self._stranded: float | None = None  # since when requests wait without a route in sight
        self._broke: Interruption | None = None

    # Life

    def offer(self, manifest: Manifest, files: Mapping[str, Path]) -> None:
        """Tells the nodes from now on what the model's files are, and hands out those of this machine. files: by hash."""
        self._manifest = manifest
        self._share.add(files)

    async def start(self) -> None:
        """Listens for nodes. Raises ConfigError."""
        host = self.settings.host
        self._door = await self._world.control_door(self, host, self.settings.control_port)
        self._results = await self._world.listen(host, 0, self._accept)
        self._spawn(self._tick())
        if self.settings.pace:
            self._spawn(self._keep_pace())

    async def stop(self, reason: str = "the head shut down") -> None:
        """Sends the nodes home, ends every request."""
        for conversation in self._conversations.values():
            conversation.say(control.HeadMessage(shutdown=control.Shutdown(reason=reason)))
        self._stopping = True
        self.refuse("the server is shutting down")
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._results.close()
        await self._door.stop()

    def refuse(self, reason: str) -> None:
        """Ends every request with that reason, and takes no more."""
        if self.driver is not None:
            self.driver.close(NotReady(reason))
        else:
            self._end_all(NotReady(reason))

    @property
    def control_port(self) -> int:
        return self._door.port

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the head failed unexpectedly", exc_info=error)

    async def _tick(self) -> None:
        """Time passes whatever fails: without it no silence would ever be noticed again."""
        said = ""
        while True:
            await asyncio.sleep(_TICK)
            try:
                self._ticked()
            except Exception as error:
                if (now := f"a look at the cluster failed unexpectedly: {error!r}") != said:  # not ten times a second
                    said = now
                    log.error("a look at the cluster failed unexpectedly; it is tried again", exc_info=error)
                    self._carry_out(instructions.Report(now))

    def _ticked(self) -> None:
        self._handle(events.Tick())
        self._strand()
        if self.driver is not None and self.driver.stalled() > self.settings.step_timeout:
            self.driver.cut(f"no result came for {self.settings.step_timeout:g} s")

    async def _keep_pace(self) -> None:
        """Lets the cluster know of stages that are slower than their nodes' measure promised."""
        while True:
            await asyncio.sleep(self.settings.pace)
            path, members = self.cluster.serving, self.cluster.members
            if path is None:
                continue
            parts = zip(path.nodes, path.placement.stages, strict=True)
            promised = [stage.weight_bytes / members[node].joined.profile.bytes_per_second for node, stage in parts]
            for node, slower in zip(path.nodes, self._pace.judge(promised) or (), strict=False):
                self._handle(events.SpeedSeen(node, slower))

    def _strand(self) -> None:
        """Requests wait for nodes to come, but not for ever."""
        driver, now = self.driver, self._world.now()
        waiting = len(self._resumed) if driver is None else driver.requests
        if not waiting or self.cluster.state != WAITING or self.cluster.confirming:
            self._stranded = None
            return
        self._stranded = now if self._stranded is None else self._stranded
        if now - self._stranded > self.settings.wait:
            self._stranded = None
            self._end_all(StageLost(f"no nodes came for {self.settings.wait:g} s: {self.cluster.why}"))

    def _end_all(self, error: ShoalError) -> None:
        """Ends every request, those too that wait for the first route."""
        if self.driver is not None:
            self.driver.end_all(error)
        for stream in self._resumed:
            stream.put(error)
        self._resumed.clear()

    # Requests

    @property
    def able(self) -> bool:
        """Whether a model is served, or will be again in moments."""
        return self.driver is not None and (self.cluster.state != WAITING or self.cluster.confirming)

    @property
    def serving(self) -> bool:
        return self.cluster.state == SERVING

    def submit(self, request: Request) -> TokenStream:
        """Raises NotReady, InvalidRequest, QueueFull."""
        return self.open_driver().submit(request)

    def take_up(self, stream: TokenStream) -> None:
        """Goes on with a request that began under another head, as soon as there is a route."""
        if self.driver is None:
            self._resumed.append(stream)
        else:
            self.driver.take_up(stream)

    def open_driver(self) -> Driver:
        """Raises NotReady."""
        if self.driver is None or not self.able:
            raise NotReady(f"no model is served now: {self.cluster.progress}")
        return self.driver

    # What the nodes say

    def heard(self, conversation: Conversation, message: control.NodeMessage) -> None:
        node = self._nodes.get(conversation)
        kind = message.WhichOneof("kind")
        if (joined := self._probing.get(conversation)) is not None:
            self._probed(conversation, joined, message)
            return
        if kind == "join":
            if node is None:
                self._join(conversation, message.join)
            return
        if node is None:
            return  # was refused
        self._handle(events.Heard(node))
        match kind:
            case "loaded":
                loaded = message.loaded
                del self._machines[node].shared[:]
                self._machines[node].shared.extend(loaded.shared)
                self._handle(events.StageLoaded(node, loaded.epoch, loaded.weight_bytes, loaded.runtime))
            case "linked":
                self._handle(events.StageLinked(node, message.linked.epoch))
            case "failed":
                self._handle(events.StageFailed(node, message.failed.epoch, message.failed.reason))
            case "leave":
                self._handle(events.DrainAsked(node))
                if (member := self.cluster.members.get(node)) is not None and not member.draining:
                    self._carry_out(instructions.Dismiss(node, "it leaves, though its layers have nowhere to go"))
            case "heartbeat":
                if (member := self.cluster.members.get(node)) is not None:
                    self._observer.heartbeat(member.name, message.heartbeat)
            case _:
                pass

    def _join(self, conversation: Conversation, join: control.Join) -> None:
        node = self._next_node
        self._next_node += 1
        host = join.tensor_host or conversation.host
        taken = {m.name for m in self.cluster.members.values() if (m.joined.host, m.joined.tensor_port) != (host, join.tensor_port)}
        taken |= {joined.profile.name for joined in self._probing.values()}
        name = next(n for n in (join.name, *(f"{join.name}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)
        self._conversations[node], self._nodes[conversation] = conversation, node
        join.name = name
        welcome = control.Welcome(node=node, name=name, cluster=self._name, heartbeat=self.settings.heartbeat)
        self._machines[node] = join
        profile = NodeProfile(name, join.memory, join.bytes_per_second, join.flops)
        same = (join.model, join.precision) == (self.model.reference, str(self.settings.precision))
        loaded = tuple(range(r.first, r.end) for r in join.loaded) if same else ()
        joined = events.Joined(node, join.incarnation, profile, host, join.tensor_port, join.version, loaded)
        if join.version != __version__:
            self._handle(joined)  # which refuses it
            return
        conversation.say(control.HeadMessage(welcome=welcome))
        conversation.say(control.HeadMessage(probe=control.Probe(host=self._seen_by(joined), port=self._results.port)))
        self._probing[conversation] = joined

    def _probed(self, conversation: Conversation, joined: events.Joined, message: control.NodeMessage) -> None:
        """A node is a member once its link is measured."""
        match message.WhichOneof("kind"):
            case "probed":
                del self._probing[conversation]
                probed = message.probed
                self._reached[joined.profile.name] = Link(max(probed.round_trip, 0) / 2, max(probed.bytes_per_second, 1.0))
                self._moves.links = Measured(self._reached)
                self._handle(joined)
            case "failed":
                del self._probing[conversation]
                self._carry_out(instructions.Refuse(joined.node, message.failed.reason, again=True))
            case "leave":
                self._carry_out(instructions.Dismiss(joined.node, "it holds no layers; it may leave"))
            case _:
                pass

    def hung_up(self, conversation: Conversation) -> None:
        node = self._nodes.pop(conversation, None)
        self._probing.pop(conversation, None)
        if node is not None:
            self._conversations.pop(node, None)
            self._handle(events.Left(node, "its connection ended"))
            self._forget(node)

    def _dismissed(self, node: int) -> None:
        """A node was sent home: it is no member any more, whatever it still says."""
        conversation = self._conversations.pop(node, None)
        if conversation is not None:
            self._nodes.pop(conversation, None)
            self._probing.pop(conversation, None)
            conversation.end()
        self._forget(node)

    def _forget(self, node: int) -> None:
        """What was known of a node, unless another one goes by its name now."""
        machine = self._machines.pop(node, None)
        if machine is not None and all(m.name != machine.name for n, m in self.cluster.members.items() if n != node):
            self._reached.pop(machine.name, None)
            self._observer.gone(machine.name)

    def dismiss(self, request: control.DismissRequest) -> control.DismissAnswer:
        """`shoal nodes drain` and `remove`."""
        found = [n for n, m in self.cluster.members.items() if m.name == request.name]
        if not found:
            known = ", ".join(m.name for m in self.cluster.members.values()) or "none"
            return control.DismissAnswer(message=f"there is no node '{request.name}' here; there are {known}")
        if not request.drain:
            self._carry_out(instructions.Dismiss(found[0], "it was removed"))
            return control.DismissAnswer(done=True, message=f"{request.name} was removed")
        self._handle(events.DrainAsked(found[0]))
        member = self.cluster.members.get(found[0])
        if member is not None and not member.draining:
            return control.DismissAnswer(message=self.story[-1] if self.story else "it cannot be drained")
        return control.DismissAnswer(done=True, message=f"{request.name} is being drained; `shoal nodes` shows when it has left")

    def describe(self) -> control.ClusterDescription:
        cluster, now = self.cluster, self._world.now()
        words = cluster.moving or cluster.why
        state = cluster.state + (f": {words}" if words else "")
        out = control.ClusterDescription(cluster=self._name, model=self.model.name, state=state, epoch=cluster.epoch, story=self.story)
        if self.driver is not None and self.driver.requests and cluster.state != SERVING:
            out.state += f"; {self.driver.requests} request(s) wait"
        for node, member in cluster.members.items():
            join = self._machines[node]
            described = control.NodeDescription(
                node=node,
                name=member.name,
                address=join_host_port(member.joined.host, member.joined.tensor_port),
                machine=join.machine,
                memory=join.memory,
                threads=join.threads,
                state=cluster.described(node, now),
                silence=now - member.heard,
            )
            if node in cluster.route and cluster.placement is not None:
                stage = cluster.placement.stages[cluster.route.index(node)]
                described.first_layer, described.end_layer = stage.first, stage.end
                described.weight_bytes, described.runtime = member.weight_bytes, member.runtime
            out.nodes.append(described)
        return out

    # What the state machine decides

    def _handle(self, event: events.Event) -> None:
        if self._stopping:
            return
        if self.driver is not None:
            self.cluster.tokens = self.driver.scheduler.computed
        for instruction in self.cluster.handle(event, self._world.now()):
            self._carry_out(instruction)
        self.changed.set()

    def _tell(self, node: int, message: control.HeadMessage) -> None:
        if (conversation := self._conversations.get(node)) is not None:
            conversation.say(message)

    def _carry_out(self, instruction: instructions.Instruction) -> None:
        match instruction:
            case instructions.Refuse(node, reason, again):
                self._tell(node, control.HeadMessage(refuse=control.Refuse(reason=reason, again=again)))
                self._dismissed(node)
            case instructions.Dismiss(node, reason):
                self._tell(node, control.HeadMessage(shutdown=control.Shutdown(reason=reason)))
                self._dismissed(node)
                self._handle(events.Left(node, reason, graceful=True))
            case instructions.LoadStage():
                self._tell(instruction.node, control.HeadMessage(load=self._order(instruction)))
                if self._broke is not None:
                    self._broke.placed = self._world.now()
            case instructions.LinkStage(node, epoch, after):
                if self._opening is None or self._opening.epoch != epoch:
                    self._close_opening()
                    self._opening = _Opening(epoch)
                    self._begin_interruption("layers are moved", self._world.now())
                    if self._broke is not None:
                        self._broke.loaded = self._world.now()
                host, port = self._reach(node, after)
                self._tell(node, control.HeadMessage(link=control.Link(epoch=epoch, host=host, port=port)))
            case instructions.RestStage(node, epoch):
                self._tell(node, control.HeadMessage(rest=control.Rest(epoch=epoch)))
            case instructions.Serve():
                self._spawn(self._serve(instruction))
            case instructions.Pause():
                self._begin_interruption("layers are moved", self._world.now())
                if self.driver is not None:
                    self.driver.pause()
            case instructions.Cut(epoch, reason):
                self._begin_interruption(reason, self._world.now())
                if self._opening is not None and self._opening.epoch == epoch:
                    self._close_opening()
                    if self.driver is not None:
                        self.driver.cut(reason)
            case instructions.Report(message):
                log.info(message)
                self.story.append(f"{datetime.now():%H:%M:%S} {message}")

    def _begin_interruption(self, reason: str, now: float) -> None:
        if self._broke is None and self.driver is not None:
            self._broke = Interruption(reason, now, placed=now)

    def _close_opening(self) -> None:
        if self._opening is not None:
            self._opening.over.set()
            self._opening.results.cancel()
            self._opening = None

    def _order(self, order: instructions.LoadStage) -> control.Load:
        settings = self.settings
        load = control.Load(
            epoch=order.epoch,
            model=self.model.reference,
            stage=order.stage,
            stages=order.stages,
            first_layer=order.first,
            end_layer=order.end,
            blocks=_blocks(order.kv_tokens),
            precision=str(settings.precision),
            kv_type=str(settings.kv_type),
            codec=str(settings.activations),
            keep_first=order.keep.start,
            keep_end=order.keep.stop,
            layers=self.model.cost.layers,
        )
        if self._manifest is not None:
            load.files.extend(control.ModelFile(name=f.name, size=f.size, sha256=f.sha256) for f in self._manifest.files)
            load.peers.extend(islice(self._peers(order.node, {f.sha256: i for i, f in enumerate(self._manifest.files)}), _PEERS))
        return load

    def _peers(self, node: int, indexes: Mapping[str, int]) -> Iterator[control.Peer]:
        """Who can hand a node which files: the head, then the nodes after it in a circle, so that each begins elsewhere."""
        members = self.cluster.members
        if own := [indexes[sha256] for sha256 in self._share.files if sha256 in indexes]:
            yield control.Peer(host=self._seen_by(members[node].joined), port=self._results.port, files=own, head=True)
        for other in sorted(members.keys() & self._machines.keys() - {node}, key=lambda n: (n < node, n)):
            if shared := [indexes[sha256] for sha256 in self._machines[other].shared if sha256 in indexes]:
                yield control.Peer(host=members[other].joined.host, port=members[other].joined.tensor_port, files=shared)

    def _reach(self, node: int, after: int | None) -> tuple[str, int]:
        """Where a node finds the stage after it; the head's own address as that node sees it, after the last."""
        if after is not None:
            joined = self.cluster.members[after].joined
            return joined.host, joined.tensor_port
        return self._seen_by(self.cluster.members[node].joined), self._results.port

    def _seen_by(self, joined: events.Joined) -> str:
        """The head's address as a node sees it."""
        host = self.settings.host
        return self._world.facing(joined.host, joined.tensor_port) if is_wildcard(host) else host

    # The route

    async def _accept(self, stream: FrameStream) -> None:
        """The last stage's link to the head."""
        try:
            greeting = await greeted(stream, self._share)
            opening, placement = self._opening, self.cluster.placement
            wanted = opening is not None and placement is not None and not opening.results.done()
            stages = len(placement.stages) if wanted and placement is not None else -1
            await accept_link(stream, greeting, opening.epoch if opening else 0, self._name, stages, "head")
        except EOFError:
            return
        except (OSError, ProtocolError) as error:
            log.warning("a link was refused or broken", peer=stream.peer, reason=str(error) or type(error).__name__)
            return
        assert opening is not None  # no greeting fits stage -1
        if opening.results.done():
            return  # it was given up meanwhile
        opening.results.set_result(stream)
        await opening.over.wait()

    async def _serve(self, order: instructions.Serve) -> None:
        """Opens the route and drives it until it breaks or is paused."""
        opening = self._opening
        if opening is None or opening.epoch != order.epoch:
            return  # it was given up already
        joined = self.cluster.members[order.first].joined
        first: FrameStream | None = None
        try:
            first = await self._links.open(joined.host, joined.tensor_port, order.epoch, Hello(__version__, self._name, "head", 0))
            async with asyncio.timeout(_OPENING):
                await asyncio.wait({opening.results})
            if opening.over.is_set():
                raise StageLost("it was given up while it was opened")
            driver = self._fit_driver(order.placement)
            if self._broke is not None:
                self._broke.linked = self._world.now()
            route = Route(order.epoch, first, opening.results.result())
            await driver.drive(route, list(order.spans), lambda tokens: self._filled(order.epoch, tokens))
            self._handle(events.RoutePaused(order.epoch))
        except (StageLost, OSError, EOFError, ProtocolError) as error:
            self._handle(events.RouteBroken(order.epoch, str(error) or type(error).__name__))
        except Exception as error:
            log.error("the route failed unexpectedly", exc_info=error)
            self._handle(events.RouteBroken(order.epoch, f"unexpected: {error!r}"))
        finally:
            opening.over.set()
            if first is not None:
                first.abort()

    def _fit_driver(self, placement: Placement) -> Driver:
        """The driver, its scheduler fitted to a route."""
        settings, depth = self.settings, len(placement.stages)
        limits = Limits(
            blocks=_blocks(placement.kv_tokens),
            block_tokens=BLOCK_TOKENS,
            context=self.model.context,
            lanes=settings.lanes,
            step_tokens=settings.step_tokens,
            queue=settings.queue,
            depth=depth,
            wait=settings.prompt_wait,
        )
        if self.driver is None:
            self.driver = Driver(Scheduler(limits), self._step, self._observer.drawn, self._world.now)
            for stream in self._resumed:
                self.driver.take_up(stream)
            self._resumed.clear()
        elif self.driver.scheduler.limits.blocks == limits.blocks:
            self.driver.scheduler.deepen(depth)
        else:
            self.driver.restart(limits)
        self.driver.scheduler.cost = step_guess(self.model.cost, placement, Measured(self._reached))
        return self.driver

    def _filled(self, epoch: int, tokens: int) -> None:
        self._pace = Pace()
        if self._broke is not None:
            self._broke.filled, self._broke.tokens = self._world.now(), tokens
            if self.driver is None or not self.driver.requests:
                self._broke = None  # it interrupted nobody
        self._handle(events.RouteFilled(epoch))

    def _step(self, timing: StepTiming) -> None:
        self._observer.step(timing)
        self._pace.add(timing)
        if self._broke is not None and self._broke.filled and timing.sampled:
            self._broke.resumed = self._world.now()
            self.interruptions.append(self._broke)
            self._observer.interruption(self._broke)
            parts = {name: round(seconds, 3) for name, seconds in self._broke.parts().items()}
            log.info("streams go on", seconds=round(self._broke.resumed - self._broke.began, 3), refilled=self._broke.tokens, **parts)
            self._broke = None

    async def until_ready(self) -> None:
        """Waits until a model is served. Raises ClusterError where the nodes that joined cannot serve it."""
        while not self.serving:
            cluster = self.cluster
            if cluster.state == WAITING and len(cluster.members) >= self.settings.min_nodes and cluster.why and not cluster.confirming:
                raise ClusterError(cluster.why)
            self.changed.clear()
            await self.changed.wait()


def _blocks(kv_tokens: int) -> int:
    return max(kv_tokens // BLOCK_TOKENS, 2)
