"""Runs a cluster: listens to the nodes, carries out what the state machine decides, and keeps the requests' route open."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import structlog

from shoal import __version__
from shoal.config import HeadSettings, parse_bytes
from shoal.control import messages as control
from shoal.control.server import NodeConnection
from shoal.discovery.topology import MAX_NAME, RequestLoad, Topology
from shoal.errors import ClusterError, NotReady, ProtocolError, ShoalError, StageLost
from shoal.membership import events, instructions
from shoal.membership.admission import AdmissionRules
from shoal.membership.route_machine import SERVING, WAITING
from shoal.membership.state import Cluster
from shoal.models.manifest import Manifest
from shoal.native import BLOCK_TOKENS
from shoal.node.environment import Environment
from shoal.node.interruption import Interruption, Interruptions
from shoal.node.links import Links, accept_link, greeted
from shoal.node.live_topology import live_topology
from shoal.node.loads import Loads
from shoal.node.observer import Observer, Served
from shoal.node.opening import Opening
from shoal.node.operator import described
from shoal.node.orders import Orders, blocks_of
from shoal.node.requests import Requests
from shoal.node.roster import Roster
from shoal.node.share import Share
from shoal.node.step_guess import step_guess
from shoal.observed.computing import Computed, ComputeParts
from shoal.observed.event import EventKind
from shoal.pipeline.driver import Driver
from shoal.pipeline.route import Route
from shoal.pipeline.stragglers import StragglerDetector
from shoal.pipeline.timing import StepTiming
from shoal.pipeline.token_stream import TokenStream
from shoal.placement.expectation import Expectation, expect
from shoal.placement.moves import Moves
from shoal.placement.partition import Placement
from shoal.placement.profile import Demand, LinkSpeed, NodeProfile
from shoal.placement.profile import LinkSpeeds as Measured
from shoal.placement.roles import RoleMoves
from shoal.request import Request, RequestId, TokenChunk
from shoal.scheduler.limits import Limits
from shoal.sizes import human_bytes
from shoal.telemetry.recorder import Recorder
from shoal.transport.base import FrameStream
from shoal.wire.messages import Hello

log = structlog.get_logger()

_TICK = 0.1
_LINES = 200  # of the latest events, for `shoal nodes`
_SILENCES = 8  # heartbeats that may be missing
_OPENING = 10.0  # seconds within which the last stage must have connected


class Coordinator:
    def __init__(self, settings: HeadSettings, model: Served, environment: Environment, observer: Observer) -> None:
        self.settings, self.model = settings, model
        self.requests = Requests(
            lambda scheduler: Driver(scheduler, self._step, self._sampled, environment.now, self._request_failed, self._choice_ended)
        )
        self.recorder = Recorder(environment.now, time() - environment.now())
        self.changed = asyncio.Event()
        """Set whenever the state may have changed; whoever waits for it clears it."""
        self.loads = Loads()
        self._environment, self._observer = environment, observer
        self._links = Links(environment)
        self._share = Share()
        self.name = f"{environment.rng.getrandbits(32):08x}"
        self._moves = Moves(
            model.cost, Demand.of(settings.engine.slots, settings.engine.kv_tokens, model.context), settings.spread, settings.spares
        )
        admission = AdmissionRules(parse_bytes(settings.min_memory or "0"), settings.min_speed * 1e9, settings.max_nodes)
        self.use: dict[int, list[int]] = {}
        """Rows that each expert has computed, by layer."""
        self._planner = RoleMoves(self._moves, self.use)
        self.cluster = Cluster(
            __version__, settings.min_nodes, self._planner, settings.heartbeat * _SILENCES, admission, settings.engine.degrade
        )
        self.pipeline = self.cluster.pipeline
        self.roster = Roster()
        self._orders = Orders(settings.host, settings.engine, model, environment, self._share, self.cluster.members, self.roster.machines)
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._opening: Opening | None = None
        self._pace = StragglerDetector()
        self._stopping = False
        self._next_sample = 0.0
        self._stranded: float | None = None  # since when requests wait with no route in sight
        self._interruptions = Interruptions(environment.now, self._went_on)

    # Lifecycle

    def offer(self, manifest: Manifest, files: Mapping[str, Path]) -> None:
        """From now on, tells the nodes what the model's files are, and hands out those on this machine. files: by hash."""
        self._orders.manifest = manifest
        self._share.add(files)

    async def start(self) -> None:
        """Listens for nodes. Raises ConfigError."""
        host = self.settings.host
        self._door = await self._environment.control_door(self, host, self.settings.control_port)
        self._results = await self._environment.listen(host, 0, self._accept)
        self._orders.port = self._results.port
        self.spawn(self._tick())
        if self.settings.pace:
            self.spawn(self._keep_pace())

    async def stop(self, reason: str = "the head shut down") -> None:
        """Sends the nodes home and ends every request."""
        self.roster.tell_all(control.Shutdown(reason=reason))
        self._stopping = True
        self.requests.refuse("the server is shutting down")
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._results.close()
        await self._door.stop()

    @property
    def control_port(self) -> int:
        return self._door.port

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the head failed unexpectedly", exc_info=error)

    async def _tick(self) -> None:
        """Keeps time passing even if something fails: otherwise no silence would ever be noticed again."""
        said = ""
        while True:
            await asyncio.sleep(_TICK)
            try:
                self._ticked()
            except Exception as error:
                if (now := f"a look at the cluster failed unexpectedly: {error!r}") != said:  # not ten times a second
                    said = now
                    log.error("a look at the cluster failed unexpectedly; it is tried again", exc_info=error)
                    self._carry_out(instructions.Report(EventKind.FAULT, now))

    def _ticked(self) -> None:
        self._handle(events.Tick())
        self._strand()
        self._sample()
        if self.driver is not None and self.driver.stalled() > self.settings.step_timeout:
            self.driver.cut(f"no result came for {self.settings.step_timeout:g} s")

    def _sample(self) -> None:
        """Once a second, for the record of the day."""
        now = self._environment.now()
        if now < self._next_sample:
            return
        self._next_sample = now + 1.0
        blocks = 0.0
        if (driver := self.driver) is not None:
            pool = driver.scheduler.pool
            blocks = pool.used / pool.size
            self.recorder.counted(driver.scheduler.counters.preemptions, pool.evicted)
        self.recorder.tell()
        names = [member.name for member in self.cluster.members.values()]
        self.recorder.day.sample(
            self.recorder.at,
            queue=driver.scheduler.waiting if driver is not None else 0,
            blocks=blocks,
            memory=sum(self.loads.of(name).resident for name in names),
            nodes=len(names),
        )

    async def _keep_pace(self) -> None:
        """Tells the cluster about stages that are slower than their nodes measured."""
        while True:
            await asyncio.sleep(self.settings.pace)
            if (path := self.pipeline.serving) is None:
                continue
            slower = self._pace.judge(len(path.nodes), partial(self._promised, path.nodes, path.placement))
            for node, times in zip(path.nodes, slower or (), strict=False):
                self._handle(events.SpeedSeen(node, times))

    @property
    def activities(self) -> list[str]:
        """See Head."""
        return [f"{name}: {activity}" for name, activity in self.roster.activities.items() if activity]

    def expectation(self) -> Expectation | None:
        placement = self.pipeline.placement
        nodes = {member.name: member.profile for member in self.cluster.members.values()}
        if placement is None or any(part.node not in nodes for part in (*placement.stages, *placement.workers)):
            return None
        return expect(placement, nodes, self.model.cost, self._moves.links, self._moves.demand)

    def _promised(self, nodes: Sequence[int], placement: Placement, rows: int) -> list[float]:
        """Seconds in which each stage reads the weights for a step with so many rows, if its node is as fast as it measured."""
        return [
            stage.seconds
            if stage.memory
            else self._planner.cost(placement).read_bytes(stage.first, stage.end, rows)
            / self.cluster.members[node].joined.profile.bytes_per_second
            for node, stage in zip(nodes, placement.stages, strict=True)
        ]

    def _strand(self) -> None:
        """Lets requests wait for nodes to come, but not for ever."""
        now = self._environment.now()
        if not self.requests or self.pipeline.state != WAITING or self.pipeline.confirming:
            self._stranded = None
            return
        self._stranded = now if self._stranded is None else self._stranded
        if now - self._stranded > self.settings.wait:
            self._stranded = None
            self.requests.end_all(StageLost(f"no nodes came for {self.settings.wait:g} s: {self.pipeline.why}"))

    # Requests

    @property
    def driver(self) -> Driver | None:
        """None before the first route."""
        return self.requests.driver

    @property
    def able(self) -> bool:
        """Whether a model is served, or will be again in moments."""
        return self.driver is not None and (self.pipeline.state != WAITING or self.pipeline.confirming)

    @property
    def serving(self) -> bool:
        return self.pipeline.state == SERVING

    def submit(self, request: Request) -> TokenStream:
        """Raises NotReady, InvalidRequest, QueueFull."""
        return self.open_driver().submit(request)

    def open_driver(self) -> Driver:
        """Raises NotReady."""
        if self.driver is None or not self.able:
            raise NotReady(f"no model is served now: {self.pipeline.progress}")
        return self.driver

    # Messages from the nodes

    def heard(self, conversation: NodeConnection, message: control.NodeMessage) -> None:
        node = self.roster.number(conversation)
        if (joined := self.roster.probing(conversation)) is not None:
            self._probed(conversation, joined, message)
            return
        if isinstance(message, control.Join):
            if node is None:
                self._join(conversation, message)
            return
        if node is None:
            return  # it was refused
        self._handle(events.Heard(node))
        match message:
            case control.Loaded():
                self.roster.machines[node].shared = message.shared
                self._told_loaded(node, message)
                self._handle(events.StageLoaded(node, message.epoch, message.weight_bytes, message.runtime))
            case control.Linked():
                self._handle(events.StageLinked(node, message.epoch))
            case control.Failed():
                self._handle(events.StageFailed(node, message.epoch, message.reason))
            case control.Leave():
                self._handle(events.DrainAsked(node))
                if (member := self.cluster.members.get(node)) is not None and not member.draining:
                    self._carry_out(instructions.Dismiss(node, "it leaves, though its layers have nowhere to go"))
            case control.Heartbeat():
                if (member := self.cluster.members.get(node)) is not None:
                    self._observer.heartbeat(member.name, message)
                    self.loads.heard(member.name, message, self._environment.now())
                    for counted in message.expert_rows:
                        known = self.use.get(counted.layer, [0] * len(counted.rows))
                        if len(known) == len(counted.rows):  # otherwise the observer has something to say about it
                            self.use[counted.layer] = [a + b for a, b in zip(known, counted.rows, strict=True)]
                    self.roster.activities[member.name] = message.activity
                    self.roster.weights[member.name] = message.weights
                    for decoding, prompts in zip(message.decoding, message.prompts, strict=False):
                        self.roster.computed[member.name] = Computed(ComputeParts(**asdict(decoding)), ComputeParts(**asdict(prompts)))
                if message.packed:
                    self.roster.machines[node].packed = message.packed
            case _:
                pass

    def _join(self, conversation: NodeConnection, join: control.Join) -> None:
        host = join.tensor_host or conversation.host
        taken = {m.name for m in self.cluster.members.values() if (m.joined.host, m.joined.tensor_port) != (host, join.tensor_port)}
        node = self.roster.enter(conversation, join, taken)
        welcome = control.Welcome(node=node, name=join.name, cluster=self.name, heartbeat=self.settings.heartbeat)
        profile = NodeProfile(join.name, join.memory, join.bytes_per_second, join.flops, join.disk, join.worker, join.auto)
        same = (join.model, join.precision) == (self.model.reference, str(self.settings.engine.precision))
        loaded = tuple(range(r.first, r.end) for r in join.loaded) if same else ()
        joined = events.Joined(node, join.incarnation, profile, host, join.tensor_port, join.version, loaded)
        if join.version != __version__:
            self._handle(joined)  # which refuses it
            return
        conversation.say(welcome)
        conversation.say(control.Probe(host=self._orders.seen_by(joined), port=self._results.port))
        self.roster.probe(conversation, joined)

    def _probed(self, conversation: NodeConnection, joined: events.Joined, message: control.NodeMessage) -> None:
        """A node is a member once its link is measured."""
        match message:
            case control.Probed():
                self.roster.probed(conversation)
                self.roster.reached[joined.profile.name] = LinkSpeed(max(message.round_trip, 0) / 2, max(message.bytes_per_second, 1.0))
                self._moves.links = Measured(self.roster.reached)
                self._handle(joined)
            case control.Failed():
                self.roster.probed(conversation)
                self._carry_out(instructions.RefuseNode(joined.node, message.reason, again=True))
            case control.Leave():
                self._carry_out(instructions.Dismiss(joined.node, "it holds no layers; it may leave"))
            case _:
                pass

    def hung_up(self, conversation: NodeConnection) -> None:
        if (node := self.roster.hung_up(conversation)) is not None:
            self._handle(events.Left(node, "its connection ended"))
            self._forget(node)

    def _dismissed(self, node: int) -> None:
        """A node was sent home: it is no longer a member, whatever it still says."""
        self.roster.dismiss(node)
        self._forget(node)

    def _forget(self, node: int) -> None:
        """Forgets what was known of a node, unless another one uses its name now."""
        others = [m.name for n, m in self.cluster.members.items() if n != node]
        if (name := self.roster.forget(node, others)) is not None:
            self._observer.gone(name)
            self.loads.forget(name)

    def dismiss(self, request: control.DismissRequest) -> control.DismissAnswer:
        """Serves `shoal nodes drain` and `remove`."""
        if (node := self.numbered(request.name)) is None:
            return self._unknown(request.name)
        if not request.drain:
            self._carry_out(instructions.Dismiss(node, "it was removed"))
            return control.DismissAnswer(done=True, message=f"{request.name} was removed")
        self._handle(events.DrainAsked(node))
        member = self.cluster.members.get(node)
        if member is not None and not member.draining:
            return control.DismissAnswer(message=next(iter(self.recorder.lines(1)), "it cannot be drained"))
        return control.DismissAnswer(done=True, message=f"{request.name} is being drained; `shoal nodes` shows when it has left")

    def now(self) -> float:
        """Seconds, on the cluster's clock."""
        return self._environment.now()

    def numbered(self, name: str) -> int | None:
        """The number of the member of that name."""
        return next((number for number, member in self.cluster.members.items() if member.name == name), None)

    def rename(self, request: str, name: str) -> control.DismissAnswer:
        """Gives a member another name. request: its name now."""
        if (node := self.numbered(request)) is None:
            return self._unknown(request)
        if not 1 <= len(name.encode()) <= MAX_NAME or not name.isprintable() or name != name.strip():
            return control.DismissAnswer(message=f"a node's name has 1 to {MAX_NAME} bytes of printable text, without spaces around it")
        if name != request and name in [join.name for join in self.roster.machines.values()]:
            return control.DismissAnswer(message=f"there is a node '{name}' already")
        self.cluster.rename(node, name)
        self.roster.rename(node, name)
        self.loads.rename(request, name)
        self._observer.gone(request)
        self._moves.links = Measured(self.roster.reached)
        if (path := self.pipeline.serving) is not None:
            names = [stage.node for stage in path.placement.stages]
            self.recorder.timelines.route(path.epoch, names)
            self._observer.route(names)
        self._carry_out(instructions.Report(EventKind.RENAMED, f"{request} is called {name} from now on", name))
        self.changed.set()
        return control.DismissAnswer(done=True, message=f"{request} is called {name} from now on")

    def cap(self, request: str, memory: int | None) -> control.DismissAnswer:
        """Limits the memory of a member. request: its name. memory: bytes; None: no limit but its own."""
        if (node := self.numbered(request)) is None:
            return self._unknown(request)
        self._handle(events.MemoryCapped(node, memory))
        member = self.cluster.members.get(node)
        return control.DismissAnswer(
            done=member is not None and member.cap == memory,
            message=next((event.message for event in reversed(self.recorder.events) if event.node == request), ""),
        )

    def _unknown(self, name: str) -> control.DismissAnswer:
        known = ", ".join(m.name for m in self.cluster.members.values()) or "none"
        return control.DismissAnswer(message=f"there is no node '{name}'; the nodes are {known}")

    def describe(self) -> control.ClusterDescription:
        waiting = len(self.requests) if self.driver is not None else 0
        return described(
            self.name, self.model.name, self.pipeline, self.roster, waiting, self.recorder.lines(_LINES), self._environment.now()
        )

    def topology(self) -> Topology:
        """What is published of the cluster."""
        running, waiting = (0, 0) if (driver := self.driver) is None else (driver.scheduler.running, driver.scheduler.waiting)
        requests = RequestLoad(running, waiting, self.settings.engine.slots)
        return live_topology(self.name, self.model.name, self.pipeline, self.roster, self.loads, requests, self._environment.now())

    # Decisions of the state machine

    def _handle(self, event: events.Event) -> None:
        if self._stopping:
            return
        if self.driver is not None:
            self.pipeline.tokens = self.driver.scheduler.computed
        for instruction in self.cluster.handle(event, self._environment.now()):
            self._carry_out(instruction)
        self.changed.set()

    def _carry_out(self, instruction: instructions.Instruction) -> None:
        match instruction:
            case instructions.RefuseNode(node, reason, again):
                self.roster.tell(node, control.Refuse(reason=reason, again=again))
                self._dismissed(node)
            case instructions.Dismiss(node, reason):
                self.roster.tell(node, control.Shutdown(reason=reason))
                self._dismissed(node)
                self._handle(events.Left(node, reason, graceful=True))
            case instructions.LoadStage():
                self.roster.tell(instruction.node, self._orders.load(instruction))
                self._interruptions.placed()
            case instructions.HoldExperts():
                self.roster.tell(instruction.node, self._orders.hold(instruction))
            case instructions.LinkStage(node, epoch, after):
                if self._opening is None or self._opening.epoch != epoch:
                    self._close_opening()
                    self._opening = Opening(epoch)
                    self._interrupted("layers are moved", moved=True)
                    self._interruptions.loaded()
                host, port = self._orders.next_hop(node, after)
                self.roster.tell(node, control.Link(epoch=epoch, host=host, port=port))
            case instructions.RestStage(node, epoch):
                self.roster.tell(node, control.Rest(epoch=epoch))
            case instructions.Serve():
                self.spawn(self._serve(instruction))
            case instructions.Pause():
                self._interrupted("layers are moved", moved=True)
                if self.driver is not None:
                    self.driver.pause()
            case instructions.Cut(epoch, reason):
                self._interrupted(reason)
                if self._opening is not None and self._opening.epoch == epoch:
                    self._close_opening()
                    if self.driver is not None:
                        self.driver.cut(reason)
            case instructions.Report(kind, message, node, figures):
                log.info(message)
                self.recorder.events.add(kind, message, node, figures)

    def _interrupted(self, reason: str, moved: bool = False) -> None:
        if self.driver is not None:
            self._interruptions.begin(reason, moved)

    def _close_opening(self) -> None:
        if self._opening is not None:
            self._opening.over.set()
            self._opening.results.cancel()
            self._opening = None

    # The route

    async def _accept(self, stream: FrameStream) -> None:
        """Takes the last stage's link to the head."""
        try:
            greeting = await greeted(stream, self._share)
            opening, placement = self._opening, self.pipeline.placement
            wanted = opening is not None and placement is not None and not opening.results.done()
            stages = len(placement.stages) if wanted and placement is not None else -1
            await accept_link(stream, greeting, opening.epoch if opening else 0, self.name, stages, "head")
        except EOFError:
            return
        except (OSError, ProtocolError) as error:
            log.warning("a link was refused or broken", peer=stream.peer, reason=str(error) or type(error).__name__)
            return
        assert opening is not None  # no greeting fits stage -1
        if opening.results.done():
            return  # the route was given up meanwhile
        opening.results.set_result(stream)
        await opening.over.wait()

    async def _serve(self, order: instructions.Serve) -> None:
        """Opens the route and drives it until it breaks or is paused."""
        opening = self._opening
        if opening is None or opening.epoch != order.epoch:
            return  # the route was given up already
        joined = self.cluster.members[order.first].joined
        first: FrameStream | None = None
        try:
            first = await self._links.open(joined.host, joined.tensor_port, order.epoch, Hello(__version__, self.name, "head", 0))
            async with asyncio.timeout(_OPENING):
                await asyncio.wait({opening.results})
            if opening.over.is_set():
                raise StageLost("it was abandoned while it was being opened")
            driver = self._fit_driver(order.placement)
            names = [stage.node for stage in order.placement.stages]
            self.recorder.route(order.epoch, names)
            self._observer.route(names)
            self._interruptions.linked()
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
        """The driver, with its scheduler fitted to a route."""
        settings, depth = self.settings, len(placement.stages)
        limits = Limits(
            blocks=blocks_of(placement.kv_tokens),
            block_tokens=BLOCK_TOKENS,
            context=self.model.context,
            slots=settings.engine.slots,
            step_tokens=settings.engine.step_tokens,
            queue=settings.engine.queue,
            depth=depth,
            wait=settings.engine.prompt_wait,
            prefixes=settings.engine.prefix_cache,
        )
        driver = self.requests.fitted(limits)
        driver.scheduler.cost = step_guess(self.model.cost, placement, Measured(self.roster.reached))
        return driver

    def _filled(self, epoch: int, tokens: int) -> None:
        self._pace = StragglerDetector()
        self._interruptions.filled(tokens, bool(self.requests))
        if tokens:
            self.recorder.events.add(EventKind.REFILLED, f"keys and values of {tokens} tokens were filled anew", figures={"tokens": tokens})
        self._handle(events.RouteFilled(epoch))

    def _step(self, timing: StepTiming) -> None:
        self._observer.step(timing, self.recorder.step(timing))
        self._pace.add(timing)
        for node, trace in zip(self.pipeline.route, timing.traces, strict=False):
            if (member := self.cluster.members.get(node)) is not None:
                self.loads.ran(member.name, trace.compute + trace.sample)
        if timing.sampled:
            self._interruptions.token_came()

    def _sampled(self, chunks: list[TokenChunk]) -> None:
        self.recorder.sampled(chunks)
        self._observer.sampled(chunks)

    def _choice_ended(self, request: RequestId, choice: int) -> None:
        self.recorder.timelines.finished(request, choice, self._environment.now())

    def _request_failed(self, request: RequestId, error: ShoalError) -> None:
        self.recorder.timelines.failed(request, str(error), self._environment.now())

    def _told_loaded(self, node: int, loaded: control.Loaded) -> None:
        if (member := self.cluster.members.get(node)) is not None:
            words = f"{member.name} has loaded its part: {human_bytes(loaded.weight_bytes)} in {loaded.seconds:.1f} s"
            figures = {"bytes": loaded.weight_bytes, "seconds": loaded.seconds, "epoch": loaded.epoch}
            self.recorder.events.add(EventKind.LOADED, words, member.name, figures)

    def _went_on(self, ended: Interruption) -> None:
        cause = self.recorder.resumed(ended.reason, ended.began, ended.resumed, ended.parts(), ended.tokens)
        self._observer.interruption(ended, "moved" if ended.moved else cause or "broken")
        parts = {name: round(seconds, 3) for name, seconds in ended.parts().items()}
        log.info("streams go on", seconds=round(ended.resumed - ended.began, 3), refilled=ended.tokens, **parts)

    async def until_ready(self) -> None:
        """Waits until a model is served. Raises ClusterError if the nodes that joined cannot serve it."""
        while not self.serving:
            pipeline = self.pipeline
            if pipeline.state == WAITING and len(pipeline.members) >= self.settings.min_nodes and pipeline.why and not pipeline.confirming:
                raise ClusterError(pipeline.why)
            self.changed.clear()
            await self.changed.wait()
