"""One seed: several heads, of which one leads by a lease, with nodes and requests; the heads die, stop for a while, and lose each other, the
nodes or the keeper of the lease.

What must hold: tokens are handed out only by the head that the keeper counts as the leader; no node runs a step for a head after it was
led by a later one; and every stream says the same as without any loss.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from shoal.control import messages as control
from shoal.control.server import Attendant
from shoal.errors import LeaseUnreachable, NotReady
from shoal.leadership.candidate import Candidate
from shoal.leadership.lease import Grant, Holder
from shoal.leadership.memory import MemoryKeeper, MemoryLease
from shoal.node.coordinator import Coordinator
from shoal.node.environment import ControlDoor
from shoal.node.follower import Follower
from shoal.node.followers import Followers, Leadership
from shoal.node.head_machine import Turn
from shoal.node.standby import Standby
from shoal.node.standing_by import StandingBy
from shoal.pipeline import records
from shoal.pipeline.records import Accepted, Gone, KeptAnswer, SampledToken, SampledTokens
from shoal.pipeline.token_stream import TokenStream
from shoal.request import Request, RequestId, TokenChunk
from shoal.testing.fleet_scenario import CopyCounts, FleetScenario, HeadDied, LoadedToy
from shoal.testing.network import Host, Network, SimControlDoor, SimWorld
from shoal.testing.scenario import TROUBLE, SimNode

DURATION = 2.0  # seconds of a lease


class HeadWorld(SimWorld):
    """See node.head_machine.HeadMachine."""

    def __init__(self, network: Network, host: Host, between: Attendant) -> None:
        super().__init__(network, host)
        self._between = between
        self._door = SimControlDoor(self, between, 7420)

    async def control_door(self, attendant: Attendant, host: str, port: int) -> ControlDoor:
        return Turn(self._door, attendant, self._between)


class MemoryLog:
    """A log of requests as pipeline.request_log writes it, in memory."""

    def __init__(self, kept: Sequence[KeptAnswer], put: Callable[[bytes], None]) -> None:
        self.data = bytearray(records.written("toy", kept))
        self._put = put
        self._numbers = {request.id: answer.first + i for answer in kept for i, request in enumerate(answer.requests)}
        self._examined = {request.id for answer in kept for request in answer.requests if request.examined}
        self._next = max(self._numbers.values(), default=-1) + 1

    def accepted(self, request: Request) -> None:
        self._numbers[request.id] = self._next
        if request.examined:
            self._examined.add(request.id)
        self._add(records.encode(Accepted(request.id, self._next, b"", [request])))
        self._next += 1

    def sampled(self, chunks: Sequence[TokenChunk]) -> None:
        kept = [chunk for chunk in chunks if chunk.choice or chunk.request not in self._examined]
        samples = [SampledToken.of(self._numbers[chunk.request], chunk) for chunk in kept if chunk.request in self._numbers]
        if samples:
            self._add(records.encode(SampledTokens(samples)))

    def gone(self, request: RequestId) -> None:
        if self._numbers.pop(request, None) is not None:
            self._add(records.encode(Gone(request)))

    def _add(self, data: bytes) -> None:
        self.data += data
        self._put(data)

    def snapshot(self, take: Callable[[bytes], None]) -> None:
        take(bytes(self.data))


class MemoryCopies:
    """See node.copied_files.CopiedFiles."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self._coming: dict[str, bytearray] = {}

    def apply(self, message: control.Copy | control.Append) -> None:
        if isinstance(message, control.Append):
            self.files[message.name] += message.data
            return
        if message.first:
            self._coming[message.name] = bytearray()
        self._coming[message.name] += message.data
        if message.last:
            self.files[message.name] = self._coming.pop(message.name)


class CutLease(MemoryLease):
    """Of a head that may be cut off from the keeper, or stopped."""

    def __init__(self, keeper: MemoryKeeper, host: Host, now: Callable[[], float]) -> None:
        super().__init__(keeper, DURATION, now)
        self.cut = False
        self._host = host

    async def _reach(self) -> None:
        await asyncio.sleep(0.002)
        await self._host.awake.wait()
        if self.cut:
            raise LeaseUnreachable("the keeper in memory", "this head is cut off from it")

    async def acquire(self, address: str) -> Grant | None:
        await self._reach()
        return await super().acquire(address)

    async def renew(self) -> Grant | None:
        await self._reach()
        return await super().renew()

    async def holder(self) -> Holder | None:
        await self._reach()
        return await super().holder()


@dataclasses.dataclass(eq=False)
class SimHead:
    name: str
    host: Host
    lease: CutLease
    candidate: Candidate
    copies: MemoryCopies
    process: asyncio.Task[None] | None = None
    coordinator: Coordinator | None = None
    followed: bool = False

    @property
    def address(self) -> str:
        return f"{self.name}:7420"


class LedCounts(CopyCounts):
    def __init__(self, scenario: StandbyScenario, model: LoadedToy, log: MemoryLog) -> None:
        super().__init__(scenario, model)
        self._log = log

    def sampled(self, chunks: list[TokenChunk]) -> None:
        super().sampled(chunks)
        self._log.sampled(chunks)


class StandbyScenario(FleetScenario):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.fate = Random(f"standby {seed}")
        self.before = self.fate.random() < 0.7
        """Whether tokens wait until a standby has them."""
        self.keeper = MemoryKeeper(self._loop.time)
        self.heads: list[SimHead] = []
        self.logs: dict[str, MemoryLog] = {}
        self.resumed: dict[RequestId, TokenStream] = {}
        """Requests that the head that leads took over, and for which nobody has come back yet."""
        self.led_by: dict[str, int] = {}
        """The last under which each node ran a step."""
        self.forgotten = 0
        """Requests that a successor did not know."""
        self._ended: set[RequestId] = set()
        self.lead = 0

    # Heads

    async def _lead(self) -> None:
        """The heads begin; returns when one of them leads."""
        for i in range(self.fate.choice((2, 2, 3))):
            name = "head" if i == 0 else f"head{i + 1}"
            host = self.network.host(name)
            lease = CutLease(self.keeper, host, self._loop.time)
            candidate = Candidate(lease, f"{name}:7420", self._loop.time, Random(self.fate.random()))
            self.heads.append(SimHead(name, host, lease, candidate, MemoryCopies()))
        for head in self.heads:
            self._begin(head)
        await self._until_led()

    def _begin(self, head: SimHead) -> None:
        head.host.alive = True
        head.process = asyncio.get_running_loop().create_task(self._turns(head, first=head is self.heads[0] and not self.lead))

    async def _until_led(self) -> None:
        while self.coordinator is None:  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.1)

    async def _turns(self, head: SimHead, first: bool) -> None:
        """A head's process. See cli.succession."""
        standing = StandingBy(lambda: standby.leader if standby is not None else "")
        standby: Standby | None = None
        world = HeadWorld(self.network, head.host, standing)
        may_begin = first
        while True:
            follower = Follower(head.address, head.copies, lambda serves: None, world.compute)
            standby = Standby(head.lease, head.candidate, follower, world.control_link, may_begin=may_begin)
            grant = await standby.until_elected()
            await head.host.awake.wait()
            standby.leader = head.address
            await self._leads(head, world, grant)
            may_begin = True  # what it has is what it led with
            standby.leader = ""

    async def _leads(self, head: SimHead, world: HeadWorld, grant: Grant) -> None:
        """Serves the models that its copy knows, until it does not lead any more."""
        self.say(f"{head.name} leads by term {grant.term}")
        assert grant.term > self.lead, "a term was granted twice"
        candidate, now = head.candidate, self._loop.time

        def leads() -> bool:
            return not head.host.frozen and candidate.leads(now())

        serves = control.Serves(settings="", models=json.dumps(self.sizes))
        followers = Followers(Leadership(grant.term, leads, DURATION, head.address, self.before), lambda: serves)
        hand_out = followers.hand_out

        def checked(deliver: Callable[[], None]) -> None:
            def hand() -> None:
                assert self.keeper.tenure.term == grant.term and self.keeper.tenure.held(now()), (
                    f"{head.name} hands out tokens by term {grant.term} after it was lost to term {self.keeper.tenure.term}"
                )
                deliver()

            hand_out(hand)

        followers.hand_out = checked
        settings = dataclasses.replace(self.settings, host=head.name)
        coordinator = Coordinator(settings, world, self.counts, followers)
        await coordinator.start()
        before, self.coordinator, head.coordinator = self.coordinator, coordinator, coordinator
        self.successions += before is not None
        self.lead = grant.term
        for stream in self._streams.values():
            stream.put(HeadDied("another head leads"))
        self._take_over(head, coordinator, followers)
        self._ambush(coordinator)
        try:
            why = await candidate.until_lost()
            await head.host.awake.wait()
            self.say(f"{head.name} leads no more: {why}")
        finally:
            head.coordinator = None
        await coordinator.stand_down(why)

    def _take_over(self, head: SimHead, coordinator: Coordinator, followers: Followers) -> None:
        self.models, self.logs, self.resumed = {}, {}, {}
        for name in self.sizes:
            ledger, _ = records.read(bytes(head.copies.files.get(f"requests/{name}", b"")))
            kept = list(ledger.answers.values())
            log = self.logs[name] = MemoryLog(kept, lambda data, name=name: followers.put(name, data))
            followers.keep(name, log)
            model = self.models[name] = _LedToy(self, name, coordinator, log, Random(self.chance.random()))
            for number in range(1, self.copies[name] + 1):
                model.open(number)
            for answer in kept:
                (request,) = answer.requests
                if request.id in self._ended:
                    log.gone(request.id)
                    continue
                stream = TokenStream(request, answer.said[0])
                min(model.copies, key=lambda runner: len(runner.requests)).requests.take_up(stream)
                self.resumed[request.id] = stream
        self.say(f"{head.name} takes up {sorted(self.resumed)}")
        head.copies.files = {f"requests/{name}": log.data for name, log in self.logs.items()}  # it goes on with its own logs

    @property
    def copies(self) -> dict[str, int]:
        return {name: 1 + Random(f"{self.seed} {name}").randrange(2) for name in self.sizes}

    def _load(self, name: str, copies: int) -> None:
        """Models are loaded by the head that begins."""

    # What happens to heads

    async def _govern(self) -> None:
        fate = self.fate
        self._were_unloaded = set[str]()
        happenings = (self._kill_leader, self._stop_leader, self._cut_leader, self._kill_standby, self._part_heads, self._keeper_away)
        for moment in sorted(fate.uniform(2, TROUBLE) for _ in range(fate.randint(1, 4))):
            await asyncio.sleep(max(moment - self._loop.time(), 0))
            happening = fate.choice(happenings)
            self.say(happening.__name__[1:].replace("_", " "))
            await happening()
        await asyncio.sleep(max(TROUBLE + 5 - self._loop.time(), 0))
        self.keeper.reachable = True
        for head in self.heads:
            head.lease.cut = False
            self.network.thaw(head.host)
            for other in self.network.hosts.values():
                self.network.join(head.host, other)
            if head.process is None:
                self._begin(head)
        await asyncio.sleep(10)

    @property
    def _leader(self) -> SimHead | None:
        return next((head for head in self.heads if head.coordinator is not None and head.coordinator is self.coordinator), None)

    async def _kill_leader(self) -> None:
        if (leader := self._leader) is not None and self._others_could_lead(leader):
            await self._kill_head(leader)

    def _others_could_lead(self, leader: SimHead) -> bool:
        """Otherwise nobody would lead ever after."""
        assert leader.coordinator is not None and leader.coordinator.followers is not None
        return leader.coordinator.followers.copied

    async def _kill_head(self, head: SimHead) -> None:
        self.say(f"{head.name} dies")
        coordinator, process = head.coordinator, head.process
        head.process = head.coordinator = None
        tasks = [*head.host.tasks, *([process] if process is not None else [])]
        if coordinator is not None:
            coordinator._stopping = True  # pyright: ignore[reportPrivateUsage] - a dead head decides nothing
            tasks += coordinator._tasks  # pyright: ignore[reportPrivateUsage]
        self.network.crash(head.host)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        head.copies = MemoryCopies()
        head.candidate = Candidate(head.lease, head.address, self._loop.time, Random(self.fate.random()))
        if self.fate.random() < 0.7:
            self._loop.call_later(self.fate.uniform(0.5, 6), self._revive, head)

    def _revive(self, head: SimHead) -> None:
        if head.process is None and not self._over:
            self.say(f"{head.name} is started again")
            head.lease = CutLease(self.keeper, head.host, self._loop.time)
            head.candidate = Candidate(head.lease, head.address, self._loop.time, Random(self.fate.random()))
            self._begin(head)

    async def _stop_leader(self) -> None:
        if (leader := self._leader) is not None:
            self.network.freeze(leader.host)
            self._loop.call_later(self.fate.uniform(0.3, 8), self.network.thaw, leader.host)

    async def _cut_leader(self) -> None:
        """From the keeper."""
        if (leader := self._leader) is not None:
            leader.lease.cut = True
            self._loop.call_later(self.fate.uniform(0.3, 8), setattr, leader.lease, "cut", False)

    async def _kill_standby(self) -> None:
        if self._leader is None:  # its copy may be the last
            return
        if others := [head for head in self.heads if head is not self._leader and head.process is not None]:
            await self._kill_head(self.fate.choice(others))

    async def _part_heads(self) -> None:
        a, b = self.fate.sample(self.heads, 2)
        self.network.part(a.host, b.host)
        self._loop.call_later(self.fate.uniform(0.3, 10), self.network.join, a.host, b.host)

    async def _keeper_away(self) -> None:
        self.keeper.reachable = False
        self._loop.call_later(self.fate.uniform(0.3, 5), setattr, self.keeper, "reachable", True)

    # Requests

    async def _submitted(self, request: Request, name: str) -> TokenStream:
        stream = await super()._submitted(request, name)
        self.logs[name].accepted(request)
        return stream

    async def _client(self, index: int) -> None:
        await super()._client(index)
        id = RequestId(f"r{index}")
        self._ended.add(id)
        for log in self.logs.values():
            log.gone(id)

    async def _read(self, stream: TokenStream, request: Request, name: str, leaves: int, chunks: list[TokenChunk]) -> None:
        try:
            await super()._read(stream, request, name, leaves, chunks)
        except NotReady as error:
            raise HeadDied(str(error)) from error  # it leads no more: the client looks for another one

    async def _taken_up(self, request: Request, name: str, said: list[TokenChunk]) -> TokenStream:
        while self._leader is None:  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.1)
        if (stream := self.resumed.pop(request.id, None)) is not None:
            return stream
        self.forgotten += 1
        self.say(f"{request.id} is not known to the head that leads, and is asked again")
        return await self._submitted(request, name)

    # Nodes

    def _start(self, node: SimNode) -> None:
        super()._start(node)
        assert node.agent is not None and node.environment is not None
        agent, step, name = node.agent, node.environment.step, node.host.name
        self.led_by.pop(name, None)  # a new process

        async def watched(work: Callable[[], Any], size: int) -> Any:
            term = agent._heads.term  # pyright: ignore[reportPrivateUsage]
            assert term >= self.led_by.get(name, 0), f"{name} runs a step of term {term} after one of term {self.led_by[name]}"
            self.led_by[name] = term
            return await step(work, size)

        node.environment.step = watched

    async def _mend(self, settings: Any) -> None:
        await super()._mend(settings)
        for node in self._nodes:
            for head in self.heads:
                self.network.join(node.host, head.host)

    async def _end(self, coordinator: Coordinator) -> None:
        self._over = True
        for head in self.heads:
            if head.coordinator is not coordinator:
                await self._kill_head(head)
            elif head.process is not None:
                head.process.cancel()
                await asyncio.gather(head.process, return_exceptions=True)
        await super()._end(coordinator)


class _LedToy(LoadedToy):
    def __init__(self, scenario: StandbyScenario, name: str, coordinator: Coordinator, log: MemoryLog, chance: Random) -> None:
        super().__init__(scenario, name, coordinator, scenario.settings.api.balance, chance)
        self._log = log

    def observer(self) -> LedCounts:
        assert isinstance(self._scenario, StandbyScenario)
        return LedCounts(self._scenario, self, self._log)
