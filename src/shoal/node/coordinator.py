"""Runs a cluster: listens to the nodes, and carries out what the state machines decide."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import asdict
from pathlib import Path
from time import time
from typing import Any

import structlog

from shoal import __version__
from shoal.config import HeadSettings, parse_bytes
from shoal.control import messages as control
from shoal.control.server import NodeConnection
from shoal.discovery.topology import MAX_NAME, RequestLoad, Topology
from shoal.errors import ClusterError
from shoal.membership import events, instructions
from shoal.membership.admission import AdmissionRules
from shoal.membership.route_machine import WAITING
from shoal.membership.state import Cluster
from shoal.models.manifest import Manifest
from shoal.node.environment import Environment
from shoal.node.live_topology import live_topology
from shoal.node.loads import Loads
from shoal.node.observer import Observer, Served
from shoal.node.operator import described
from shoal.node.orders import Orders
from shoal.node.pipeline_runner import HeadContext, PipelineRunner
from shoal.node.roster import Roster
from shoal.node.share import Share
from shoal.observed.computing import Computed, ComputeParts
from shoal.observed.event import EventKind
from shoal.placement.expectation import Expectation, expect
from shoal.placement.moves import Moves
from shoal.placement.profile import Demand, LinkSpeed, NodeProfile
from shoal.placement.profile import LinkSpeeds as Measured
from shoal.placement.roles import RoleMoves
from shoal.sizes import human_bytes
from shoal.telemetry.recorder import Recorder

log = structlog.get_logger()

_TICK = 0.1
_LINES = 200  # of the latest events, for `shoal nodes`
_SILENCES = 8  # heartbeats that may be missing


class Coordinator:
    def __init__(self, settings: HeadSettings, model: Served, environment: Environment, observer: Observer) -> None:
        self.settings, self.model = settings, model
        self.recorder = Recorder(environment.now, time() - environment.now())
        self.changed = asyncio.Event()
        """Set whenever the state may have changed; whoever waits for it clears it."""
        self.loads = Loads()
        self._environment, self._observer = environment, observer
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
        head = HeadContext(self.name, settings, environment, observer, self.recorder, self.roster, self.loads, self._share)
        self.runner = PipelineRunner(head, self.pipeline, model, self._planner, self._handle)
        self._orders = Orders(settings.host, settings.engine, model, environment, self._share, self.cluster.members, self.roster.machines)
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._stopping = False
        self._next_sample = 0.0

    # Lifecycle

    def offer(self, manifest: Manifest, files: Mapping[str, Path]) -> None:
        """From now on, tells the nodes what the model's files are, and hands out those on this machine. files: by hash."""
        self._orders.manifest = manifest
        self._share.add(files)

    async def start(self) -> None:
        """Listens for nodes. Raises ConfigError."""
        host = self.settings.host
        self._door = await self._environment.control_door(self, host, self.settings.control_port)
        self._results = await self._environment.listen(host, self.settings.results_port, self.runner.accept)
        self._orders.port = self._results.port
        self.spawn(self._tick())
        if self.settings.pace:
            self.spawn(self.runner.keep_pace())

    async def stop(self, reason: str = "the head shut down") -> None:
        """Sends the nodes home and ends every request."""
        self.roster.tell_all(control.Shutdown(reason=reason))
        self._stopping = True
        self.runner.requests.refuse("the server is shutting down")
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
        self.runner.tick()
        self._sample()

    def _sample(self) -> None:
        """Once a second, for the record of the day."""
        now = self._environment.now()
        if now < self._next_sample:
            return
        self._next_sample = now + 1.0
        blocks = 0.0
        if (driver := self.runner.driver) is not None:
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

    def expectation(self) -> Expectation | None:
        placement = self.pipeline.placement
        nodes = {member.name: member.profile for member in self.cluster.members.values()}
        if placement is None or any(part.node not in nodes for part in (*placement.stages, *placement.workers)):
            return None
        return expect(placement, nodes, self.model.cost, self._moves.links, self._moves.demand)

    @property
    def activities(self) -> list[str]:
        """See Head."""
        return [f"{name}: {activity}" for name, activity in self.roster.activities.items() if activity]

    @property
    def serving(self) -> bool:
        return self.runner.serving

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
        waiting = len(self.runner.requests) if self.runner.driver is not None else 0
        return described(
            self.name, self.model.name, self.pipeline, self.roster, waiting, self.recorder.lines(_LINES), self._environment.now()
        )

    def topology(self) -> Topology:
        """What is published of the cluster."""
        running, waiting = (0, 0) if (driver := self.runner.driver) is None else (driver.scheduler.running, driver.scheduler.waiting)
        requests = RequestLoad(running, waiting, self.settings.engine.slots)
        return live_topology(self.name, self.model.name, self.pipeline, self.roster, self.loads, requests, self._environment.now())

    # Decisions of the state machine

    def _handle(self, event: events.Event) -> None:
        if self._stopping:
            return
        if self.runner.driver is not None:
            self.pipeline.tokens = self.runner.driver.scheduler.computed
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
                self.runner.load()
            case instructions.HoldExperts():
                self.roster.tell(instruction.node, self._orders.hold(instruction))
            case instructions.LinkStage(node, epoch, after):
                self.runner.link(epoch)
                host, port = self._orders.next_hop(node, after)
                self.roster.tell(node, control.Link(epoch=epoch, host=host, port=port))
            case instructions.RestStage(node, epoch):
                self.roster.tell(node, control.Rest(epoch=epoch))
            case instructions.Serve():
                self.spawn(self.runner.serve(instruction))
            case instructions.Pause():
                self.runner.pause()
            case instructions.Cut(epoch, reason):
                self.runner.cut(epoch, reason)
            case instructions.Report(kind, message, node, figures):
                log.info(message)
                self.recorder.events.add(kind, message, node, figures)

    def _told_loaded(self, node: int, loaded: control.Loaded) -> None:
        if (member := self.cluster.members.get(node)) is not None:
            words = f"{member.name} has loaded its part: {human_bytes(loaded.weight_bytes)} in {loaded.seconds:.1f} s"
            figures = {"bytes": loaded.weight_bytes, "seconds": loaded.seconds, "epoch": loaded.epoch}
            self.recorder.events.add(EventKind.LOADED, words, member.name, figures)

    async def until_ready(self) -> None:
        """Waits until a model is served. Raises ClusterError if the nodes that joined cannot serve it."""
        while not self.serving:
            pipeline = self.pipeline
            if pipeline.state == WAITING and len(pipeline.members) >= self.settings.min_nodes and pipeline.why and not pipeline.confirming:
                raise ClusterError(pipeline.why)
            self.changed.clear()
            await self.changed.wait()
