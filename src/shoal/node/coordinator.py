"""Runs a cluster: listens to the nodes, and carries out what the state machines decide."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import time
from typing import Any

import structlog

from shoal import __version__
from shoal.config import HeadSettings, MoreNodes
from shoal.control import messages as control
from shoal.control.server import NodeConnection
from shoal.discovery.topology import MAX_NAME, Topology
from shoal.errors import ClusterError, ProtocolError
from shoal.membership import events, instructions
from shoal.membership.admission import AdmissionRules
from shoal.membership.replica_groups import CopyNeed
from shoal.membership.route_machine import SERVING, WAITING
from shoal.membership.state import Cluster, Terms
from shoal.node.environment import Environment, Listener
from shoal.node.followers import Followers
from shoal.node.links import accept_link, greeted
from shoal.node.live_topology import live_topology, merged, without_models
from shoal.node.loads import Loads
from shoal.node.observer import NodeObserver, PipelineObserver, Served
from shoal.node.operator import described
from shoal.node.orders import seen_by
from shoal.node.pipeline_runner import HeadContext, PipelineRunner, Planning
from shoal.node.roster import Roster
from shoal.node.share import Share
from shoal.observed.event import EventKind
from shoal.pipeline_id import PipelineId
from shoal.placement.moves import Moves
from shoal.placement.profile import Demand, LinkSpeed, NodeProfile
from shoal.placement.profile import LinkSpeeds as Measured
from shoal.placement.roles import RoleMoves
from shoal.settings import parse_bytes
from shoal.sizes import human_bytes
from shoal.telemetry.recorder import Recorder
from shoal.transport.base import FrameStream

log = structlog.get_logger()

_TICK = 0.1
_LINES = 200  # of the latest events, for `shoal nodes`
_SILENCES = 8  # heartbeats that may be missing
_TOLD = 5  # times that nodes are told who leads before they count the head as lost


class Coordinator:
    def __init__(
        self, settings: HeadSettings, environment: Environment, observer: NodeObserver, followers: Followers | None = None
    ) -> None:
        """followers: of a head that leads by a lease."""
        self.settings, self.followers = settings, followers
        self.recorder = Recorder(environment.now, time() - environment.now())
        self.changed = asyncio.Event()
        """Set whenever the state may have changed; whoever waits for it clears it."""
        self.loads = Loads()
        self._environment, self._observer = environment, observer
        self._share = Share()
        self.name = f"{environment.rng.getrandbits(32):08x}"
        admission = AdmissionRules(parse_bytes(settings.min_memory or "0"), settings.min_speed * 1e9, settings.max_nodes)
        self.cluster = Cluster(__version__, settings.heartbeat * _SILENCES, admission)
        self.roster = Roster()
        self.runners: dict[PipelineId, PipelineRunner] = {}
        hand_out = _at_once if followers is None else followers.hand_out
        self._head = HeadContext(
            self.name, settings, environment, self.recorder, self.roster, self.loads, self._share, self.spawn, hand_out
        )
        self._results: Listener | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._stopping = False
        self._next_sample = self._next_heads = 0.0
        self._others: list[str] = []
        """The heads that nodes were told of."""

    # Pipelines

    def open(self, id: PipelineId, model: Served, observer: PipelineObserver) -> PipelineRunner:
        """Serves one more pipeline, as soon as nodes suffice."""
        settings, engine = self.settings, model.engine
        demand = Demand.of(engine.slots, engine.kv_tokens, model.context)
        moves = Moves(model.cost, demand, settings.spread, settings.spares, Measured(self.roster.reached))
        use: dict[int, list[int]] = {}
        planning = Planning(moves, RoleMoves(moves, use), use)
        others = (self.cluster.pinned(other) for other in self.runners if other.model == id.model)
        pinned = next(others, model.pinned)  # nodes may have other names by now
        terms = Terms(planning.planner, settings.min_nodes, CopyNeed.of(moves), engine.degrade, pinned, model.priority)
        pipeline = self.cluster.open(id, terms, self.now())
        self._share.add(model.files)
        runner = self.runners[id] = PipelineRunner(self._head, pipeline, model, planning, observer, self._handle)
        if self._results is not None:
            self._start(runner)
        return runner

    def close(self, id: PipelineId, reason: str) -> None:
        """Ends a pipeline and its requests. The nodes free what they hold of it."""
        runner = self.runners.pop(id)
        for instruction in self.cluster.close(id, reason, self.now()):
            if isinstance(instruction, instructions.Cut):
                runner.carry_out(instruction)
            else:
                self._carry_out(instruction)
        runner.close(reason)
        self.changed.set()

    def _start(self, runner: PipelineRunner) -> None:
        assert self._results is not None
        runner.orders.port = self._results.port
        if self.settings.pace:
            self.spawn(runner.keep_pace())

    # Lifecycle

    async def start(self) -> None:
        """Listens for nodes. Raises ConfigError."""
        host = self.settings.host
        self._results = await self._environment.listen(host, self.settings.results_port, self._accept)
        self._door = await self._environment.control_door(self, host, self.settings.control_port)
        self.spawn(self._tick())
        for runner in self.runners.values():
            self._start(runner)

    async def stop(self, reason: str = "the head shut down") -> None:
        """Sends the nodes home and ends every request."""
        self.roster.tell_all(control.Shutdown(reason=reason))
        await self._end("the server is shutting down")

    async def stand_down(self, reason: str) -> None:
        """Ends every request with the reason; the nodes look for the head that leads."""
        self.roster.tell_all(control.Refuse(reason=reason, again=True, follows=True))
        await self._end(reason)

    async def _end(self, reason: str) -> None:
        self._stopping = True
        self.refuse(reason)
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.followers is not None:
            await self.followers.close()
        if self._results is not None:
            await self._results.close()
        await self._door.stop()

    def refuse(self, reason: str) -> None:
        """Ends every request with that reason, and accepts no more."""
        for runner in self.runners.values():
            runner.requests.refuse(reason)

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
        for runner in self.runners.values():
            runner.tick()
        self._tell_heads()
        self._sample()

    def _tell_heads(self) -> None:
        """Often enough that a node that hears it no more can tell that the head is lost."""
        now, followers = self._environment.now(), self.followers
        if followers is None or not followers.leadership.leads() or (now < self._next_heads and followers.addresses == self._others):
            return
        self._next_heads, self._others = now + followers.leadership.within / _TOLD, followers.addresses
        self.roster.tell_all(followers.heads)
        followers.tell()

    def _sample(self) -> None:
        """Once a second, for the record of the day."""
        now = self._environment.now()
        if now < self._next_sample:
            return
        self._next_sample = now + 1.0
        drivers = [runner.driver for runner in self.runners.values() if runner.driver is not None]
        pools = [driver.scheduler.pool for driver in drivers]
        for runner in self.runners.values():
            runner.sample()
        self.recorder.tell()
        names = [member.name for member in self.cluster.members.values()]
        self.recorder.day.sample(
            self.recorder.at,
            queue=sum(driver.scheduler.waiting for driver in drivers),
            blocks=max((pool.used / pool.size for pool in pools), default=0.0),
            memory=sum(self.loads.of(name).resident for name in names),
            nodes=len(names),
        )

    @property
    def activities(self) -> list[str]:
        """See Head."""
        return [f"{name}: {activity}" for name in self.roster.reports if (activity := self.roster.activity(name))]

    @property
    def serving(self) -> bool:
        """Whether all pipelines serve."""
        return bool(self.runners) and all(runner.serving for runner in self.runners.values())

    # Messages from the nodes

    def heard(self, conversation: NodeConnection, message: control.NodeMessage) -> None:
        node = self.roster.number(conversation)
        if (joined := self.roster.probing(conversation)) is not None:
            self._probed(conversation, joined, message)
            return
        if isinstance(message, control.Follow | control.Copied):
            if node is None:
                self._followed(conversation, message)
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
                    self._beat(member.name, message)
                if message.packed:
                    self.roster.machines[node].packed = message.packed
            case _:
                pass

    def _followed(self, conversation: NodeConnection, message: control.NodeMessage) -> None:
        if self.followers is not None:
            self.followers.heard(conversation, message)
        else:
            conversation.say(control.Refuse(reason="it was started without --lease"))
            conversation.end()

    def _join(self, conversation: NodeConnection, join: control.Join) -> None:
        host = join.tensor_host or conversation.host
        taken = {m.name for m in self.cluster.members.values() if (m.joined.host, m.joined.tensor_port) != (host, join.tensor_port)}
        node = self.roster.enter(conversation, join, taken)
        term = self.followers.leadership.term if self.followers is not None else 0
        welcome = control.Welcome(node=node, name=join.name, cluster=self.name, heartbeat=self.settings.heartbeat, term=term)
        profile = NodeProfile(join.name, join.memory, join.bytes_per_second, join.flops, join.disk, join.worker, join.auto)
        known = {held.pipeline: runner for held in join.held if (runner := self._that_keeps(held)) is not None}
        loaded = {
            known[held.pipeline].pipeline.id: tuple(range(r.first, r.end) for r in held.loaded)
            for held in join.held
            if held.pipeline in known
        }
        joined = events.Joined(node, join.incarnation, profile, host, join.tensor_port, join.version, loaded)
        if join.version != __version__:
            self._handle(joined)  # which refuses it
            return
        conversation.say(welcome)
        if self.followers is not None:
            conversation.say(self.followers.heads)
        for held in join.held:
            if held.pipeline not in known:
                conversation.say(control.Drop(pipeline=held.pipeline))
        assert self._results is not None
        host = seen_by(self.settings.host, joined, self._environment)
        conversation.say(control.Probe(host=host, port=self._results.port))
        self.roster.probe(conversation, joined)

    def _that_keeps(self, held: control.HeldModel) -> PipelineRunner | None:
        """The runner of the pipeline for which a node holds something, if it is the same model in the same form."""
        runner = next((runner for id, runner in self.runners.items() if str(id) == held.pipeline), None)
        if runner is None or (held.model, held.precision) != (runner.model.reference, str(runner.model.engine.precision)):
            return None
        return runner

    def _beat(self, name: str, heartbeat: control.Heartbeat) -> None:
        """name: of the node."""
        self._observer.heartbeat(name, heartbeat)
        self.loads.heard(name, heartbeat, self._environment.now())
        self.roster.reports[name] = {report.pipeline: report for report in heartbeat.pipelines}
        for id, runner in self.runners.items():
            if (report := self.roster.report(name, id)) is not None:
                runner.reported(name, report)

    def _probed(self, conversation: NodeConnection, joined: events.Joined, message: control.NodeMessage) -> None:
        """A node is a member once its link is measured."""
        match message:
            case control.Probed():
                self.roster.probed(conversation)
                self.roster.reached[joined.profile.name] = LinkSpeed(max(message.round_trip, 0) / 2, max(message.bytes_per_second, 1.0))
                self._measured()
                for id in joined.loaded.keys() - self.runners.keys():  # closed while the link was being measured
                    conversation.say(control.Drop(pipeline=str(id)))
                self._handle(joined)
            case control.Failed():
                self.roster.probed(conversation)
                self._carry_out(instructions.RefuseNode(joined.node, message.reason, again=True))
            case control.Leave():
                self._carry_out(instructions.Dismiss(joined.node, "it holds no layers; it may leave"))
            case _:
                pass

    def hung_up(self, conversation: NodeConnection) -> None:
        if self.followers is not None:
            self.followers.hung_up(conversation)
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
        self._measured()
        for runner in self.runners.values():
            runner.renamed()
        self._carry_out(instructions.Report(EventKind.RENAMED, f"{request} is called {name} from now on", name))
        self.changed.set()
        return control.DismissAnswer(done=True, message=f"{request} is called {name} from now on")

    def _measured(self) -> None:
        """Links have other speeds, or names."""
        for runner in self.runners.values():
            runner.planning.moves.links = Measured(self.roster.reached)

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
        return described(
            self.name,
            self.cluster.members,
            [*self.runners.values()],
            self.roster,
            self.recorder.lines(_LINES),
            self._environment.now(),
            self.settings.gateway_port,
        )

    def topology(self, runner: PipelineRunner) -> Topology:
        """The cluster as one of its pipelines has it."""
        now = self._environment.now()
        return live_topology(self.name, runner.pipeline, self.roster, self.loads, runner.load_of_requests, now)

    def published(self) -> Topology:
        """The cluster as all of its pipelines have it."""
        if not self.runners:
            return without_models(self.name, self.cluster.members, self.roster, self.loads, self._environment.now())
        return merged([self.topology(runner) for runner in self.runners.values()])

    # Decisions of the state machine

    def _handle(self, event: events.Event) -> None:
        if self._stopping:
            return
        for runner in self.runners.values():
            if runner.driver is not None:
                runner.pipeline.tokens = runner.driver.scheduler.computed
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
            case instructions.DropModel(node, id):
                self.roster.tell(node, control.Drop(pipeline=str(id)))
            case instructions.Report(kind, message, node, figures, id):
                words = message if id is None or len(self.runners) < 2 else f"{id}: {message}"
                log.info(words)
                self.recorder.events.add(kind, words, node, figures)
            case _:
                if (id := self.cluster.owner(instruction.epoch)) is not None:
                    self.runners[id].carry_out(instruction)

    def _told_loaded(self, node: int, loaded: control.Loaded) -> None:
        if (member := self.cluster.members.get(node)) is not None:
            words = f"{member.name} has loaded its part: {human_bytes(loaded.weight_bytes)} in {loaded.seconds:.1f} s"
            figures = {"bytes": loaded.weight_bytes, "seconds": loaded.seconds, "epoch": loaded.epoch}
            self.recorder.events.add(EventKind.LOADED, words, member.name, figures)

    async def until_ready(self) -> None:
        """Waits until all models are served: each by the copies that find nodes, or by one if it is scaled. Models that wait for nodes that
        they are pinned to are not waited for. Raises ClusterError if the nodes that joined cannot serve another one, unless further nodes
        are asked for."""
        while not all(runner.serving or self._awaits_nodes(runner) or self._spared(runner) for runner in self.runners.values()):
            for runner in self.runners.values() if self.settings.scaling.more_nodes is MoreNodes.NONE else ():
                if all(map(self._in_vain, self._copies(runner))) and not self._awaits_nodes(runner):
                    why = runner.pipeline.why
                    raise ClusterError(why if len(self.runners) < 2 else f"{runner.pipeline.id}: {why}")
            self.changed.clear()
            await self.changed.wait()

    def _copies(self, runner: PipelineRunner) -> list[PipelineRunner]:
        """Of the same model, with this one."""
        return [other for id, other in self.runners.items() if id.model == runner.pipeline.id.model]

    def _in_vain(self, runner: PipelineRunner) -> bool:
        """Whether nothing came of the nodes that were to be waited for."""
        pipeline = runner.pipeline
        enough = len(pipeline.members) >= self.settings.min_nodes
        return pipeline.state == WAITING and enough and bool(pipeline.why) and not pipeline.confirming

    def _awaits_nodes(self, runner: PipelineRunner) -> bool:
        return self._in_vain(runner) and bool(self.cluster.awaited(runner.pipeline.id))

    def _spared(self, runner: PipelineRunner) -> bool:
        """Whether another copy serves, and this one finds no nodes, or comes and goes with the load."""
        return (self.settings.scaling.on or self._in_vain(runner)) and any(copy.pipeline.state == SERVING for copy in self._copies(runner))

    async def _accept(self, stream: FrameStream) -> None:
        """Takes a last stage's link to the head, or any other peer's."""
        try:
            greeting = await greeted(stream, self._share)
            runner = next((runner for runner in self.runners.values() if runner.opening(greeting.epoch)), None)
            if runner is not None:
                await runner.accept(stream, greeting)
            else:
                await accept_link(stream, greeting, 0, self.name, -1, "head")  # which refuses it
        except EOFError:
            return
        except (OSError, ProtocolError) as error:
            log.warning("a link was refused or broken", peer=stream.peer, reason=str(error) or type(error).__name__)


def _at_once(deliver: Callable[[], None]) -> None:
    deliver()
