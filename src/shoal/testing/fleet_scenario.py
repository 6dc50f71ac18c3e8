"""One seed: a cluster that serves several models with several copies of each, and what happens to its nodes, its models and its head.

Nodes have parts in several pipelines; models are loaded and unloaded, and copies opened and closed, while clients read. A request of a
copy that is lost goes on at another one. When the head dies, another one takes its place, serves what it is told to, and takes up the
requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from shoal.config import Balancing, EngineSettings, HeadSettings
from shoal.errors import CapacityError, NotReady, QueueFull, ShoalError
from shoal.membership.path import Path
from shoal.membership.route_machine import RouteMachine
from shoal.node.coordinator import Coordinator
from shoal.node.copies import Copies
from shoal.node.interruption import Interruption
from shoal.node.observer import Served
from shoal.node.pipeline_runner import PipelineRunner
from shoal.pipeline.token_stream import TokenStream
from shoal.pipeline_id import PipelineId
from shoal.request import Request, RequestId, Score, TokenChunk
from shoal.scheduler.limits import ALONE, Batching
from shoal.testing import toy
from shoal.testing.network import SimWorld
from shoal.testing.scenario import JOURNALS, TROUBLE, Broken, Scenario, SimNode, StepCounts

_UNLOADED = "the model was unloaded"
_CLOSED = "the copy was closed"
_MOST_COPIES = 3
_CONTEXT = 160
_BOUND = 900.0  # simulated seconds after which what has not ended counts as stuck


class HeadDied(ShoalError):
    """The stream goes on when another head takes it up."""


class CopyCounts(StepCounts):
    """Of one pipeline."""

    def __init__(self, scenario: FleetScenario, model: LoadedToy) -> None:
        super().__init__(scenario)
        self._fleet, self._model = scenario, model

    def interruption(self, ended: Interruption, cause: str) -> None:
        super().interruption(ended, cause)
        self._fleet.counts.interruptions.append(ended)

    def sampled(self, chunks: list[TokenChunk]) -> None:
        self._model.copies.sampled(chunks)


class LoadedToy:
    """A model that a head serves, and its copies."""

    def __init__(self, scenario: FleetScenario, name: str, coordinator: Coordinator, strategy: Balancing, chance: Random) -> None:
        self.name, self.copies = name, Copies(strategy, coordinator.now, chance, self._moved)
        self._scenario, self._coordinator = scenario, coordinator

    def open(self, number: int) -> None:
        scenario = self._scenario
        engine = scenario.settings.engine
        priority, batching = scenario.terms[self.name]
        cost = toy.cost(scenario.layers_of(self.name))
        served = Served(self.name, self.name, cost, engine.context, engine, priority=priority, batching=batching)
        runner = self._coordinator.open(PipelineId(self.name, number), served, self.observer())
        if scenario.foreteller is not None:
            scenario.foreteller.attach(runner)
        self.copies.add(number, runner)

    def observer(self) -> CopyCounts:
        return CopyCounts(self._scenario, self)

    def close(self, number: int) -> None:
        self._coordinator.close(self.copies.remove(number).pipeline.id, _CLOSED)

    def unload(self) -> None:
        for runner in self.copies:
            self._coordinator.close(runner.pipeline.id, _UNLOADED)

    def submit(self, request: Request) -> TokenStream:
        """At the first copy that has room. Raises NotReady, QueueFull."""
        full: QueueFull | None = None
        try:
            for runner in self.copies.offered(request.id, [request]):
                try:
                    return runner.submit(request)
                except QueueFull as error:
                    full = full or error
        except NotReady:
            if full is None:
                raise
        assert full is not None  # the copies were tried until none was left
        raise full

    def _moved(self, request: RequestId, target: PipelineRunner) -> None:
        self._scenario.moved += 1
        self._scenario.say(f"{request} goes on at {target.pipeline.id}")


class FleetScenario(Scenario):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.disks = self.workers = self.undecided = None
        self.pace, self.layer_bytes, self.seconds = 1000, toy.LAYER_BYTES, toy.Seconds(step=0.02)
        self.chance = Random(f"fleet {seed}")
        sizes = self.chance.sample(range(2, 7), self.chance.randint(1, 3))
        self.sizes = {f"toy{layers}": layers for layers in sizes}
        """Layers, by the names of the models that there are."""
        chance, batches = Random(f"terms {seed}"), [ALONE, *(Batching(size, delay) for size in (1, 2) for delay in (0.3, 2.0))]
        self.terms = {model: (chance.randint(-1, 1), chance.choice(batches)) for model in self.sizes}
        """The priority of each, and how its requests are gathered."""
        self.models: dict[str, LoadedToy] = {}
        """That are loaded."""
        self.settings = self._settings()
        self.moved = self.unloaded = self.successions = 0
        self._streams: dict[RequestId, TokenStream] = {}
        self._over = False

    def _settings(self) -> HeadSettings:
        chance = self.chance
        slots, tokens, rows = chance.choice((2, 4)), chance.choice((192, 320)), chance.choice((32, 64))
        engine = EngineSettings(slots=slots, kv_tokens=tokens, context=_CONTEXT, step_tokens=rows, speculation=self.speculation)
        return HeadSettings(
            engine=engine,
            host="head",
            heartbeat=0.5,
            min_nodes=chance.choice((1, 1, 2)),
            spread=chance.random() < 0.3,
            spares=chance.choice((0, 0, 0, 1)),
            step_timeout=20.0,
            pace=0,  # it depends on real time
            wait=1e6,
        )

    def layers_of(self, model: str) -> int:
        return self.sizes[model]

    def whole(self, model: str) -> int:
        """Bytes that a copy takes on a node that has all of it."""
        return toy.cost(self.sizes[model]).held_bytes + self.sizes[model] * toy.KV_BYTES * self.settings.engine.kv_tokens + 100

    # Running

    async def _play(self) -> None:
        chance = self.chance
        await self._lead()
        for model in self.sizes:
            self._load(model, chance.choice((1, 1, 2, 3)))
        for _ in range(chance.randint(2, 6)):
            self._add_node(self.settings)
        loop = asyncio.get_running_loop()
        work = [loop.create_task(self._client(i)) for i in range(chance.randint(3, 7))]
        work += [loop.create_task(self._trouble(self.settings)), loop.create_task(self._govern())]
        rescue = loop.create_task(self._rescue())
        try:
            done, late = await asyncio.wait(work, timeout=_BOUND)
            for task in done:
                task.result()
            if late:
                raise Broken(f"{len(late)} tasks are stuck; the cluster is {self._head.describe()}")
            await self._until_all_serve()
            await asyncio.sleep(1)
            self.check()
            self._check_rest()
        finally:
            for task in (*work, rescue):
                task.cancel()
            await asyncio.gather(*work, rescue, return_exceptions=True)
            await self._end(self._head)

    @property
    def _head(self) -> Coordinator:
        assert self.coordinator is not None
        return self.coordinator

    async def _lead(self) -> None:
        """A head begins."""
        host = self.network.hosts.get("head") or self.network.host("head")
        host.alive = True
        self.coordinator = Coordinator(self.settings, SimWorld(self.network, host), self.counts)
        await self.coordinator.start()
        self._ambush(self.coordinator)

    async def _rescue(self) -> None:
        """See node.head.Head."""
        while True:
            await asyncio.sleep(0.2)
            for model in self.models.values():
                model.copies.rescue()

    async def _until_all_serve(self) -> None:
        end = self._loop.time() + _BOUND
        while not all(runner.serving and not runner.pipeline.moving for runner in self._head.runners.values()):
            if self._loop.time() > end:
                states = {str(id): runner.pipeline.progress or runner.pipeline.moving for id, runner in self._head.runners.items()}
                raise Broken(f"not all serve though all is well: {states}")
            await asyncio.sleep(1)

    # What must hold

    def check(self) -> None:
        if self.coordinator is None:
            return
        for node in self._nodes:
            for model in node.models:
                assert not model.late, f"{node.host.name} ran a step of an epoch that it had left"
        at: dict[tuple[str, int], PipelineId] = {}
        for id, runner in self.coordinator.runners.items():
            if runner.driver is not None:
                runner.driver.scheduler.check()
            for path in _paths(runner.pipeline):
                layers = [layer for node in path.nodes for layer in path.layers(node)]
                assert layers == list(range(self.sizes[id.model])), f"the route of epoch {path.epoch} of {id} has layers {layers}"
                for node in path.nodes:
                    assert at.setdefault((id.model, node), id) == id, f"{id} shares a node with {at[id.model, node]}"

    def _check_rest(self) -> None:
        """When all requests have ended and all is well."""
        runners, cluster = self._head.runners, self._head.cluster
        for id, runner in runners.items():
            driver = runner.driver
            assert driver is not None
            assert not (driver.scheduler.pool.used or driver.requests or driver.scheduler.running), f"{id} has blocks or sequences left"
        assert not any(member.draining for member in cluster.members.values()), "a node that is to leave never does"
        known = {str(id) for id in runners}
        numbers = {member.joined.host: number for number, member in cluster.members.items()}
        for node in self._nodes:
            if node.agent is None or node.running is None or node.running.done() or (number := numbers.get(node.host.name)) is None:
                continue
            parts = node.agent._parts  # pyright: ignore[reportPrivateUsage]
            held = [part._model for part in parts.values()]  # pyright: ignore[reportPrivateUsage]
            assert all(model in held or not model.layers for model in node.models), f"{node.host.name} holds what is of no pipeline"
            assert parts.keys() <= known, f"{node.host.name} keeps {sorted(parts.keys() - known)}, which nobody serves"
            assert cluster.members[number].profile.memory >= sum(runner.pipeline.takes(number) for runner in runners.values())
            for id, runner in runners.items():
                path = runner.pipeline.serving
                if path is not None and number in path.nodes:
                    assert str(id) in parts, f"{node.host.name} has no part in {id}"

    # Requests

    def _request(self, index: int) -> Request:
        """One of which nothing is at fault, and which takes long enough for something to happen meanwhile."""
        request = super()._request(index)
        most = self.chance.randint(2, _CONTEXT - len(request.prompt))
        sampling = msgspec.structs.replace(request.sampling, logit_bias={})
        return msgspec.structs.replace(request, sampling=sampling, max_tokens=most if request.max_tokens else 0)

    async def _client(self, index: int) -> None:
        request, name = self._request(index), self.rng.choice([*self.sizes])
        leaves = self.rng.randint(1, 10) if self.rng.random() < 0.15 else 0
        await asyncio.sleep(self.rng.uniform(1.0, 0.9 * TROUBLE))
        stream = await self._submitted(request, name)
        while True:
            self._streams[request.id] = stream
            chunks: list[TokenChunk] = []
            try:
                await self._read(stream, request, name, leaves, chunks)
                self.say(f"{request.id} ends")
                break
            except HeadDied:
                stream = await self._taken_up(request, name, [] if request.examined else chunks)
            except ShoalError as error:
                self._check_end(request, name, error)
                self.say(f"{request.id} ends: {error}")
                break
            finally:
                self._streams.pop(request.id, None)
                if name in self.models:
                    self.models[name].copies.ended(request.id)

    async def _submitted(self, request: Request, name: str) -> TokenStream:
        while True:
            try:
                if name in self.models:
                    stream = self.models[name].submit(request)
                    self.say(f"{request.id} of {name} begins: {len(request.prompt)} tokens, {request.max_tokens} wanted, n={request.n}")
                    return stream
            except CapacityError:
                self.models[name].copies.ended(request.id)
            await asyncio.sleep(0.5)

    async def _taken_up(self, request: Request, name: str, said: list[TokenChunk]) -> TokenStream:
        """By the head that has come, as soon as it serves that model: see ModelEngine.resumed."""
        while name not in self.models:  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.5)
        stream = TokenStream(request, said)
        runner = min(self.models[name].copies, key=lambda runner: len(runner.requests))
        runner.requests.take_up(stream)
        self.say(f"{request.id} of {name} is taken up by {runner.pipeline.id} after {len(said)} tokens")
        return stream

    async def _read(self, stream: TokenStream, request: Request, name: str, leaves: int, chunks: list[TokenChunk]) -> None:
        """chunks: is given what came. Raises what ends the stream."""
        wanted, (scores, embedding) = toy.expected(request, self.sizes[name]), toy.examined(request, self.sizes[name])
        if self.foreteller is not None:
            self.foreteller.answers[request.id] = wanted
        told: list[Score] = []
        said: list[list[int]] = [[] for _ in range(request.n)]
        async for chunk in stream:
            chunks.append(chunk)
            told += chunk.scores
            if told != scores[: len(told)] or chunk.embedding not in (b"", embedding):
                raise Broken(f"{request.id} says {told} of its prompt, and should say {scores}")
            if chunk.token is not None:
                said[chunk.choice].append(chunk.token)
                self.tokens += 1
            mine, right = said[chunk.choice], wanted[chunk.choice]
            if mine != right[: len(mine)] or (chunk.finish is not None and len(mine) != len(right)):
                raise Broken(f"{request.id} choice {chunk.choice} of {name} says {mine}, and should say {right}")
            if leaves and len(mine) >= leaves:
                stream.close()
                self.say(f"{request.id} is left by its client")
                return
        if said != wanted or told != scores:
            raise Broken(f"{request.id} ends after {said} and {told}, and should say {wanted} and {scores}")

    def _check_end(self, request: Request, name: str, error: ShoalError) -> None:
        """A stream ends with an error only where its model was unloaded, or its copy closed and nobody else can go on with it."""
        if str(error) == _UNLOADED and name in self._were_unloaded:
            self.unloaded += 1
            return
        alone = request.examined or not any(runner.serving for runner in self.models[name].copies) if name in self.models else True
        if str(error) == _CLOSED and alone:
            return
        raise Broken(f"{request.id} of {name} ended with an error: {error}") from error

    # Models, copies and heads

    def _load(self, name: str, copies: int) -> None:
        strategy = self.chance.choice((Balancing.PREFIX, Balancing.ROUND_ROBIN, Balancing.LEAST_CONNECTIONS))
        self.models[name] = model = LoadedToy(self, name, self._head, strategy, Random(self.chance.random()))
        for number in range(1, copies + 1):
            model.open(number)
        self.say(f"{name} is loaded with {copies} copies")

    def _unload(self, name: str) -> None:
        self.say(f"{name} is unloaded")
        self._were_unloaded.add(name)
        self.models.pop(name).unload()

    def _open_copy(self, name: str) -> None:
        numbers = self.models[name].copies.runners.keys()
        if free := [number for number in range(1, _MOST_COPIES + 1) if number not in numbers]:
            self.say(f"copy {free[0]} of {name} is opened")
            self.models[name].open(free[0])

    def _close_copy(self, name: str) -> None:
        if len(numbers := [*self.models[name].copies.runners]) > 1:
            number = self.chance.choice(numbers)
            self.say(f"copy {number} of {name} is closed")
            self.models[name].close(number)

    def _drain(self, node: SimNode) -> None:
        if self.coordinator is not None:
            super()._drain(node)

    def _remove(self, node: SimNode) -> None:
        if self.coordinator is not None:
            super()._remove(node)

    def _limit(self, name: str) -> None:
        """Of the memory of a node."""
        node = self.chance.choice(self._nodes)
        limit = self.chance.choice((None, int(node.memory * self.chance.uniform(0.3, 1))))
        self.say(f"{node.host.name} may use {limit}: {self._head.cap(node.host.name, limit).message}")

    def _reload(self, name: str) -> None:
        copies = len(self.models[name].copies.runners)
        self._unload(name)
        self._load(name, copies)

    async def _succeed(self) -> None:
        """The head dies, and another one begins: with fewer models or other copies, now and then."""
        self.say("the head dies")
        self.successions += 1
        head, host = self._head, self.network.hosts["head"]
        head._stopping = True  # pyright: ignore[reportPrivateUsage] - a dead head decides nothing
        tasks = [*head._tasks, *host.tasks]  # pyright: ignore[reportPrivateUsage]
        self.network.crash(host)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        before, self.models, self.coordinator = self.models, {}, None
        for stream in self._streams.values():
            stream.put(HeadDied("the head died"))
        await asyncio.sleep(self.chance.uniform(0.1, 12))
        self.say("another head takes its place")
        await self._lead()
        for name, model in before.items():
            if self.chance.random() < 0.8:
                self._load(name, self.chance.choice((len(model.copies.runners), self.chance.randint(1, _MOST_COPIES))))

    async def _govern(self) -> None:
        """What operators do, while nodes fail."""
        self._were_unloaded = set[str]()
        actions: list[Callable[[str], Any]] = [
            self._open_copy,
            self._open_copy,
            self._close_copy,
            self._close_copy,
            self._limit,
            self._reload,
            self._unload,
        ]
        for moment in sorted(self.chance.uniform(1, TROUBLE) for _ in range(self.chance.randint(0, 6))):
            await asyncio.sleep(max(moment - self._loop.time(), 0))
            if self.chance.random() < 0.2:
                await self._succeed()
                continue
            name = self.chance.choice([*self.sizes])
            if name in self.models:
                self.chance.choice(actions)(name)
            else:
                self._load(name, self.chance.randint(1, _MOST_COPIES))
        await asyncio.sleep(max(TROUBLE + 5 - self._loop.time(), 0))
        while self.coordinator is None:  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(1)
        for name in self.sizes.keys() - self.models.keys():
            self._load(name, 1)

    # Nodes

    def _add_node(self, settings: HeadSettings, share: float = 0.0) -> None:
        """share: of the memory that a copy of every model needs."""
        rng, all_models = self.rng, sum(map(self.whole, self.sizes))
        memory = int(all_models * (share or rng.choice((0.3, 0.5, 0.7, 1.1))))
        speed = rng.uniform(0.5, 2) * self.pace * self.layer_bytes
        node = SimNode(self.network.host(f"n{len(self._nodes)}"), memory, speed, rng.choice(JOURNALS))
        self._nodes.append(node)
        self._start(node)

    def _start(self, node: SimNode) -> None:
        node.models.clear()  # they went with its process
        super()._start(node)

    async def _mend(self, settings: HeadSettings) -> None:
        while self.coordinator is None:  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(1)
        await super()._mend(settings)
        for _ in range(_MOST_COPIES - 1):
            self._add_node(settings, 1.3)
        while capped := [member.name for member in self._head.cluster.members.values() if member.cap is not None]:
            for name in capped:
                self._head.cap(name, None)
            await asyncio.sleep(1)


def _paths(pipeline: RouteMachine) -> list[Path]:
    return [path for path in (pipeline.serving, pipeline.coming) if path is not None]
