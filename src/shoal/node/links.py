"""How two processes of a route connect: retries, greetings, refusals."""

from __future__ import annotations

import asyncio

from shoal import __version__
from shoal.address import join_host_port
from shoal.errors import RemoteProtocolError, VersionMismatch
from shoal.node.environment import Environment
from shoal.node.probe import answer
from shoal.node.share import Share
from shoal.retry import Backoff, Breaker
from shoal.security.certificates import Role
from shoal.transport.base import FrameStream
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind

CONNECT_TIMEOUT = 10.0
_FIRST_DELAY, _MOST_DELAY = 0.05, 1.0


class Links:
    """Connects to peers. A peer that fails again and again is left alone for a while (a circuit breaker per peer)."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._breakers: dict[tuple[str, int], Breaker] = {}

    async def open(self, host: str, port: int, epoch: int, hello: messages.Hello, role: Role = Role.NODE) -> FrameStream:
        """Connects to the process that runs the next part of the route. Raises ConnectionError, TimeoutError, RemoteProtocolError."""
        stream = await self._connect(host, port, role)
        try:
            await introduce(stream, epoch, hello)
        except BaseException:
            stream.abort()
            raise
        return stream

    async def _connect(self, host: str, port: int, role: Role) -> FrameStream:
        environment, breaker = self._environment, self._breakers.setdefault((host, port), Breaker())
        backoff, end = Backoff(_FIRST_DELAY, _MOST_DELAY), environment.now() + CONNECT_TIMEOUT
        while True:
            if wait := breaker.wait(environment.now()):
                raise ConnectionError(f"{join_host_port(host, port)} failed repeatedly; the next try is in {wait:.1f} s")
            try:
                stream = await environment.connect(host, port, max(end - environment.now(), 0.01), role)
            except (ConnectionError, TimeoutError):
                breaker.failed(environment.now())
                delay = backoff.next(environment.rng)
                if environment.now() + delay >= end:
                    raise
                await asyncio.sleep(delay)
            else:
                breaker.succeeded()
                return stream


async def introduce(stream: FrameStream, epoch: int, hello: messages.Hello) -> None:
    """The connecting side's handshake. Raises RemoteProtocolError if the other side refuses, TimeoutError, EOFError, ConnectionError."""
    await stream.send(Frame(FrameKind.HELLO, epoch, meta=messages.encode(hello)))
    async with asyncio.timeout(CONNECT_TIMEOUT):
        answer = await stream.receive()
    if answer.kind is FrameKind.ERROR:
        raise RemoteProtocolError(f"{stream.peer} refused the link: {messages.decode_error(answer.meta).message}")
    if answer.kind is not FrameKind.HELLO:
        raise RemoteProtocolError(f"{stream.peer} answered a greeting with {answer.kind.name}")
    stream.trust()


async def greeted(stream: FrameStream, share: Share) -> Frame:
    """The first frame of a peer that connected; a peer that measures or fetches is served until it ends. Raises EOFError,
    OSError, ProtocolError."""
    async with asyncio.timeout(CONNECT_TIMEOUT):
        greeting = await stream.receive()
    if greeting.kind is FrameKind.PING:
        await answer(stream, greeting)
    if greeting.kind is FrameKind.FETCH:
        await share.answer(stream, greeting)
    return greeting


async def accept_link(stream: FrameStream, greeting: Frame, epoch: int, cluster: str, stage: int, node: str) -> None:
    """The accepting side's handshake. Refuses a link that is not wanted here: tells the other side and raises RemoteProtocolError."""
    try:
        if greeting.kind is not FrameKind.HELLO:
            raise RemoteProtocolError(f"the first frame was {greeting.kind.name}, not HELLO")
        hello = messages.decode_hello(greeting.meta)
        if hello.version != __version__:
            raise VersionMismatch(hello.version, __version__)
        if stage < 0 or (hello.cluster, greeting.epoch, hello.stage) != (cluster, epoch, stage):
            raise RemoteProtocolError(f"this is stage {stage} of epoch {epoch}, not stage {hello.stage} of epoch {greeting.epoch}")
    except RemoteProtocolError as error:
        await stream.send(Frame(FrameKind.ERROR, epoch, meta=messages.encode(messages.Error(str(error), stage))))
        raise
    stream.trust()
    await stream.send(Frame(FrameKind.HELLO, epoch, meta=messages.encode(messages.Hello(__version__, cluster, node, stage))))
