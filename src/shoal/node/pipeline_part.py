"""A node's part in one pipeline: it loads layers or experts on the head's orders, and runs its stage, or experts for stages elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Protocol, TypeVar

import structlog

from shoal import __version__
from shoal.control import messages as control
from shoal.errors import ShoalError
from shoal.executor.base import Executor
from shoal.node.environment import Environment, Model
from shoal.node.expert_holders import Holders
from shoal.node.expert_links import ExpertLinks
from shoal.node.expert_report import ExpertReport
from shoal.node.expert_service import Bank, ExpertService
from shoal.node.expert_tables import by_layer, remote_experts, together
from shoal.node.fetch import Fetcher
from shoal.node.links import CONNECT_TIMEOUT, Links, accept_link
from shoal.node.stage_service import StageService, wire_codec
from shoal.security.certificates import Role
from shoal.sizes import human_bytes
from shoal.transport.base import FrameStream
from shoal.wire.frame import Frame
from shoal.wire.messages import EXPERTS, Hello

log = structlog.get_logger()

T = TypeVar("T")


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


def model_name(reference: str) -> str:
    """For people."""
    return reference[3:].partition("@")[0] if reference.startswith("hf:") else PurePath(reference).name


class PartContext(Protocol):
    """What the parts of a node have in common."""

    environment: Environment
    links: Links
    fetcher: Fetcher
    welcome: control.Welcome

    def make_model(self, order: control.Load, /) -> Model: ...
    def say(self, message: control.NodeMessage) -> None: ...
    def tell(self, line: str, /) -> None:
        """Something for the person at this machine."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...
    async def room(self) -> None:
        """Waits until what was dropped of other pipelines is free."""
        ...


class PipelinePart:
    def __init__(self, node: PartContext, pipeline: str) -> None:
        self.pipeline = pipeline
        self.packed: list[control.PackedFile] = []
        """That other nodes may copy."""
        self._node, self._environment = node, node.environment
        self._model: Model | None = None
        self._identity: tuple[str, ...] = ()
        self._expert_report = ExpertReport()
        self._epochs: dict[int, _Epoch] = {}
        self._current: _Epoch | None = None
        self._changing = asyncio.Lock()  # only one order at a time changes what this node holds
        self._serving_experts: tuple[ExpertService, asyncio.Task[None]] | None = None
        self._computed = 0.0  # seconds, for stages on other machines

    # A node's memberships

    def held(self) -> control.HeldModel | None:
        """What it has in memory."""
        if self._model is None:
            return None
        model, precision = self._identity[:2]
        loaded = [control.LayerRange(first=layers.start, end=layers.stop) for layers in self._model.layers]
        return control.HeldModel(pipeline=self.pipeline, model=model, precision=precision, loaded=loaded)

    def joins_another_head(self) -> None:
        """The rows of another head's requests do not count for this one."""
        if self._model is not None:
            self._expert_report.skip(self._model.expert_rows, self._model.expert_reads)

    def end_membership(self) -> None:
        """The head is gone, and its orders with it."""
        self.end_stage()
        self._epochs.clear()

    async def keep_weights(self) -> None:
        """Frees everything else."""
        if self._model is not None:
            await self._environment.compute(self._model.rest)

    async def drop(self) -> None:
        """Frees all; nothing may be asked of it after that."""
        self.end_membership()  # what is being loaded is not wanted any more
        async with self._changing:
            await self.close()

    async def close(self) -> None:
        self.end_membership()
        if self._serving_experts is not None:
            self._serving_experts[1].cancel()
            self._serving_experts = None
        if self._model is not None:
            model, self._model = self._model, None
            await self._environment.compute(model.close)

    def report(self) -> control.PipelineReport:
        service = self._current.service if self._current else None
        report = control.PipelineReport(pipeline=self.pipeline, steps=service.steps if service else 0)
        if self._model is not None:
            self._model.report(report)
            report.weights = self._model.nbytes
            if self._epochs:  # before its first order the head does not count the node as a member, and drops what it says
                now = self._environment.now()
                report.expert_rows = self._expert_report.due(self._model.expert_rows, now)
                report.expert_reads = self._expert_report.reads_due(self._model.expert_reads, now)
        if self._current is not None and self._current.links is not None:
            report.expert_asks = [self._current.links.tally]
        if self._serving_experts is not None:
            report.expert_work = [replace(self._serving_experts[0].work, computed=self._computed)]
        return report

    def _failed(self, epoch: _Epoch, reason: str) -> None:
        """Tells the head, unless it is another head by now: its epochs have the same numbers but mean something else."""
        log.info("stage failed", epoch=epoch.order.epoch, reason=reason)
        self._node.tell(f"{epoch.part} cannot be served: {reason}")
        if self._is_ordered(epoch):
            self._node.say(control.Failed(epoch=epoch.order.epoch, reason=reason))

    # Stages

    async def load(self, order: control.Load) -> None:
        """Loads an epoch's layers, or experts for stages on other machines, beside those that run."""
        began = self._environment.now()
        epoch = self._epochs[order.epoch] = _Epoch(order)
        self._node.tell(f"loading {epoch.part} of {model_name(order.model)}")
        try:
            await self._node.fetcher.fill(order)
            await self._node.room()
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
        loaded.shared.extend(self._node.fetcher.offer(order))
        self._node.say(loaded)
        if order.offer:
            self._node.spawn(self._offer_packed(order, model))
        if epoch.experts:
            epoch.entered.set()
            self._node.tell(f"holding {epoch.part}: {human_bytes(model.nbytes)} of weights, {model.runtime}")

    async def _copy_packed(self, order: control.Load, model: Model) -> None:
        """What other nodes have packed of what this one is going to read from disk."""
        layers = sorted({found.layer for found in order.packed if found.layer <= order.layers})
        if layers and (places := await self._environment.load(lambda: model.unpacked(layers))):
            self._node.tell(f"copying packed weights from other nodes: {len(places)} files")
            came = await self._node.fetcher.copy(order, places, model.usable)
            self._node.tell(f"copied {came} of {len(places)} files of packed weights")

    async def _offer_packed(self, order: control.Load, model: Model) -> None:
        """Lets other nodes copy what was packed here."""
        offered = await self._node.fetcher.offer_packed(order, model.packed)
        if model is self._model and offered not in ([], self.packed):
            self.packed = offered
            self._node.tell(f"other nodes may copy {len(offered)} files of packed weights from here")

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
            self.end_stage()
            if self._model is not None:
                await self._environment.compute(self._model.close)
            self._model, self._identity, self._expert_report = self._node.make_model(order), identity, ExpertReport()
            self.packed = []
        return self._model

    async def enter(self, link: control.Link) -> None:
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
                self.end_stage()
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
            hello = Hello(__version__, self._node.welcome.cluster, self._node.welcome.name, order.stage + 1)
            role = Role.HEAD if service.last else Role.NODE
            service.link(await self._node.links.open(link.host, link.port, link.epoch, hello, role))
        except Exception as error:
            if not isinstance(error, OSError | EOFError | ShoalError | MemoryError):
                log.error("entering a route failed unexpectedly", exc_info=error)
            self._failed(epoch, f"{failing}{str(error) or type(error).__name__}")
            return
        if self._is_ordered(epoch):
            self._node.say(control.Linked(epoch=link.epoch))
            place = f", stage {order.stage + 1} of {order.stages}" if order.stages > 1 else ""
            self._node.tell(f"serving layers {_range(order)}{place}: {human_bytes(model.nbytes)} of weights, {model.runtime}")

    async def rest(self, epoch: int) -> None:
        async with self._changing:
            if self._model is None or (self._current is not None and self._current.order.epoch > epoch):
                return
            holds = epoch in self._epochs and bool(self._epochs[epoch].experts)
            if self._current is not None and not holds:
                self._node.tell("resting: the head has no layers for this node now")
            self.end_stage()
            self._forget_before(epoch)
            model = self._model
            await self._environment.compute(lambda: (model.rest(), model.shed([])) if holds else model.rest())

    def end_stage(self) -> None:
        if self._current is not None and self._current.service is not None:
            self._current.service.close()
            if self._current.links is not None:
                self._node.spawn(self._current.links.close())
        self._current = None

    # Experts

    def _expert_links(self, order: control.Load) -> ExpertLinks:
        """To the workers that hold what this stage does not."""
        at = {worker.name: (worker.host, worker.port) for worker in order.workers}
        hello = Hello(__version__, self._node.welcome.cluster, self._node.welcome.name, EXPERTS)
        holders = Holders({worker.name: by_layer(worker.experts) for worker in order.workers})
        environment = self._environment
        return ExpertLinks(
            holders,
            by_layer(order.absent),
            lambda name: self._node.links.open(*at[name], order.epoch, hello),
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
            self._serving_experts = service, self._node.spawn(service.run())

    async def _timed(self, work: Callable[[], T], size: int) -> T:
        """See Environment.step."""
        began = self._environment.now()
        try:
            return await self._environment.step(work, size)
        finally:
            self._computed += self._environment.now() - began

    def ordered(self, number: int) -> bool:
        """Whether it was told to take part in an epoch."""
        return number in self._epochs

    async def accept_asker(self, stream: FrameStream, greeting: Frame) -> None:
        """Serves a stage that asks experts. An older epoch is over once a newer one asks."""
        epoch = self._epochs.get(greeting.epoch)
        holds = epoch is not None and epoch.entered.is_set() and bool(epoch.experts)
        stage = EXPERTS if holds else -1
        await accept_link(stream, greeting, greeting.epoch, self._node.welcome.cluster, stage, self._node.welcome.name)
        assert epoch is not None and self._serving_experts is not None and self._model is not None  # no greeting fits stage -1
        if self._forget_before(greeting.epoch):
            model, wanted = self._model, self._wanted_experts()
            async with self._changing:
                await self._environment.load(lambda: model.free(wanted))
        await self._serving_experts[0].serve(stream)

    async def awaited(self, number: int) -> StageService | None:
        """The stage of an epoch; waits for one that is ordered but not yet entered."""
        if (epoch := self._epochs.get(number)) is None:
            return None
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await epoch.entered.wait()
        return epoch.service if epoch is self._current else None
