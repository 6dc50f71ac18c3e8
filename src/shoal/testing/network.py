"""A network of simulated hosts. Connections are reliable and ordered, like TCP's, until something happens to them.

A frame takes its connection's delay, which differs from connection to connection, so what one host sends over two connections
arrives in any order. While two hosts are separated, or one is frozen, data between them waits, as it would in the buffers of
their systems; it arrives when they are connected again, unless one side gave the connection up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from shoal.address import parse_address
from shoal.control import messages as control
from shoal.control.server import Attendant, NodeConnection
from shoal.errors import ClusterError
from shoal.node.environment import ControlDoor
from shoal.security.certificates import Role
from shoal.transport.base import Handler
from shoal.wire.frame import Frame

T = TypeVar("T")
_APART = 1e-6  # seconds between two messages: timers of the same moment have no order
_NOTICED = 15.0  # seconds after which gRPC notices that a peer does not answer


@dataclass(eq=False)
class Host:
    name: str
    alive: bool = True
    awake: asyncio.Event = field(default_factory=asyncio.Event)
    slower: float = 1.0
    owed: float = 0.0
    """Seconds that the step that just ran takes."""
    ports: dict[int, Callable[[Pipe], Any]] = field(default_factory=dict[int, Callable[["Pipe"], Any]])
    pipes: dict[Pipe, None] = field(default_factory=dict["Pipe", None])
    tasks: dict[asyncio.Task[Any], None] = field(default_factory=dict[asyncio.Task[Any], None])

    def __post_init__(self) -> None:
        self.awake.set()

    @property
    def frozen(self) -> bool:
        return not self.awake.is_set()


class End:
    """One end of a connection: what arrives, in order, and finally how it ended."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.items: deque[tuple[Any, float]] = deque()
        self.came = 0.0
        """When the item taken last had arrived."""
        self.failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Any) -> None:
        if self.failure is None:
            self.items.append((item, asyncio.get_running_loop().time()))
            self._wake()

    def fail(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Any:
        while not self.items:
            if self.failure is not None:
                raise self.failure
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        item, self.came = self.items.popleft()
        return item


class Pipe:
    """A connection between two hosts; end 0 is the one that connected."""

    def __init__(self, network: Network, ends: tuple[End, End], delay: float) -> None:
        self.network, self.ends, self.delay = network, ends, delay
        self._held: list[tuple[int, Any]] = []
        self._arriving = [0.0, 0.0]
        for end in ends:
            end.host.pipes[self] = None

    @property
    def apart(self) -> bool:
        a, b = self.ends[0].host, self.ends[1].host
        return a.frozen or b.frozen or self.network.are_apart(a, b)

    def send(self, to: int, item: Any) -> None:
        """item: what arrives, or an exception: how the connection ends there."""
        if self.apart:
            self._held.append((to, item))
            return
        loop = asyncio.get_running_loop()
        self._arriving[to] = max(self._arriving[to] + _APART, loop.time() + self.delay)
        loop.call_at(self._arriving[to], self._arrive, to, item)

    def _arrive(self, to: int, item: Any) -> None:
        if self.apart:
            self._held.append((to, item))
        elif isinstance(item, Exception):
            self.ends[to].fail(item)
        else:
            self.ends[to].put(item)

    def release(self) -> None:
        """The hosts are connected again."""
        if not self.apart:
            held, self._held = self._held, []
            for to, item in held:
                self.send(to, item)

    def end(self, side: int, broken: bool) -> None:
        """One side ends it."""
        self.ends[side].fail(EOFError("the connection is closed"))
        self.send(1 - side, ConnectionError("the connection broke") if broken else EOFError("the peer ended the connection"))
        self._forget()

    def cut(self) -> None:
        """The connection breaks by itself."""
        for end in self.ends:
            end.fail(ConnectionError("the connection was cut"))
        self._forget()

    def _forget(self) -> None:
        for end in self.ends:
            if all(e.failure is not None for e in self.ends):
                end.host.pipes.pop(self, None)


class SimStream:
    """A frame stream over a pipe. With `network.duplicates` and `network.losses`, a frame may arrive twice or be lost."""

    def __init__(self, pipe: Pipe, side: int) -> None:
        self._pipe, self._side = pipe, side
        self.peer = pipe.ends[1 - side].host.name
        self.arrived = 0.0

    async def send(self, frame: Frame) -> None:
        self.offer(frame)

    def offer(self, frame: Frame) -> bool:
        """Nobody waits: a pipe takes everything."""
        frame.buffers()  # which refuses frames that the protocol cannot carry
        if self._pipe.ends[self._side].failure is not None:
            raise ConnectionError(f"the connection to {self.peer} is closed")
        network = self._pipe.network
        whole = Frame(frame.kind, frame.epoch, frame.step, bytes(frame.meta), bytes(frame.body), frame.dtype, frame.codec, frame.flags)
        if network.rng.random() < network.losses:
            network.say(f"a {frame.kind.name} frame to {self.peer} vanishes")
            return True
        self._pipe.send(1 - self._side, whole)
        if network.rng.random() < network.duplicates:
            self._pipe.send(1 - self._side, whole)
        return True

    async def receive(self) -> Frame:
        frame = await self._pipe.ends[self._side].get()
        self.arrived = self._pipe.ends[self._side].came
        return frame

    def trust(self, body: int | None = None) -> None:
        pass

    async def close(self) -> None:
        self._pipe.end(self._side, broken=False)

    def abort(self) -> None:
        self._pipe.end(self._side, broken=True)


class SimListener:
    def __init__(self, host: Host, port: int) -> None:
        self._host, self.port = host, port
        self.served: dict[asyncio.Task[Any], None] = {}

    async def close(self) -> None:
        self._host.ports.pop(self.port, None)
        for task in [*self.served]:
            task.cancel()
        await asyncio.gather(*self.served, return_exceptions=True)


class SimControlLink:
    """A node's end of the conversation."""

    def __init__(self, environment: SimWorld, address: str) -> None:
        self._environment, self._address = environment, address
        self._pipe: Pipe | None = None
        self._early: list[control.NodeMessage] = []

    def say(self, message: control.NodeMessage) -> None:
        if self._pipe is None:
            self._early.append(message)
        elif self._pipe.ends[0].failure is None:
            self._pipe.send(1, message)

    async def attend(self, timeout: float) -> AsyncGenerator[control.HeadMessage]:
        host, port = parse_address(self._address)
        try:
            self._pipe = await self._environment.network.connect(self._environment.host, host, port, timeout)
        except (ConnectionError, TimeoutError):
            raise ClusterError(f"no head answers at {self._address}") from None
        for message in self._early:
            self._pipe.send(1, message)
        while True:
            try:
                yield await self._pipe.ends[0].get()
            except EOFError:
                return
            except ConnectionError as error:
                raise ClusterError(f"the head at {self._address} is gone ({error})") from error

    async def close(self) -> None:
        if self._pipe is not None:
            self._pipe.end(0, broken=False)


class SimControlDoor:
    """The head's end: one conversation per node."""

    def __init__(self, environment: SimWorld, attendant: Attendant, port: int) -> None:
        self.port = port
        self._environment, self._attendant = environment, attendant
        self._conversations: dict[NodeConnection, Pipe] = {}
        environment.host.ports[port] = lambda pipe: environment.spawn(self._attend(pipe))

    async def _attend(self, pipe: Pipe) -> None:
        conversation, attendant = NodeConnection(pipe.ends[0].host.name), self._attendant
        self._conversations[conversation] = pipe
        saying = asyncio.get_running_loop().create_task(self._say(conversation, pipe))
        try:
            while True:
                attendant.heard(conversation, await pipe.ends[1].get())
        except (EOFError, ConnectionError):
            pass
        finally:
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)
            self._conversations.pop(conversation, None)
            attendant.hung_up(conversation)

    async def _say(self, conversation: NodeConnection, pipe: Pipe) -> None:
        async for message in conversation.outgoing():
            pipe.send(0, message)
        pipe.end(1, broken=False)

    def hand_to(self, attendant: Attendant) -> None:
        """See control.server.ControlServer."""
        self._attendant = attendant
        for conversation in list(self._conversations):
            conversation.end()

    async def stop(self) -> None:
        self._environment.host.ports.pop(self.port, None)
        for conversation in list(self._conversations):
            conversation.end()


class Network:
    def __init__(self, rng: Random, say: Callable[[str], None]) -> None:
        self.rng, self.say = rng, say
        self.hosts: dict[str, Host] = {}
        self.duplicates = 0.0
        self.losses = 0.0
        self.unexpected: list[BaseException] = []
        self._apart: dict[tuple[str, str], None] = {}
        self._next_port = 1000

    def host(self, name: str) -> Host:
        self.hosts[name] = Host(name)
        return self.hosts[name]

    def port(self) -> int:
        self._next_port += 1
        return self._next_port

    def are_apart(self, a: Host, b: Host) -> bool:
        return (a.name, b.name) in self._apart or (b.name, a.name) in self._apart

    async def connect(self, source: Host, target: str, port: int, timeout: float) -> Pipe:
        """Raises ConnectionError, TimeoutError."""
        delay = self.rng.uniform(0.0002, 0.003)
        await asyncio.sleep(delay)
        end = asyncio.get_running_loop().time() + timeout
        host = self.hosts.get(target)
        while host is not None and (host.frozen or source.frozen or self.are_apart(source, host)):
            if asyncio.get_running_loop().time() >= end:
                raise TimeoutError(f"{target}:{port} did not answer within {timeout:g} s")
            await asyncio.sleep(0.05)
        if host is None or not host.alive or port not in host.ports:
            raise ConnectionError(f"cannot reach {target}:{port}")
        pipe = Pipe(self, (End(source), End(host)), delay)
        host.ports[port](pipe)
        return pipe

    # Faults

    def crash(self, host: Host) -> None:
        """The process dies: its system resets its connections."""
        host.alive = False
        host.ports.clear()
        for pipe in [*host.pipes]:
            pipe.end(0 if pipe.ends[0].host is host else 1, broken=True)
        host.pipes.clear()

    def part(self, a: Host, b: Host) -> None:
        self._apart[a.name, b.name] = None
        loop = asyncio.get_running_loop()
        for pipe in [*a.pipes]:
            if b in (pipe.ends[0].host, pipe.ends[1].host):
                loop.call_later(_NOTICED, self._notice, pipe)

    def _notice(self, pipe: Pipe) -> None:
        """Keepalives were not answered."""
        if pipe.apart:
            pipe.cut()

    def join(self, a: Host, b: Host) -> None:
        self._apart.pop((a.name, b.name), None)
        self._apart.pop((b.name, a.name), None)
        for pipe in [*a.pipes]:
            pipe.release()

    def freeze(self, host: Host) -> None:
        host.awake.clear()

    def thaw(self, host: Host) -> None:
        host.awake.set()
        for pipe in [*host.pipes]:
            pipe.release()


class SimWorld:
    """The environment of a process on a simulated host."""

    def __init__(self, network: Network, host: Host) -> None:
        self.network, self.host = network, host
        self.rng, self.turns = Random(network.rng.random()), 0
        self._steps, self._loads = asyncio.Lock(), asyncio.Lock()

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self.host.tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.host.tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.network.say(f"UNEXPECTED on {self.host.name}: {error!r}")
            self.network.unexpected.append(error)

    async def listen(self, host: str, port: int, handler: Handler) -> SimListener:
        listener = SimListener(self.host, port or self.network.port())

        async def serve(pipe: Pipe) -> None:
            stream = SimStream(pipe, 1)
            try:
                await handler(stream)
            finally:
                await stream.close()

        def accept(pipe: Pipe) -> None:
            task = self.spawn(serve(pipe))
            listener.served[task] = None
            task.add_done_callback(listener.served.pop)

        self.host.ports[listener.port] = accept
        return listener

    async def connect(self, host: str, port: int, timeout: float, role: Role = Role.NODE) -> SimStream:
        return SimStream(await self.network.connect(self.host, host, port, timeout), 0)

    def facing(self, host: str, port: int) -> str:
        return self.host.name

    def control_link(self, address: str) -> SimControlLink:
        return SimControlLink(self, address)

    async def control_door(self, attendant: Attendant, host: str, port: int) -> ControlDoor:
        return SimControlDoor(self, attendant, port or self.network.port())

    async def _take(self, lock: asyncio.Lock, seconds: float, work: Callable[[], T]) -> T:
        async with lock:
            await asyncio.sleep(seconds * self.host.slower * self.rng.uniform(0.5, 1.5))
            await self.host.awake.wait()
            return work()

    async def compute(self, work: Callable[[], T]) -> T:
        return await self._take(self._steps, 0.001, work)

    async def step(self, work: Callable[[], T], size: int) -> T:
        async with self._steps:
            await asyncio.sleep(0.001 * self.host.slower)
            await self.host.awake.wait()
            out = work()
            await asyncio.sleep(self.host.owed)
            await self.host.awake.wait()
            self.host.owed = 0.0
            return out

    def spend(self, seconds: float) -> float:
        """How long a step that should take `seconds` takes on this world's clock; it ends after that time."""
        self.host.owed = seconds * self.host.slower * self.rng.uniform(0.5, 1.5)
        return self.host.owed

    async def load(self, work: Callable[[], T]) -> T:
        return await self._take(self._loads, 0.4, work)
