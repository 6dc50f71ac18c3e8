"""A node: joins the head, loads layers on its orders and runs its stage. If it loses the head, it looks for it again."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import psutil
import structlog

from shoal import __version__
from shoal.address import is_link_local, is_wildcard, join_host_port, parse_address
from shoal.config import NodeRole, NodeSettings
from shoal.control import messages as control
from shoal.errors import ClusterError, ProtocolError, ShoalError
from shoal.executor.measure import Speed
from shoal.native import instruction_set
from shoal.node.environment import ControlLink, Environment, ModelMaker
from shoal.node.fetch import Fetcher
from shoal.node.known_heads import KnownHeads
from shoal.node.links import Links, accept_link, greeted
from shoal.node.pipeline_part import PipelinePart
from shoal.node.probe import TIMEOUT, measure_link
from shoal.node.share import Share
from shoal.retry import Backoff
from shoal.security.certificates import Role
from shoal.transport.base import FrameStream
from shoal.wire.frame import FrameKind
from shoal.wire.messages import EXPERTS, decode_hello

log = structlog.get_logger()

T = TypeVar("T")
JOIN_TIMEOUT = 10.0
_READING = 0.1  # seconds in which a node that was stopped itself reads what has come meanwhile
_ONE_OF_SEVERAL = 1.0  # seconds in which one of several heads must answer
_LEAVING = 30.0  # seconds that a leaving node waits for its layers to be moved
_FIRST_DELAY, _MOST_DELAY = 0.2, 5.0


class _Lost(Exception):
    """The head is gone, or counted this node as lost, or another one leads: look for it again."""


class _Follows(_Lost):
    """The head stands by for another one."""


class Agent:
    def __init__(
        self,
        settings: NodeSettings,
        head: str,
        environment: Environment,
        make_model: ModelMaker,
        speed: Speed,
        memory: int,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """memory: bytes that weights and KV blocks may take. tell: receives lines for the person at this machine."""
        self.tell = tell
        self.environment, self.make_model = environment, make_model
        self.links = Links(environment)
        self._share = Share(settings.share)
        self.fetcher = Fetcher(environment, self._share)
        self.welcome = control.Welcome()
        self._settings, self._speed, self._memory = settings, speed, memory
        self._heads, self._host_port = KnownHeads(head), parse_address(head)
        self._told_within = 0.0  # seconds in which the head says again that it leads; 0: it does not say so
        self._told_at = 0.0
        self._incarnation = environment.rng.getrandbits(63)  # of this start of the node, across all its memberships
        self._link: ControlLink | None = None
        self._parts: dict[str, PipelinePart] = {}
        """By pipeline."""
        self._dropping: set[asyncio.Task[None]] = set()
        self._tasks: dict[asyncio.Task[None], None] = {}  # in the order in which they began
        self._beating: asyncio.Task[None] | None = None
        self._looking = False  # for a lost head
        self._leaving, self._hurry = asyncio.Event(), asyncio.Event()

    # Lifecycle

    async def run(self) -> str:
        """Runs until the head sends the node home or `leave` is called; returns why it ended.

        Raises ClusterError if the head refuses the node or cannot be found (again), ConfigError.
        """
        bind = self._settings.bind or self.environment.facing(*self._host_port)
        listener = await self.environment.listen(bind, self._settings.tensor_port, self._accept)
        try:
            # If the address means something only on this machine, the head says what address it sees the node at.
            return await self._belong("" if is_wildcard(bind) or is_link_local(bind) else bind, listener.port)
        finally:
            await listener.close()
            for part in self._parts.values():
                part.end_stage()
            for task in [*self._tasks]:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for part in self._parts.values():
                await part.close()

    def leave(self) -> None:
        """Asks the head to move this node's layers; `run` returns when it has, or after a while. A second call makes it return
        at once."""
        (self._hurry if self._leaving.is_set() else self._leaving).set()

    async def _belong(self, host: str, port: int) -> str:
        """Goes through one membership after another."""
        backoff, since = Backoff(_FIRST_DELAY, _MOST_DELAY), None
        while True:
            joined = asyncio.Event()
            try:
                return await self._membership(host, port, joined)
            except (_Lost, ClusterError) as error:
                if self._leaving.is_set():
                    return "it was told to leave"
                now = self.environment.now()
                if joined.is_set():  # a head that only counted it as lost is there: ask it once more, whatever the patience
                    backoff, since = Backoff(_FIRST_DELAY, _MOST_DELAY), now
                elif since is None and isinstance(error, _Follows):
                    since = now
                elif since is None:  # it never was a member
                    raise error if isinstance(error, ClusterError) else ClusterError(str(error)) from error
                elif now - since >= self._settings.patience:
                    raise ClusterError(f"{error}; gave up after {now - since:.0f} s") from error
                self._say_lost(error)
            pause = self._heads.next()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.next(self.environment.rng) if pause is None else pause):
                    await self._leaving.wait()
                return "it was told to leave"

    def _say_lost(self, error: Exception) -> None:
        log.info("no head yet", reason=str(error))
        if not self._looking:
            self._looking = True
            how_long = f" for {self._settings.patience:g} s" if self._settings.patience else ""
            if isinstance(error, _Follows):
                self.tell(f"{error}; looking for the one that does{how_long}")
                return
            self.tell(f"the head was lost ({error}); looking for it{how_long}, the weights are kept")

    async def _membership(self, host: str, port: int, joined: asyncio.Event) -> str:
        self._link = link = self.environment.control_link(self._heads.address)
        link.say(self._introduction(host, port))
        loop = asyncio.get_running_loop()
        self._told_within, self._told_at = (_ONE_OF_SEVERAL if self._heads.several else 0.0), self.environment.now()
        parts: list[asyncio.Task[str]] = [
            loop.create_task(part) for part in (self._converse(link, joined), self._depart(joined), self._watch_head())
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            return next(part for part in parts if part in done).result()
        finally:
            for task in parts:
                task.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            if self._beating is not None:
                self._beating.cancel()
                self._beating = None
            self._link = None
            for part in self._parts.values():
                part.end_membership()
            await link.close()
            for pipeline, part in [*self._parts.items()]:
                await part.keep_weights()
                if part.held() is None:  # the next head would not learn that it is there
                    del self._parts[pipeline]

    async def _watch_head(self) -> str:
        """Notices a head that leads by a lease and says so no more: another one may lead."""
        while True:
            if self._told_within and self._silent() > 0:
                await asyncio.sleep(_READING)
                if self._silent() > 0:
                    raise _Lost(f"the head has been silent for {self._told_within:.1f} s")
            await asyncio.sleep(min(max(-self._silent(), 0.0) + 0.01, _ONE_OF_SEVERAL) if self._told_within else _ONE_OF_SEVERAL)

    def _silent(self) -> float:
        """Seconds for which the head should have been heard."""
        return self.environment.now() - self._told_at - self._told_within

    async def _depart(self, joined: asyncio.Event) -> str:
        await self._leaving.wait()
        if not joined.is_set():
            return "it was told to leave"
        self.say(control.Leave())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVING):
                await self._hurry.wait()
            return "it was told to leave at once"
        return "it was told to leave, and its layers could not be moved in time"

    def _introduction(self, host: str, port: int) -> control.Join:
        settings, speed = self._settings, self._speed
        join = control.Join(
            version=__version__,
            name=settings.name or socket.gethostname(),
            incarnation=self._incarnation,
            tensor_host=host,
            tensor_port=port,
            memory=self._memory,
            threads=settings.compute_threads,
            bytes_per_second=speed.bytes_per_second,
            flops=speed.flops,
            disk=speed.disk,
            machine=f"{platform.machine()} {instruction_set(settings.isa) or 'numpy'}",
            worker=settings.role is NodeRole.EXPERTS,
            auto=settings.role is NodeRole.AUTO,
        )
        join.held.extend(held for part in self._parts.values() if (held := part.held()) is not None)
        join.shared.extend(self._share.files)
        join.packed.extend(self._packed)
        return join

    def say(self, message: control.NodeMessage) -> None:
        if self._link is not None:
            self._link.say(message)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    # Messages from the head

    async def _converse(self, link: ControlLink, joined: asyncio.Event) -> str:
        async with contextlib.aclosing(link.attend(JOIN_TIMEOUT)) as messages:
            async for message in messages:
                if (why := self._told(message, joined)) is not None:
                    return why
        raise _Lost("the head ended the conversation")

    def _told(self, message: control.HeadMessage, joined: asyncio.Event) -> str | None:
        match message:
            case control.Welcome():
                if self._heads.stale(message.term):
                    raise _Lost(
                        f"the head at {self._heads.address} led by term {message.term}, and this node has seen term {self._heads.term}"
                    )
                self._heads.joined(message.term)
                self._told_within = 0.0
                if message.cluster != self.welcome.cluster:
                    for part in self._parts.values():
                        part.joins_another_head()
                self.welcome = message
                joined.set()
                once_more, self._looking = " again" if self._looking else "", False
                self.tell(f"joined {self._heads.address}{once_more} as {message.name}")
                self._beating = self.spawn(self._beat(message.heartbeat))
            case control.Heads():
                self._heads.told(message.others)
                self._told_within, self._told_at = message.within, self.environment.now()
            case control.Refuse(reason=reason, follows=True, leader=leader):
                self._heads.led_by(leader)
                raise _Follows(f"{self._heads.address} does not lead: {reason}")
            case control.Refuse(reason=reason, again=again):
                if again:
                    raise _Lost(f"the head counted this node as lost: {reason}")
                joined.clear()
                raise ClusterError(f"the head refused this node: {reason}")
            case control.Probe():
                self.spawn(self._probe(message))
            case control.Load():
                part = self._parts.setdefault(message.pipeline, PipelinePart(self, message.pipeline))
                self.spawn(part.load(message))
            case control.Link():
                if (part := self._parts.get(message.pipeline)) is not None:
                    self.spawn(part.enter(message))
            case control.Rest():
                if (part := self._parts.get(message.pipeline)) is not None:
                    self.spawn(part.rest(message.epoch))
            case control.Drop():
                if (part := self._parts.pop(message.pipeline, None)) is not None:
                    self._drop(part)
            case control.Shutdown():
                return message.reason or "the head shut down"
            case control.Serves() | control.Copy() | control.Append():
                pass  # for standby heads
            case control.Unknown():
                log.warning("an instruction of a kind that this version does not know was ignored")
        return None

    def _drop(self, part: PipelinePart) -> None:
        task = self.spawn(part.drop())
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    async def room(self) -> None:
        """See PartContext."""
        await asyncio.gather(*self._dropping)

    @property
    def _packed(self) -> list[control.PackedFile]:
        """That other nodes may copy."""
        return [file for part in self._parts.values() for file in part.packed]

    async def _beat(self, interval: float) -> None:
        process, told = psutil.Process(), list[control.PackedFile]()
        while True:
            pipelines = [part.report() for part in self._parts.values()]
            resident = process.memory_info().rss + sum(report.resident for report in pipelines)
            heartbeat = control.Heartbeat(resident=resident, fetched_from_peers=self.fetcher.fetched, pipelines=pipelines)
            if (packed := self._packed) != told:
                heartbeat.packed = told = packed
            self.say(heartbeat)
            await asyncio.sleep(interval)

    async def _probe(self, probe: control.Probe) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                link = await measure_link(await self.environment.connect(probe.host, probe.port, TIMEOUT, Role.HEAD), self.environment.now)
        except (OSError, EOFError, ProtocolError) as error:
            reason = (
                f"the head's tensor port {join_host_port(probe.host, probe.port)} cannot be reached: {str(error) or type(error).__name__}"
            )
            log.error("the link to the head could not be measured", reason=reason)
            self.say(control.Failed(reason=reason))
            return
        self.say(control.Probed(round_trip=2 * link.seconds, bytes_per_second=link.bytes_per_second))

    # Links from others

    async def _accept(self, stream: FrameStream) -> None:
        """Serves the stage before this one, or any other peer."""
        try:
            greeting = await greeted(stream, self._share)
            part = next((part for part in self._parts.values() if part.ordered(greeting.epoch)), None)
            if part is not None and greeting.kind is FrameKind.HELLO and decode_hello(greeting.meta).stage == EXPERTS:
                await part.accept_asker(stream, greeting)
                return
            service = None if part is None else await part.awaited(greeting.epoch)
            free = service is not None and not service.served
            epoch, stage = (service.epoch, service.stage) if service is not None and free else (0, -1)
            await accept_link(stream, greeting, epoch, self.welcome.cluster, stage, self.welcome.name)
            assert service is not None  # no greeting fits stage -1
            await service.serve(stream)
        except (EOFError, OSError) as error:
            log.info("a link ended", peer=stream.peer, reason=str(error) or type(error).__name__)
        except ProtocolError as error:
            log.warning("a link was refused or broken", peer=stream.peer, reason=str(error))
        except Exception as error:  # the head was told over the route
            log.error("a step failed", reason=str(error), exc_info=None if isinstance(error, ShoalError) else error)
