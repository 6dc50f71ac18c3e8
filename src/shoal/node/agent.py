"""A node: joins the head, loads layers on its orders and runs its stage. If it loses the head, it looks for it again."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, TypeVar

import psutil
import structlog

from shoal import __version__
from shoal.address import is_link_local, is_wildcard, join_host_port, parse_address
from shoal.config import NodeRole, NodeSettings
from shoal.control import messages as control
from shoal.errors import ClusterError, ProtocolError, ShoalError
from shoal.executor.base import Executor
from shoal.executor.measure import Speed
from shoal.native import instruction_set
from shoal.node.environment import ControlLink, Environment, Model, ModelMaker
from shoal.node.expert_holders import Holders
from shoal.node.expert_links import ExpertLinks
from shoal.node.expert_report import ExpertReport
from shoal.node.expert_service import Bank, ExpertService
from shoal.node.expert_tables import by_layer, remote_experts, together
from shoal.node.fetch import Fetcher
from shoal.node.links import CONNECT_TIMEOUT, Links, accept_link, greeted
from shoal.node.probe import TIMEOUT, measure_link
from shoal.node.share import Share
from shoal.node.stage_service import StageService, wire_codec
from shoal.retry import Backoff
from shoal.security.certificates import Role
from shoal.sizes import human_bytes
from shoal.transport.base import FrameStream
from shoal.wire.frame import Frame, FrameKind
from shoal.wire.messages import EXPERTS, Hello, decode_hello

log = structlog.get_logger()

T = TypeVar("T")
JOIN_TIMEOUT = 10.0
_LEAVING = 30.0  # seconds that a leaving node waits for its layers to be moved
_FIRST_DELAY, _MOST_DELAY = 0.2, 5.0


class _Lost(Exception):
    """The head is gone, or counted this node as lost: look for it again."""


@dataclass
class _Epoch:
    """An order to run a stage, and the stage once it is entered."""

    order: control.Load
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    service: StageService | None = None
    links: ExpertLinks | None = None
    """To workers with experts that this stage does not hold."""

    @property
    def layers(self) -> range:
        return range(self.order.first_layer, self.order.end_layer)

    @property
    def experts(self) -> dict[int, frozenset[int]]:
        """That this node is to hold for stages on other machines."""
        return by_layer(self.order.experts)

    @property
    def part(self) -> str:
        """For people."""
        count = sum(map(len, self.experts.values()))
        return f"{count} experts of layers {_range(self.order)}" if count else f"layers {_range(self.order)}"


def _range(order: control.Load) -> str:
    return f"{order.first_layer}-{order.end_layer - 1}"


def _name(reference: str) -> str:
    """The model's name, for people."""
    return reference[3:].partition("@")[0] if reference.startswith("hf:") else PurePath(reference).name


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
        self._tell = tell
        self._settings, self._environment, self._make_model = settings, environment, make_model
        self._speed, self._memory = speed, memory
        self._head, self._host_port = head, parse_address(head)
        self._incarnation = environment.rng.getrandbits(63)  # of this start of the node, across all its memberships
        self._links = Links(environment)
        self._share = Share(settings.share)
        self._fetcher = Fetcher(environment, self._share)
        self._link: ControlLink | None = None
        self._model: Model | None = None
        self._identity: tuple[str, ...] = ()
        self._expert_report = ExpertReport()
        self._packed: list[control.PackedFile] = []
        """That other nodes may copy."""
        self._epochs: dict[int, _Epoch] = {}
        self._current: _Epoch | None = None
        self._changing = asyncio.Lock()  # only one order at a time changes what this node holds
        self._tasks: dict[asyncio.Task[None], None] = {}  # in the order in which they began
        self._beating: asyncio.Task[None] | None = None
        self._welcome = control.Welcome()
        self._looking = False  # for a lost head
        self._leaving, self._hurry = asyncio.Event(), asyncio.Event()
        self._serving_experts: tuple[ExpertService, asyncio.Task[None]] | None = None
        self._computed = 0.0  # seconds, for stages on other machines

    # Lifecycle

    async def run(self) -> str:
        """Runs until the head sends the node home or `leave` is called; returns why it ended.

        Raises ClusterError if the head refuses the node or cannot be found (again), ConfigError.
        """
        bind = self._settings.bind or self._environment.facing(*self._host_port)
        listener = await self._environment.listen(bind, self._settings.tensor_port, self._accept)
        try:
            # If the address means something only on this machine, the head says what address it sees the node at.
            return await self._belong("" if is_wildcard(bind) or is_link_local(bind) else bind, listener.port)
        finally:
            await listener.close()
            self._end_stage()
            for task in [*self._tasks]:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._model is not None:
                await self._environment.compute(self._model.close)

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
                now = self._environment.now()
                if joined.is_set():  # a head that only counted it as lost is there: ask it once more, whatever the patience
                    backoff, since = Backoff(_FIRST_DELAY, _MOST_DELAY), now
                elif since is None:  # it never was a member
                    raise error if isinstance(error, ClusterError) else ClusterError(str(error)) from error
                elif now - since >= self._settings.patience:
                    raise ClusterError(f"{error}; gave up after {now - since:.0f} s") from error
                self._say_lost(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.next(self._environment.rng)):
                    await self._leaving.wait()
                return "it was told to leave"

    def _say_lost(self, error: Exception) -> None:
        log.info("no head yet", reason=str(error))
        if not self._looking:
            self._looking = True
            how_long = f" for {self._settings.patience:g} s" if self._settings.patience else ""
            self._tell(f"the head was lost ({error}); looking for it{how_long}, the weights are kept")

    async def _membership(self, host: str, port: int, joined: asyncio.Event) -> str:
        self._link = link = self._environment.control_link(self._head)
        link.say(self._introduction(host, port))
        loop = asyncio.get_running_loop()
        conversation, leaving = loop.create_task(self._converse(link, joined)), loop.create_task(self._depart(joined))
        try:
            await asyncio.wait({conversation, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return conversation.result() if conversation.done() else leaving.result()
        finally:
            for task in (conversation, leaving):
                task.cancel()
            await asyncio.gather(conversation, leaving, return_exceptions=True)
            if self._beating is not None:
                self._beating.cancel()
                self._beating = None
            self._link = None
            self._end_stage()
            self._epochs.clear()
            await link.close()
            if self._model is not None:
                await self._environment.compute(self._model.rest)

    async def _depart(self, joined: asyncio.Event) -> str:
        await self._leaving.wait()
        if not joined.is_set():
            return "it was told to leave"
        self._say(control.Leave())
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
        if self._model is not None:
            join.model, join.precision = self._identity[:2]
            join.loaded.extend(control.LayerRange(first=layers.start, end=layers.stop) for layers in self._model.layers)
        join.shared.extend(self._share.files)
        join.packed.extend(self._packed)
        return join

    def _say(self, message: control.NodeMessage) -> None:
        if self._link is not None:
            self._link.say(message)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
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
                if self._model is not None and message.cluster != self._welcome.cluster:  # rows that another head's requests took
                    self._expert_report.skip(self._model.expert_rows, self._model.expert_reads)
                self._welcome = message
                joined.set()
                once_more, self._looking = " again" if self._looking else "", False
                self._tell(f"joined {self._head}{once_more} as {message.name}")
                self._beating = self._spawn(self._beat(message.heartbeat))
            case control.Refuse(reason=reason, again=again):
                if again:
                    raise _Lost(f"the head counted this node as lost: {reason}")
                joined.clear()
                raise ClusterError(f"the head refused this node: {reason}")
            case control.Probe():
                self._spawn(self._probe(message))
            case control.Load():
                self._spawn(self._load(message))
            case control.Link():
                self._spawn(self._enter(message))
            case control.Rest():
                self._spawn(self._rest(message.epoch))
            case control.Shutdown():
                return message.reason or "the head shut down"
            case control.Unknown():
                log.warning("an instruction of a kind that this version does not know was ignored")
        return None

    async def _beat(self, interval: float) -> None:
        process, told = psutil.Process(), list[control.PackedFile]()
        while True:
            service = self._current.service if self._current else None
            heartbeat = control.Heartbeat(resident=process.memory_info().rss, steps=service.steps if service else 0)
            heartbeat.fetched_from_peers = self._fetcher.fetched
            if self._model is not None:
                self._model.report(heartbeat)
                heartbeat.weights = self._model.nbytes
                if self._epochs:  # before its first order the head does not count it as a member, and drops what it says
                    now = self._environment.now()
                    heartbeat.expert_rows = self._expert_report.due(self._model.expert_rows, now)
                    heartbeat.expert_reads = self._expert_report.reads_due(self._model.expert_reads, now)
            if self._current is not None and self._current.links is not None:
                heartbeat.expert_asks = [self._current.links.tally]
            if self._serving_experts is not None:
                heartbeat.expert_work = [replace(self._serving_experts[0].work, computed=self._computed)]
            if self._packed is not told:
                heartbeat.packed = told = self._packed
            self._say(heartbeat)
            await asyncio.sleep(interval)

    def _failed(self, epoch: _Epoch, reason: str) -> None:
        """Tells the head, unless it is another head by now: its epochs have the same numbers but mean something else."""
        log.info("stage failed", epoch=epoch.order.epoch, reason=reason)
        self._tell(f"{epoch.part} cannot be served: {reason}")
        if self._is_ordered(epoch):
            self._say(control.Failed(epoch=epoch.order.epoch, reason=reason))

    async def _probe(self, probe: control.Probe) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                link = await measure_link(
                    await self._environment.connect(probe.host, probe.port, TIMEOUT, Role.HEAD), self._environment.now
                )
        except (OSError, EOFError, ProtocolError) as error:
            reason = (
                f"the head's tensor port {join_host_port(probe.host, probe.port)} cannot be reached: {str(error) or type(error).__name__}"
            )
            log.error("the link to the head could not be measured", reason=reason)
            self._say(control.Failed(reason=reason))
            return
        self._say(control.Probed(round_trip=2 * link.seconds, bytes_per_second=link.bytes_per_second))

    # Stages

    async def _load(self, order: control.Load) -> None:
        """Loads an epoch's layers, or experts for stages on other machines, beside those that run."""
        began = self._environment.now()
        epoch = self._epochs[order.epoch] = _Epoch(order)
        self._tell(f"loading {epoch.part} of {_name(order.model)}")
        try:
            await self._fetcher.fill(order)
            async with self._changing:
                if not self._is_latest(epoch):
                    return
                model = await self._model_for(order)
                await self._copy_packed(order, model)
                await (self._load_experts if epoch.experts else self._load_layers)(epoch, model)
        except Exception as error:
            if not isinstance(error, ShoalError | MemoryError | OSError):
                log.error("loading failed unexpectedly", exc_info=error)
            self._failed(epoch, str(error) or type(error).__name__)
            return
        if not self._is_latest(epoch):
            return
        seconds = self._environment.now() - began
        log.info("loaded", layers=_range(order), runtime=model.runtime, seconds=round(seconds, 2))
        loaded = control.Loaded(epoch=order.epoch, weight_bytes=model.nbytes, runtime=model.runtime, seconds=seconds)
        loaded.shared.extend(self._fetcher.offer(order))
        self._say(loaded)
        if order.offer:
            self._spawn(self._offer_packed(order, model))
        if epoch.experts:
            epoch.entered.set()
            self._tell(f"holding {epoch.part}: {human_bytes(model.nbytes)} of weights, {model.runtime}")

    async def _copy_packed(self, order: control.Load, model: Model) -> None:
        """What other nodes have packed of what this one is going to read from disk."""
        layers = sorted({found.layer for found in order.packed if found.layer <= order.layers})
        if layers and (places := await self._environment.load(lambda: model.unpacked(layers))):
            self._tell(f"copying packed weights from other nodes: {len(places)} files")
            came = await self._fetcher.copy(order, places, model.usable)
            self._tell(f"copied {came} of {len(places)} files of packed weights")

    async def _offer_packed(self, order: control.Load, model: Model) -> None:
        """Lets other nodes copy what was packed here."""
        offered = await self._fetcher.offer_packed(order, model.packed)
        if model is self._model and offered not in ([], self._packed):
            self._packed = offered
            self._tell(f"other nodes may copy {len(offered)} files of packed weights from here")

    async def _load_layers(self, epoch: _Epoch, model: Model) -> None:
        running = [self._current.layers] if self._current is not None else []
        streamed, away = epoch.order.weight_memory > 0, by_layer(epoch.order.absent)
        experts = self._wanted_experts()

        def load() -> None:
            model.free(experts)
            model.shed([*running, epoch.layers])
            model.load(epoch.layers, streamed, away)

        await self._environment.load(load)

    async def _load_experts(self, epoch: _Epoch, model: Model) -> None:
        running = [self._current.layers] if self._current is not None else []

        def load() -> Bank:
            model.shed(running)
            return model.hold(epoch.experts, epoch.order.weight_memory)

        self._serve_experts(await self._environment.load(load))

    def _wanted_experts(self) -> dict[int, frozenset[int]]:
        """Those of all orders that may still be asked for."""
        return together(epoch.experts for epoch in self._epochs.values())

    def _forget_before(self, number: int) -> bool:
        """Older orders are over. Returns whether there were any."""
        old = [epoch for epoch in self._epochs if epoch < number]
        for epoch in old:
            del self._epochs[epoch]
        return bool(old)

    def _is_ordered(self, epoch: _Epoch) -> bool:
        """Whether the epoch belongs to this membership and was not replaced by another."""
        return self._epochs.get(epoch.order.epoch) is epoch

    def _is_latest(self, epoch: _Epoch) -> bool:
        """Whether no other order and no other membership came meanwhile."""
        return self._is_ordered(epoch) and max(self._epochs) == epoch.order.epoch

    async def _model_for(self, order: control.Load) -> Model:
        """What this node holds of the model. If it held another model, it holds nothing of that any more."""
        identity = (order.model, order.precision, order.kv_type, order.codec, str(order.context))
        if self._model is None or identity != self._identity:
            self._end_stage()
            if self._model is not None:
                await self._environment.compute(self._model.close)
            self._model, self._identity, self._expert_report = self._make_model(order), identity, ExpertReport()
            self._packed = []
        return self._model

    async def _enter(self, link: control.Link) -> None:
        """Leaves the running epoch, becomes a stage of another and connects to the next stage."""
        epoch = self._epochs.get(link.epoch)
        if epoch is None or self._model is None:
            return
        order, model, failing = epoch.order, self._model, ""
        keep = range(order.keep_first, order.keep_end)
        try:
            async with self._changing:
                if not self._is_latest(epoch):
                    return
                self._end_stage()
                self._forget_before(link.epoch)
                remote, experts = remote_experts(order), self._wanted_experts()

                def enter() -> Executor:
                    model.free(experts)
                    return model.enter(epoch.layers, keep, order.blocks, order.weight_memory, remote)

                executor = await self._environment.compute(enter)
                if not self._is_ordered(epoch):
                    return  # the head was lost meanwhile, and the stage with it
                epoch.links = self._expert_links(order) if order.workers else None
                service = StageService(
                    executor,
                    epoch=link.epoch,
                    stage=order.stage,
                    stages=order.stages,
                    wire_codec=wire_codec(order.codec),
                    compute=self._environment.step,
                    clock=self._environment.now,
                    elsewhere=epoch.links,
                )
                self._current, epoch.service = epoch, service
                epoch.entered.set()
            failing = "no link to workers with experts: "
            if epoch.links is not None:
                await epoch.links.open()
            failing = "no link to the next stage: "
            hello = Hello(__version__, self._welcome.cluster, self._welcome.name, order.stage + 1)
            role = Role.HEAD if service.last else Role.NODE
            service.link(await self._links.open(link.host, link.port, link.epoch, hello, role))
        except Exception as error:
            if not isinstance(error, OSError | EOFError | ShoalError | MemoryError):
                log.error("entering a route failed unexpectedly", exc_info=error)
            self._failed(epoch, f"{failing}{str(error) or type(error).__name__}")
            return
        if self._is_ordered(epoch):
            self._say(control.Linked(epoch=link.epoch))
            place = f", stage {order.stage + 1} of {order.stages}" if order.stages > 1 else ""
            self._tell(f"serving layers {_range(order)}{place}: {human_bytes(model.nbytes)} of weights, {model.runtime}")

    async def _rest(self, epoch: int) -> None:
        async with self._changing:
            if self._model is None or (self._current is not None and self._current.order.epoch > epoch):
                return
            holds = epoch in self._epochs and bool(self._epochs[epoch].experts)
            if self._current is not None and not holds:
                self._tell("resting: the head has no layers for this node now")
            self._end_stage()
            self._forget_before(epoch)
            model = self._model
            await self._environment.compute(lambda: (model.rest(), model.shed([])) if holds else model.rest())

    def _end_stage(self) -> None:
        if self._current is not None and self._current.service is not None:
            self._current.service.close()
            if self._current.links is not None:
                self._spawn(self._current.links.close())
        self._current = None

    # Experts

    def _expert_links(self, order: control.Load) -> ExpertLinks:
        """To the workers that hold what this stage does not."""
        at = {worker.name: (worker.host, worker.port) for worker in order.workers}
        hello = Hello(__version__, self._welcome.cluster, self._welcome.name, EXPERTS)
        holders = Holders({worker.name: by_layer(worker.experts) for worker in order.workers})
        environment = self._environment
        return ExpertLinks(
            holders,
            by_layer(order.absent),
            lambda name: self._links.open(*at[name], order.epoch, hello),
            order.epoch,
            environment.now,
            environment.rng,
            turns=environment.turns,
            degrade=order.degrade,
        )

    def _serve_experts(self, bank: Bank) -> None:
        if self._serving_experts is None or self._serving_experts[0].bank is not bank:
            if self._serving_experts is not None:
                self._serving_experts[1].cancel()
            service = ExpertService(bank, self._timed, self._environment.now)
            self._serving_experts = service, self._spawn(service.run())

    async def _timed(self, work: Callable[[], T], size: int) -> T:
        """See Environment.step."""
        began = self._environment.now()
        try:
            return await self._environment.step(work, size)
        finally:
            self._computed += self._environment.now() - began

    async def _accept_asker(self, stream: FrameStream, greeting: Frame) -> None:
        """Serves a stage that asks experts. An older epoch is over once a newer one asks."""
        epoch = self._epochs.get(greeting.epoch)
        holds = epoch is not None and epoch.entered.is_set() and bool(epoch.experts)
        stage = EXPERTS if holds else -1
        await accept_link(stream, greeting, greeting.epoch, self._welcome.cluster, stage, self._welcome.name)
        assert epoch is not None and self._serving_experts is not None and self._model is not None  # no greeting fits stage -1
        if self._forget_before(greeting.epoch):
            model, wanted = self._model, self._wanted_experts()
            async with self._changing:
                await self._environment.load(lambda: model.free(wanted))
        await self._serving_experts[0].serve(stream)

    async def _accept(self, stream: FrameStream) -> None:
        """Serves the stage before this one, or any other peer."""
        try:
            greeting = await greeted(stream, self._share)
            if greeting.kind is FrameKind.HELLO and decode_hello(greeting.meta).stage == EXPERTS:
                await self._accept_asker(stream, greeting)
                return
            service = await self._awaited(greeting.epoch)
            free = service is not None and not service.served
            epoch, stage = (service.epoch, service.stage) if service is not None and free else (0, -1)
            await accept_link(stream, greeting, epoch, self._welcome.cluster, stage, self._welcome.name)
            assert service is not None  # no greeting fits stage -1
            await service.serve(stream)
        except (EOFError, OSError) as error:
            log.info("a link ended", peer=stream.peer, reason=str(error) or type(error).__name__)
        except ProtocolError as error:
            log.warning("a link was refused or broken", peer=stream.peer, reason=str(error))
        except Exception as error:  # the head was told over the route
            log.error("a step failed", reason=str(error), exc_info=None if isinstance(error, ShoalError) else error)

    async def _awaited(self, number: int) -> StageService | None:
        """The stage of an epoch; waits for one that is ordered but not yet entered."""
        if (epoch := self._epochs.get(number)) is None:
            return None
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await epoch.entered.wait()
        return epoch.service if epoch is self._current else None
