"""One seed: a cluster, requests, and the faults that happen to them. The same seed gives the same events, to the last one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from collections.abc import Callable, MutableMapping, Sequence
from random import Random
from typing import Any

import msgspec
import structlog

from shoal.config import EngineSettings, HeadSettings, NodeRole, NodeSettings, Speculation
from shoal.control import messages as control
from shoal.errors import CapacityError, ClusterError
from shoal.executor.journal import JournalLimits
from shoal.executor.measure import Speed
from shoal.node.agent import Agent
from shoal.node.coordinator import Coordinator
from shoal.node.interruption import Interruption
from shoal.node.observer import Served
from shoal.node.pipeline_runner import PipelineRunner
from shoal.pipeline.timing import StepTiming
from shoal.pipeline_id import PipelineId
from shoal.request import Request, RequestId, SamplingParams, Score, TokenChunk
from shoal.testing import toy
from shoal.testing.clock import Deadlock, SimulatedLoop
from shoal.testing.foreteller import foreteller_of
from shoal.testing.network import Host, Network, SimWorld
from shoal.testing.whims import Whims

_WITH_DISKS = 0.3  # of the seeds
_WITH_WORKERS = 0.3  # of the seeds, whose model has experts then
_UNDECIDED = 0.6  # of these seeds
TROUBLE = 25.0  # simulated seconds during which things happen
_BOUND = 4000.0  # simulated seconds after which a request that has not ended counts as stuck
JOURNALS = (JournalLimits(0, 0), JournalLimits(32 * 4 * 2, 0), JournalLimits(32 * 4, 32 * 4 * 2), JournalLimits(1 << 20, 0))
_GRAMMARS = tuple(
    json.dumps({"grammars": [{"lark_grammar": f"start: /{pattern}/"}]}) for pattern in ("[a-f]{5,30}", "(ab|[g-m]{3}k)+x?", "(a[^a]*a){3}")
)


def disks_of(seed: int) -> Random | None:
    """The chance of their reads, where nodes have less memory than the model needs and read the rest of it from disks."""
    chance = Random(f"disks {seed}")
    return chance if chance.random() < _WITH_DISKS else None


def workers_of(seed: int) -> Random | None:
    """Which nodes hold experts alone, where the model has any."""
    chance = Random(f"workers {seed}")
    return chance if chance.random() < _WITH_WORKERS else None


def undecided_of(seed: int) -> Random | None:
    """Which nodes' roles the plan decides, where there may be workers."""
    chance = Random(f"roles {seed}")
    return chance if workers_of(seed) is not None and chance.random() < _UNDECIDED else None


class Broken(AssertionError):
    """An invariant does not hold; the events show how that came about."""


class StepCounts:
    """The coordinator's observer: after every step, and whenever a node reports, the counts must be right."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self.interruptions: list[Interruption] = []

    def step(self, timing: StepTiming, hops: tuple[float, ...]) -> None:
        self._scenario.check()

    def route(self, nodes: Sequence[str]) -> None:
        pass

    def interruption(self, ended: Interruption, cause: str) -> None:
        self.interruptions.append(ended)
        self._scenario.say(f"streams go on after {ended.resumed - ended.began:.2f} s, {ended.tokens} tokens refilled")

    def heartbeat(self, node: str, heartbeat: control.Heartbeat) -> None:
        self._scenario.check()

    def report(self, node: str, report: control.PipelineReport) -> None:
        pass

    def gone(self, node: str) -> None:
        pass

    def sampled(self, chunks: list[TokenChunk]) -> None:
        pass


@dataclasses.dataclass(eq=False)
class SimNode:
    host: Host
    memory: int
    speed: float
    journals: JournalLimits
    environment: SimWorld | None = None
    agent: Agent | None = None
    running: asyncio.Task[Any] | None = None
    disk: toy.Disk | None = None
    role: NodeRole = NodeRole.LAYERS
    models: list[toy.ToyModel] = dataclasses.field(default_factory=list[toy.ToyModel])


class Scenario:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.events: list[str] = []
        self.tokens = self.faults = 0
        self.layers = self.rng.randint(3, 7)
        self.seconds = toy.Seconds()
        self.foreteller = foreteller_of(seed)
        self.disks, self.workers, self.undecided = disks_of(seed), workers_of(seed), undecided_of(seed)
        # To the plan, slow nodes have reason to ask others, and to hold experts that others hold, too.
        slow = self.workers is not None and Random(f"slow {seed}").random() < 0.5
        self.pace = 1000 if self.undecided is None and not slow else 30
        self.layer_bytes = toy.LAYER_BYTES if self.disks is None else 1 << 20  # units that are read fill pages
        self.network = Network(Random(self.rng.random()), self.say)
        self.coordinator: Coordinator | None = None
        self.counts = StepCounts(self)
        self._loop = SimulatedLoop()
        self._nodes: list[SimNode] = []
        self._unexpected: list[str] = []

    @property
    def speculation(self) -> Speculation:
        return Speculation.OFF if self.foreteller is None else Speculation.LOOKUP

    def say(self, what: str) -> None:
        self.events.append(f"{self._loop.time():9.3f}  {what}")

    # Running

    def run(self) -> None:
        """Raises Broken with all events."""
        structlog.configure(processors=[self._log])
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._play())
            if self.network.unexpected or self._unexpected:
                raise Broken(f"something unexpected happened: {[*self.network.unexpected, *self._unexpected]}")
        except (AssertionError, Deadlock, asyncio.InvalidStateError, KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
            raise Broken(f"seed {self.seed}: {type(error).__name__}: {error}\n" + "\n".join(self.events)) from error
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()
            structlog.reset_defaults()

    def _log(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        words = str(event.pop("event", ""))
        error = event.pop("exc_info", None)
        self.say(" ".join([f"[{method}]", words, *(f"{k}={v}" for k, v in event.items()), *([repr(error)] if error else [])]))
        if "unexpected" in words:
            self._unexpected.append(f"{words}: {error!r}")
        raise structlog.DropEvent

    async def _play(self) -> None:
        rng = self.rng
        settings = HeadSettings(
            engine=EngineSettings(
                slots=rng.choice((2, 4)),
                kv_tokens=rng.choice((192, 320)),
                context=160,
                step_tokens=rng.choice((32, 64)),
                speculation=self.speculation,
            ),
            host="head",
            heartbeat=0.5,
            spread=rng.random() < 0.4,
            spares=rng.choice((0, 0, 1)),
            step_timeout=20.0,
            pace=0,  # it depends on real time
            wait=1e6,
        )
        head = SimWorld(self.network, self.network.host("head"))
        self.coordinator = coordinator = Coordinator(settings, head, self.counts)
        cost = toy.cost(self.layers, self.layer_bytes, self.workers is not None)
        runner = coordinator.open(PipelineId("toy"), Served("toy", "toy", cost, 160, settings.engine), self.counts)
        if self.foreteller is not None:
            self.foreteller.attach(runner)
        if self.undecided is not None:
            whims = Whims(runner.planning.moves, self.undecided)
            runner.planning = dataclasses.replace(runner.planning, planner=whims)
            runner.pipeline._planner = whims  # pyright: ignore[reportPrivateUsage]
        await coordinator.start()
        self._ambush(coordinator)
        for _ in range(rng.randint(2, 5)):
            self._add_node(settings)
        loop = asyncio.get_running_loop()
        clients = [loop.create_task(self._client(i)) for i in range(rng.randint(2, 5))]
        trouble = loop.create_task(self._trouble(settings))
        try:
            done, late = await asyncio.wait([*clients, trouble], timeout=_BOUND)
            for task in (*clients, trouble):
                if task in done:
                    task.result()
            if late:
                raise Broken(f"{len(late)} requests are stuck; the cluster is {coordinator.describe()}")
            await asyncio.sleep(1)
            self.check()
            self._check_parts(coordinator)
            driver = self.runner.driver
            if driver is not None and (driver.scheduler.pool.used or driver.requests or driver.scheduler.running):
                raise Broken("KV blocks or sequences are left though every request ended")
        finally:
            for task in (*clients, trouble):
                task.cancel()
            await self._end(coordinator)

    @property
    def runner(self) -> PipelineRunner:
        """Of the only pipeline."""
        assert self.coordinator is not None
        return next(iter(self.coordinator.runners.values()))

    async def _end(self, coordinator: Coordinator) -> None:
        await coordinator.stop()
        await asyncio.sleep(60)
        for node in self._nodes:
            await self._kill(node)
        await asyncio.sleep(60)
        left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in left:
            task.cancel()
        if left:
            raise Broken(f"tasks are left when all is over: {left}")

    def check(self) -> None:
        """What must hold at every moment."""
        if self.coordinator is None:
            return
        for node in self._nodes:
            for model in node.models:
                assert not model.late, f"{node.host.name} ran a step of an epoch that it had left"
                assert model.shard.largest_journal <= model.journals.memory, (
                    f"a journal of {node.host.name} takes {model.shard.largest_journal} bytes"
                )
        if self.runner.driver is not None:
            self.runner.driver.scheduler.check()
        for path in (self.runner.pipeline.serving, self.runner.pipeline.coming):
            if path is not None:
                layers = [layer for node in path.nodes for layer in path.layers(node)]
                assert layers == list(range(self.layers)), f"the route of epoch {path.epoch} has layers {layers}"

    def _check_parts(self, coordinator: Coordinator) -> None:
        """Where all is quiet, nodes that hold experts have no layers, and stages no experts for others."""
        if (path := self.runner.pipeline.serving) is None or self.runner.pipeline.coming is not None:
            return
        parts = {member.joined.host: number for number, member in coordinator.cluster.members.items()}
        for node in self._nodes:
            number, model = parts.get(node.host.name), node.models[-1] if node.models else None
            if model is None or node.running is None or number not in path.members:
                continue
            assert not (number in path.workers and model.layers), f"{node.host.name} holds experts and still layers {model.layers}"
            assert not (number in path.nodes and any(model.bank.held.values())), f"{node.host.name} runs layers and still holds experts"

    # Requests

    def _request(self, index: int) -> Request:
        rng = self.rng
        sampling = SamplingParams(
            temperature=rng.choice((0.0, 0.7, 1.5)),
            seed=rng.randrange(2**32),
            repetition_penalty=rng.choice((1.0, 1.3)),
            frequency_penalty=rng.choice((0.0, 0.5)),
            logprobs=rng.choice((None, 2)),
            grammar=rng.choice(_GRAMMARS) if rng.random() < 0.2 else "",
        )
        shared = [(7 * i) % toy.VOCABULARY for i in range(rng.choice((0, 0, 40)))]
        prompt = [*shared, *(rng.randrange(toy.VOCABULARY) for _ in range(rng.randint(1, 70)))]
        stops = frozenset({toy.END}) if sampling.grammar or rng.random() < 0.3 else frozenset[int]()
        request = Request(RequestId(f"r{index}"), prompt, rng.randint(2, 24), sampling, rng.choice((1, 1, 2)), stops)
        asks = Random(f"{self.seed} {index}")
        if asks.random() < 0.3:
            scored, embedded = asks.choice(((2, False), (0, False), (None, True), (1, True)))
            most = asks.choice((0, request.max_tokens, request.max_tokens))
            request = msgspec.structs.replace(request, prompt_logprobs=scored, embed=embedded, max_tokens=most)
        if request.samples and asks.random() < 0.15:  # one for which the sampler can do nothing
            spoilt = msgspec.structs.replace(sampling, grammar="", logit_bias={asks.randrange(toy.VOCABULARY): math.nan})
            request = msgspec.structs.replace(request, sampling=spoilt)
        return request

    async def _client(self, index: int) -> None:
        request, leaves = self._request(index), self.rng.randint(1, 10) if self.rng.random() < 0.15 else 0
        faulty = bool(request.sampling.logit_bias)
        wanted = [list[int]() for _ in range(request.n)] if faulty else toy.expected(request, self.layers)
        if self.foreteller is not None and not faulty:
            self.foreteller.answers[request.id] = wanted
        scores, embedding = toy.examined(request, self.layers)
        told: list[Score] = []
        await asyncio.sleep(self.rng.uniform(1.0, 0.8 * TROUBLE))
        assert self.coordinator is not None
        while True:
            try:
                stream = self.runner.submit(request)
                break
            except CapacityError:
                await asyncio.sleep(0.5)
        self.say(f"{request.id} begins: {len(request.prompt)} tokens, {request.max_tokens} wanted, n={request.n}")
        said: list[list[int]] = [[] for _ in range(request.n)]
        try:
            async for chunk in stream:
                told += chunk.scores
                if told != scores[: len(told)] or chunk.embedding not in (b"", embedding):
                    raise Broken(f"{request.id} says {told} and {chunk.embedding} of its prompt, and should say {scores} and {embedding}")
                if chunk.embedding:
                    embedding = b""  # once
                if chunk.choice == 0 and (chunk.token is not None or chunk.finish is not None) and (len(told) < len(scores) or embedding):
                    raise Broken(f"{request.id} goes on before all is said of its prompt")
                if chunk.token is not None:
                    said[chunk.choice].append(chunk.token)
                    self.tokens += 1
                mine, right = said[chunk.choice], wanted[chunk.choice]
                if mine != right[: len(mine)] or (chunk.finish is not None and len(mine) != len(right)):
                    raise Broken(f"{request.id} choice {chunk.choice} says {mine}, and should say {right}")
                if leaves and self.tokens and len(mine) >= leaves:
                    stream.close()
                    self.say(f"{request.id} is left by its client")
                    return
            if faulty:
                raise Broken(f"{request.id} ended as if its tokens could be sampled")
        except ClusterError as error:
            if "hold sequences of" not in str(error) and not (faulty and "not a number" in str(error)):
                raise Broken(f"{request.id} ended with an error: {error}") from error
            self.faults += faulty
        self.say(f"{request.id} ends")

    # Nodes and their faults

    def _add_node(self, settings: HeadSettings, share: float = 0.0) -> None:
        """share: of the memory that the whole model needs."""
        rng = self.rng
        whole = self.layers * (self.layer_bytes + toy.KV_BYTES * settings.engine.kv_tokens) + self.layer_bytes + 100
        memory, disk = int(whole * (share or rng.choice((0.45, 0.6, 0.8, 1.1)))), None
        if self.disks is not None and not share:
            failing = (
                0.02 if self.undecided is None else 0.005
            )  # routes that often change are long on their way, and a request has few tries
            memory, disk = memory // 2, toy.Disk(Random(self.disks.random()), self.layer_bytes, failing=failing)
        node = SimNode(
            self.network.host(f"n{len(self._nodes)}"),
            memory,
            rng.uniform(0.5, 2) * self.pace * self.layer_bytes,
            rng.choice(JOURNALS),
            disk=disk,
            role=NodeRole.LAYERS if share else self._role(),
        )
        self._nodes.append(node)
        self._start(node)

    def layers_of(self, model: str) -> int:
        """model: the reference of one that is served."""
        return self.layers

    def _role(self) -> NodeRole:
        if self.workers is None:
            return NodeRole.LAYERS
        given = NodeRole.EXPERTS if self.workers.random() < 0.5 else NodeRole.LAYERS
        return NodeRole.AUTO if self.undecided is not None and self.undecided.random() < 0.8 else given

    def _start(self, node: SimNode) -> None:
        node.host.alive = True
        node.host.awake.set()
        node.environment = environment = SimWorld(self.network, node.host)

        def make(order: control.Load) -> toy.ToyModel:
            node.models.append(toy.ToyModel(self.layers_of(order.model), node.journals, self.seconds, environment.spend, node.disk))
            return node.models[-1]

        name = node.host.name
        node.agent = Agent(
            NodeSettings(name=name, threads=1, role=node.role),
            "head:7420",
            environment,
            make,
            Speed(node.speed, node.speed, node.speed / 10 if node.disk else 0.0),
            node.memory,
        )
        node.running = asyncio.get_running_loop().create_task(self._run(node, node.agent))

    async def _run(self, node: SimNode, agent: Agent) -> None:
        try:
            self.say(f"{node.host.name} ended: {await agent.run()}")
        except ClusterError as error:
            self.say(f"{node.host.name} ended: {error}")

    async def _kill(self, node: SimNode) -> None:
        self.network.crash(node.host)
        for task in [*node.host.tasks, *([node.running] if node.running is not None else [])]:
            task.cancel()
        if node.running is not None:
            await asyncio.gather(node.running, return_exceptions=True)
            node.running = None

    @property
    def _happenings(self) -> list[Callable[[SimNode], Any]]:
        """What may happen to a node."""
        return [
            self._crash, self._crash, self._crash, self._freeze, self._unplug, self._slow, self._fill_disk,
            self._cut, self._cut, self._leave, self._drain, self._remove, self._separate,
        ]  # fmt: skip

    async def _trouble(self, settings: HeadSettings) -> None:
        """Causes faults; at the end everything is well again."""
        rng, network = self.rng, self.network
        events = self._happenings
        network.duplicates = rng.choice((0.0, 0.0, 0.02))
        network.losses = rng.choice((0.0, 0.0, 0.0, 0.005))
        moments = sorted(rng.uniform(0.5, TROUBLE) for _ in range(rng.randint(1, 7)))
        if rng.random() < 0.3:  # several at once
            moments = [moments[0] + 0.01 * i for i in range(len(moments))]
        for moment in moments:
            await asyncio.sleep(max(moment - self._loop.time(), 0))
            if rng.random() < 0.15 and len(self._nodes) < 7:
                self.say("another node is started")
                self._add_node(settings)
            node = rng.choice(self._nodes)
            happening = rng.choice(events)
            self.say(f"{happening.__name__[1:].replace('_', ' ')} {node.host.name}")
            result = happening(node)
            if result is not None:
                await result
        await asyncio.sleep(max(TROUBLE + 5 - self._loop.time(), 0))
        await self._mend(settings)

    async def _mend(self, settings: HeadSettings) -> None:
        """From now on all is well."""
        network, head = self.network, self.network.hosts["head"]
        self.say("all is well again")
        network.duplicates = network.losses = 0.0
        for node in self._nodes:
            network.join(node.host, head)
            for other in self._nodes:
                network.join(node.host, other.host)
            network.thaw(node.host)
            node.host.slower = 1.0
            if node.disk is not None:
                node.disk.replaced()
            if node.running is None or node.running.done():
                await self._kill(node)
                self._start(node)
        self._add_node(settings, 1.3)  # with which there is always enough memory

    def _ambush(self, coordinator: Coordinator) -> None:
        """From time to time, a node of a route in preparation, or of one that has just begun to serve, is lost at that moment."""
        handle, seen = coordinator.cluster.handle, dict[PipelineId, str]()

        def watched(event: Any, now: float) -> Any:
            out = handle(event, now)
            for pipeline in coordinator.cluster.pipelines.values():
                phase = f"{pipeline.epoch} {pipeline.moving or pipeline.state}"
                if seen.get(pipeline.id) != phase:
                    seen[pipeline.id] = phase
                    if self._loop.time() < TROUBLE and self.rng.random() < 0.06 and (nodes := pipeline.route):
                        nodes = [*nodes, *pipeline.workers]
                        self._loop.call_later(self.rng.uniform(0, 0.05), self._strike, coordinator, self.rng.choice(nodes), phase)
            return out

        coordinator.cluster.handle = watched

    def _strike(self, coordinator: Coordinator, number: int, phase: str) -> None:
        member = coordinator.cluster.members.get(number)
        node = next((n for n in self._nodes if member is not None and n.host.name == member.joined.host), None)
        if node is not None and node.running is not None and node.environment is not None:
            self.say(f"{node.host.name} is lost while the cluster is at {phase}")
            happening = self.rng.choice((self._crash, self._freeze, self._unplug))
            result = happening(node)
            if result is not None:
                coordinator.spawn(result)

    async def _crash(self, node: SimNode) -> None:
        await self._kill(node)
        if self.rng.random() < 0.5:
            asyncio.get_running_loop().call_later(self.rng.uniform(0.5, 8), self._again, node)

    def _again(self, node: SimNode) -> None:
        if node.running is None:
            self.say(f"{node.host.name} is started again")
            self._start(node)

    def _freeze(self, node: SimNode) -> None:
        self.network.freeze(node.host)
        asyncio.get_running_loop().call_later(self.rng.uniform(0.2, 10), self._thaw, node)

    def _thaw(self, node: SimNode) -> None:
        if node.host.frozen:
            self.say(f"{node.host.name} thaws")
            self.network.thaw(node.host)

    def _unplug(self, node: SimNode) -> None:
        others = [host for host in self.network.hosts.values() if host is not node.host]
        for other in others:
            self.network.part(node.host, other)
        asyncio.get_running_loop().call_later(self.rng.uniform(0.2, 20), self._plug, node, others)

    def _plug(self, node: SimNode, others: list[Host]) -> None:
        self.say(f"{node.host.name} is plugged in again")
        for other in others:
            self.network.join(node.host, other)

    def _separate(self, node: SimNode) -> None:
        """Two nodes can no longer reach each other; both reach the head."""
        other = self.rng.choice(self._nodes)
        if other is not node:
            self.network.part(node.host, other.host)
            asyncio.get_running_loop().call_later(self.rng.uniform(0.2, 20), self._plug, node, [other.host])

    def _cut(self, node: SimNode) -> None:
        if node.host.pipes:
            self.rng.choice([*node.host.pipes]).cut()

    def _slow(self, node: SimNode) -> None:
        node.host.slower = self.rng.choice((3.0, 10.0))

    def _fill_disk(self, node: SimNode) -> None:
        for model in node.models:
            for journal in model.shard._journals.values():  # pyright: ignore[reportPrivateUsage]
                journal._full = True  # pyright: ignore[reportPrivateUsage]

    def _leave(self, node: SimNode) -> None:
        if node.agent is not None:
            node.agent.leave()

    def _drain(self, node: SimNode) -> None:
        assert self.coordinator is not None
        self.coordinator.dismiss(control.DismissRequest(name=node.host.name, drain=True))

    def _remove(self, node: SimNode) -> None:
        assert self.coordinator is not None
        self.coordinator.dismiss(control.DismissRequest(name=node.host.name))
