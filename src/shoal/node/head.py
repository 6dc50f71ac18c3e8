"""The head: hears the nodes, carries out what the cluster's state machine decides, and serves requests over the route."""

from __future__ import annotations

import asyncio
import secrets
from time import monotonic, time
from typing import Any

import structlog

from shoal import __version__
from shoal.config import HeadSettings
from shoal.control import messages as control
from shoal.control.server import ControlServer, Conversation
from shoal.errors import ClusterError, NotReady, ProtocolError, RemoteProtocolError, StageLost
from shoal.executor.cost import model_cost
from shoal.membership import events, instructions
from shoal.membership.state import SERVING, WAITING, Cluster
from shoal.metrics import Metrics
from shoal.models.description import Description
from shoal.native import BLOCK_TOKENS
from shoal.node.agent import facing
from shoal.node.stage_service import accept_link, greeted, open_link
from shoal.pipeline.driver import Driver, TokenStream
from shoal.pipeline.timing import StepTiming
from shoal.placement.partition import Placement, place
from shoal.placement.profile import Demand, Link, Links, NodeProfile
from shoal.request import Request
from shoal.scheduler.scheduler import Limits, Scheduler
from shoal.text.tokenizer import Tokenizer
from shoal.transport.base import FrameStream
from shoal.transport.tcp import listen
from shoal.wire.messages import Hello

log = structlog.get_logger()

_TICK = 0.25
_SILENCES = 8  # heartbeats that may be missing


class _Route:
    """The head's ends of one epoch's route."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.results: asyncio.Future[FrameStream] = asyncio.get_running_loop().create_future()
        """The last stage's link, once it has come."""
        self.over = asyncio.Event()


class Head:
    """One model, served by the nodes that join."""

    def __init__(self, settings: HeadSettings, model: Description) -> None:
        self.settings = settings
        self.model = model
        self.tokenizer = Tokenizer.open(model.path, model.gguf)
        self.metrics = Metrics()
        self.created = int(time())
        self.context = min(settings.context, model.spec.context)
        self.ready = asyncio.Event()
        self._name = secrets.token_hex(4)
        self._cost = model_cost(model.spec, model.weights, settings.precision, settings.kv_type, settings.step_tokens)
        self._cluster = Cluster(__version__, settings.min_nodes, self._place, settings.heartbeat * _SILENCES)
        self._control = ControlServer(self)
        self._conversations: dict[int, Conversation] = {}
        self._nodes: dict[Conversation, int] = {}
        self._machines: dict[int, control.Join] = {}
        self._links: dict[str, Link] = {}
        self._probing: dict[Conversation, events.Joined] = {}
        self._next_node = 1
        self._driver: Driver | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._route: _Route | None = None

    # Life

    async def start(self) -> None:
        """Listens for nodes. Raises ConfigError."""
        host = self.settings.host
        await self._control.start(host, self.settings.control_port)
        self._results = await listen(host, 0, self._accept)
        self._spawn(self._tick())

    async def stop(self, reason: str = "the head shut down") -> None:
        """Sends the nodes home, ends every request."""
        for conversation in self._conversations.values():
            conversation.say(control.HeadMessage(shutdown=control.Shutdown(reason=reason)))
        self.refuse("the server is shutting down")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._results.close()
        await self._control.stop()

    def refuse(self, reason: str) -> None:
        """Ends every request with that reason, and takes no more."""
        self.ready.clear()
        if self._driver is not None:
            self._driver.fail(NotReady(reason))

    @property
    def control_port(self) -> int:
        return self._control.port

    def _spawn(self, coroutine: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._handle(events.Tick())

    # What the gateway asks

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def vocabulary(self) -> int:
        return self.model.spec.vocabulary

    @property
    def state(self) -> str:
        """For people: why no model is served, or ''."""
        return "" if self.ready.is_set() else self._cluster.why

    def longest(self) -> int:
        """Tokens of the longest sequence that can run now."""
        return self._serving().scheduler.limits.longest

    def submit(self, request: Request) -> TokenStream:
        """Raises NotReady, InvalidRequest, QueueFull."""
        return self._serving().submit(request)

    def _serving(self) -> Driver:
        if self._driver is None or not self.ready.is_set():
            raise NotReady(f"no model is served now: {self._cluster.why}")
        return self._driver

    def timings(self, rows: int | None = None) -> dict[str, object]:
        return {} if self._driver is None else self._driver.timings.summary(rows)

    def forget_timings(self) -> None:
        if self._driver is not None:
            self._driver.timings.clear()

    @property
    def members(self) -> set[str]:
        """Names of the nodes in the cluster."""
        return {member.joined.profile.name for member in self._cluster.members.values()}

    @property
    def placement(self) -> Placement | None:
        return self._cluster.placement

    def observe_first_token(self, seconds: float) -> None:
        self.metrics.first_token.observe(seconds)

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        self.metrics.requests.labels(endpoint, outcome).inc()
        self.metrics.prompt_tokens.inc(prompt_tokens)

    def scrape(self) -> bytes:
        """The metrics as Prometheus reads them."""
        m = self.metrics
        m.nodes.set(len(self._cluster.members))
        m.ready.set(self.ready.is_set())
        m.predicted.set(self.placement.tokens_per_second if self.placement else 0)
        if self._driver is not None:
            scheduler = self._driver.scheduler
            m.running.set(scheduler.running)
            m.waiting.set(scheduler.waiting)
            m.blocks.set(scheduler.pool.size)
            m.blocks_used.set(scheduler.pool.used)
            m.preemptions.set(scheduler.counters.preemptions)
            m.cached_tokens.set(scheduler.counters.cached_tokens)
        return m.text()

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
                self._handle(events.StageLoaded(node, loaded.epoch, loaded.weight_bytes, loaded.runtime))
            case "linked":
                self._handle(events.StageLinked(node, message.linked.epoch))
            case "failed":
                self._handle(events.StageFailed(node, message.failed.epoch, message.failed.reason))
            case "leave":
                self._part(conversation, "it was told to leave")
            case _:
                pass

    def _join(self, conversation: Conversation, join: control.Join) -> None:
        node = self._next_node
        self._next_node += 1
        taken = self.members | {joined.profile.name for joined in self._probing.values()}
        name = next(n for n in (join.name, *(f"{join.name}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)
        self._conversations[node], self._nodes[conversation] = conversation, node
        welcome = control.Welcome(node=node, name=name, cluster=self._name, heartbeat=self.settings.heartbeat)
        conversation.say(control.HeadMessage(welcome=welcome))
        self._machines[node] = join
        profile = NodeProfile(name, join.memory, join.bytes_per_second, join.flops)
        joined = events.Joined(node, join.incarnation, profile, join.tensor_host or conversation.host, join.tensor_port, join.version)
        if join.version != __version__:
            self._handle(joined)  # which refuses it
            return
        host = self._seen_by(joined)
        conversation.say(control.HeadMessage(probe=control.Probe(host=host, port=self._results.port)))
        self._probing[conversation] = joined

    def _probed(self, conversation: Conversation, joined: events.Joined, message: control.NodeMessage) -> None:
        """A node is a member once its link is measured."""
        match message.WhichOneof("kind"):
            case "probed":
                del self._probing[conversation]
                probed = message.probed
                self._links[joined.profile.name] = Link(max(probed.round_trip, 0) / 2, max(probed.bytes_per_second, 1.0))
                self._handle(joined)
            case "failed":
                del self._probing[conversation]
                self._carry_out(instructions.Refuse(joined.node, message.failed.reason))
            case "leave":
                self._part(conversation, "it was told to leave")
            case _:
                pass

    def hung_up(self, conversation: Conversation) -> None:
        self._part(conversation, "its connection ended")

    def _part(self, conversation: Conversation, reason: str) -> None:
        node = self._nodes.pop(conversation, None)
        if (joined := self._probing.pop(conversation, None)) is not None:
            self._links.pop(joined.profile.name, None)
        if node is not None:
            self._conversations.pop(node, None)
            self._handle(events.Left(node, reason))
            self._machines.pop(node, None)

    def describe(self) -> control.ClusterDescription:
        cluster, now = self._cluster, monotonic()
        out = control.ClusterDescription(
            cluster=self._name,
            model=self.model.name,
            state=cluster.state + (f": {cluster.why}" if cluster.why else ""),
            epoch=cluster.epoch,
        )
        for node, member in cluster.members.items():
            join = self._machines[node]
            described = control.NodeDescription(
                node=node,
                name=member.joined.profile.name,
                address=f"{member.joined.host}:{member.joined.tensor_port}",
                machine=join.machine,
                memory=join.memory,
                threads=join.threads,
                state=f"failed: {member.failed}" if member.failed else "idle",
                silence=now - member.heard,
            )
            if node in cluster.route and cluster.placement is not None:
                stage = cluster.placement.stages[cluster.route.index(node)]
                described.state, described.first_layer, described.end_layer = cluster.state, stage.first, stage.end
                described.weight_bytes, described.runtime = member.weight_bytes, member.runtime
            out.nodes.append(described)
        return out

    # What the state machine decides

    def _place(self, nodes: list[NodeProfile]) -> Placement:
        settings = self.settings
        demand = Demand.of(settings.lanes, settings.kv_tokens, self.context)
        at_least = len(nodes) if settings.spread else 1
        return place(nodes, Links(self._links), self._cost, demand, at_least)

    def _handle(self, event: events.Event) -> None:
        for instruction in self._cluster.handle(event, monotonic()):
            self._carry_out(instruction)

    def _tell(self, node: int, message: control.HeadMessage) -> None:
        if (conversation := self._conversations.get(node)) is not None:
            conversation.say(message)

    def _carry_out(self, instruction: instructions.Instruction) -> None:
        match instruction:
            case instructions.Refuse(node, reason):
                log.warning("node refused", node=node, reason=reason)
                self._tell(node, control.HeadMessage(refuse=control.Refuse(reason=reason)))
                self._machines.pop(node, None)
                if (conversation := self._conversations.pop(node, None)) is not None:
                    self._nodes.pop(conversation, None)
                    conversation.end()
            case instructions.LoadStage():
                self._tell(instruction.node, control.HeadMessage(load=self._load(instruction)))
                if self._route is None or self._route.epoch != instruction.epoch:
                    if self._route is not None:
                        self._route.over.set()
                    self._route = _Route(instruction.epoch)
            case instructions.LinkStage(node, epoch, after):
                host, port = self._reach(node, after)
                self._tell(node, control.HeadMessage(link=control.Link(epoch=epoch, host=host, port=port)))
            case instructions.UnloadStage(node, epoch):
                self._tell(node, control.HeadMessage(unload=control.Unload(epoch=epoch)))
            case instructions.Serve(epoch, first, placement):
                self._spawn(self._serve(epoch, first, placement))
            case instructions.Abandon(reason):
                self.ready.clear()
                if self._driver is not None:
                    self._driver.fail(StageLost(f"a node that held a part of the model was lost ({reason}); send the request again"))
                    self._driver = None
            case instructions.Report(message):
                log.info(message)

    def _load(self, order: instructions.LoadStage) -> control.Load:
        settings = self.settings
        return control.Load(
            epoch=order.epoch,
            model=self.model.reference,
            stage=order.stage,
            stages=order.stages,
            first_layer=order.first,
            end_layer=order.end,
            blocks=max(order.kv_tokens // BLOCK_TOKENS, 2),
            precision=str(settings.precision),
            kv_type=str(settings.kv_type),
            codec=str(settings.activations),
        )

    def _reach(self, node: int, after: int | None) -> tuple[str, int]:
        """Where a node finds the stage after it; the head's own address as that node sees it, after the last."""
        if after is not None:
            joined = self._cluster.members[after].joined
            return joined.host, joined.tensor_port
        return self._seen_by(self._cluster.members[node].joined), self._results.port

    def _seen_by(self, joined: events.Joined) -> str:
        """The head's address as a node sees it."""
        host = self.settings.host
        return facing(joined.host, joined.tensor_port) if host in ("0.0.0.0", "::") else host

    async def _accept(self, stream: FrameStream) -> None:
        """The last stage's link to the head."""
        route = self._route
        try:
            greeting = await greeted(stream)
            placement = self._cluster.placement
            stages = len(placement.stages) if placement and route and not route.results.done() else -1
            await accept_link(stream, greeting, route.epoch if route else 0, self._name, stages, "head")
        except EOFError:
            return
        except (OSError, ProtocolError) as error:
            log.warning("a link was refused or broken", peer=stream.peer, reason=str(error) or type(error).__name__)
            return
        assert route is not None  # no greeting fits stage -1
        route.results.set_result(stream)
        await route.over.wait()

    async def _serve(self, epoch: int, first: int, placement: Placement) -> None:
        """Opens the route and drives it until it breaks."""
        joined, route = self._cluster.members[first].joined, self._route
        assert route is not None and route.epoch == epoch  # made when its stages were told to load
        opened = False
        try:
            upstream = await open_link(joined.host, joined.tensor_port, epoch, Hello(__version__, self._name, "head", 0))
            async with asyncio.timeout(10):
                results = await asyncio.shield(route.results)
            settings = self.settings
            limits = Limits(
                blocks=max(placement.kv_tokens // BLOCK_TOKENS, 2),
                block_tokens=BLOCK_TOKENS,
                context=self.context,
                lanes=settings.lanes,
                step_tokens=settings.step_tokens,
                queue=settings.queue,
                depth=len(placement.stages),
            )
            driver = Driver(Scheduler(limits), upstream, results, epoch, self._observe)
            opened = True
            if self._cluster.state == SERVING and self._cluster.epoch == epoch:
                self._driver = driver
                self.ready.set()
                log.info("serving", model=self.model.name, stages=len(placement.stages), epoch=epoch)
                await driver.run()
        except (StageLost, OSError, EOFError, RemoteProtocolError) as error:
            self._handle(events.RouteBroken(epoch, str(error) or type(error).__name__, opened))
        except Exception as error:
            log.error("the route failed unexpectedly", exc_info=error)
            self._handle(events.RouteBroken(epoch, f"unexpected: {error!r}", opened))
            raise
        finally:
            route.over.set()

    def _observe(self, timing: StepTiming) -> None:
        self.metrics.step(timing)

    async def until_ready(self) -> None:
        """Waits until a model is served. Raises ClusterError where the nodes that joined cannot serve it."""
        while not self.ready.is_set():
            cluster = self._cluster
            enough = len(cluster.members) >= self.settings.min_nodes
            if cluster.state == WAITING and enough and cluster.why:
                raise ClusterError(cluster.why)
            await asyncio.sleep(0.02)
