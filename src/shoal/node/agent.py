"""A node: joins the head, loads what it is told to, runs its stage."""

from __future__ import annotations

import asyncio
import platform
import secrets
import socket
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import structlog

from shoal import __version__
from shoal.config import KvType, NodeSettings, Precision, parse_bytes
from shoal.control import messages as control
from shoal.control.client import ControlClient
from shoal.errors import ClusterError, ConfigError, ProtocolError, ShoalError
from shoal.executor.measure import measure
from shoal.executor.runtimes import factory
from shoal.executor.stage import StageExecutor
from shoal.models.sources import pull_layers
from shoal.models.weights import open_weights
from shoal.native import instruction_set
from shoal.node.probe import TIMEOUT, measure_link
from shoal.node.stage_service import StageService, accept_link, greeted, open_link, wire_codec
from shoal.transport.base import FrameStream
from shoal.transport.tcp import listen
from shoal.wire.messages import Hello

log = structlog.get_logger()

JOIN_TIMEOUT = 10.0


@dataclass(frozen=True)
class _Address:
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> _Address:
        """'host:7420'. Raises ConfigError."""
        host, separator, port = text.rpartition(":")
        if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"'{text}' is no address; write HOST:PORT, like 192.168.1.20:7420")
        return cls(host.strip("[]"), int(port))


def facing(host: str, port: int) -> str:
    """This machine's address on the way to a host. Raises ConfigError where there is no way."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(f"there is no way to {host}: {error.strerror or error}") from error


def usable_memory(settings: NodeSettings) -> int:
    """Bytes that weights and KV blocks may take."""
    return parse_bytes(settings.memory) if settings.memory else int(psutil.virtual_memory().available * 0.75)


class Agent:
    def __init__(self, settings: NodeSettings, head: str) -> None:
        self._settings = settings
        self._head = _Address.parse(head)
        self._client = ControlClient(head)
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._service: StageService | None = None
        self._loading: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._welcome = control.Welcome()
        self._ended = asyncio.Event()
        self._served: set[FrameStream] = set()

    async def run(self) -> str:
        """Until the head hangs up or `leave` is called; answers why it ended. Raises ClusterError, ConfigError."""
        settings = self._settings
        bind = settings.bind or facing(self._head.host, self._head.port)
        speed = await asyncio.get_running_loop().run_in_executor(self._compute, measure, settings.compute_threads, settings.isa)
        listener = await listen(bind, settings.tensor_port, self._accept)
        try:
            join = control.Join(
                version=__version__,
                name=settings.name or socket.gethostname(),
                incarnation=secrets.randbits(63),
                tensor_host="" if bind in ("0.0.0.0", "::") else bind,
                tensor_port=listener.port,
                memory=usable_memory(settings),
                threads=settings.compute_threads,
                bytes_per_second=speed.bytes_per_second,
                flops=speed.flops,
                machine=f"{platform.machine()} {instruction_set(settings.isa) or 'numpy'}",
            )
            self._client.say(control.NodeMessage(join=join))
            return await self._attend()
        finally:
            await listener.close()
            await self._drop_stage()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._client.close()
            self._compute.shutdown()

    def leave(self) -> None:
        """Tells the head, and lets `run` return."""
        self._client.say(control.NodeMessage(leave=control.Leave()))
        self._ended.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _attend(self) -> str:
        """The conversation with the head, until it ends or this node is told to leave."""
        loop = asyncio.get_running_loop()
        conversation, ended = loop.create_task(self._converse()), loop.create_task(self._ended.wait())
        await asyncio.wait({conversation, ended}, return_when=asyncio.FIRST_COMPLETED)
        if conversation.done():
            ended.cancel()
            return conversation.result()
        conversation.cancel()
        await asyncio.gather(conversation, return_exceptions=True)
        return "it was told to leave"

    async def _converse(self) -> str:
        async for message in self._client.attend(JOIN_TIMEOUT):
            if (why := await self._told(message)) is not None:
                return why
        return "the head ended the conversation"

    async def _told(self, message: control.HeadMessage) -> str | None:
        match message.WhichOneof("kind"):
            case "welcome":
                self._welcome = message.welcome
                log.info("joined", cluster=message.welcome.cluster, as_=message.welcome.name)
                self._spawn(self._beat(message.welcome.heartbeat))
            case "refuse":
                raise ClusterError(f"the head refused this node: {message.refuse.reason}")
            case "probe":
                self._spawn(self._probe(message.probe))
            case "load":
                await self._drop_stage()
                self._loading = self._spawn(self._load(message.load))
            case "link":
                self._spawn(self._link(message.link))
            case "unload":
                await self._drop_stage()
            case "shutdown":
                return message.shutdown.reason or "the head shut down"
            case _:
                log.warning("an instruction of a kind that this version does not know was ignored")
        return None

    async def _beat(self, interval: float) -> None:
        process = psutil.Process()
        while True:
            steps = self._service.steps if self._service else 0
            self._client.say(control.NodeMessage(heartbeat=control.Heartbeat(resident=process.memory_info().rss, steps=steps)))
            await asyncio.sleep(interval)

    def _failed(self, epoch: int, reason: str) -> None:
        log.error("stage failed", epoch=epoch, reason=reason)
        self._client.say(control.NodeMessage(failed=control.Failed(epoch=epoch, reason=reason)))

    async def _probe(self, probe: control.Probe) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                link = await measure_link(probe.host, probe.port)
        except (OSError, EOFError, ProtocolError) as error:
            self._failed(0, f"the head's tensor port {probe.host}:{probe.port} cannot be reached: {error or type(error).__name__}")
            return
        self._client.say(control.NodeMessage(probed=control.Probed(round_trip=2 * link.seconds, bytes_per_second=link.bytes_per_second)))

    async def _load(self, load: control.Load) -> None:
        began = monotonic()
        try:
            service = await asyncio.get_running_loop().run_in_executor(self._compute, self._build, load)
        except Exception as error:
            if not isinstance(error, ShoalError | MemoryError | OSError):
                log.error("loading failed unexpectedly", exc_info=error)
            self._failed(load.epoch, str(error) or type(error).__name__)
            return
        self._service = service
        executor = service.executor
        log.info(
            "loaded", layers=f"{load.first_layer}-{load.end_layer - 1}", runtime=executor.runtime, seconds=round(monotonic() - began, 2)
        )
        loaded = control.Loaded(epoch=load.epoch, weight_bytes=executor.nbytes, runtime=executor.runtime, seconds=monotonic() - began)
        self._client.say(control.NodeMessage(loaded=loaded))

    def _build(self, load: control.Load) -> StageService:
        """In the computing thread."""
        layers, settings = range(load.first_layer, load.end_layer), self._settings
        path: Path = pull_layers(load.model, layers, load.stage == 0, load.stage == load.stages - 1)
        weights = open_weights(path)
        if not 0 <= layers.start < layers.stop <= weights.spec.layers:
            raise ClusterError(f"layers {layers.start} to {layers.stop} are not in {path}, which has {weights.spec.layers}")
        executor = StageExecutor(
            weights,
            layers,
            blocks=load.blocks,
            bf16=load.kv_type == KvType.BF16,
            make_layers=factory(settings.runtime, Precision(load.precision), settings.compute_threads, settings.isa),
        )
        return StageService(
            executor,
            epoch=load.epoch,
            stage=load.stage,
            stages=load.stages,
            hidden=weights.spec.hidden,
            wire_codec=wire_codec(load.codec),
            pool=self._compute,
        )

    async def _link(self, link: control.Link) -> None:
        service = self._service
        if service is None or service.epoch != link.epoch:
            return
        try:
            hello = Hello(__version__, self._welcome.cluster, self._welcome.name, service.stage + 1)
            service.link(await open_link(link.host, link.port, link.epoch, hello))
        except (OSError, EOFError, ProtocolError) as error:
            self._failed(link.epoch, f"no link to the next stage: {error}")
            return
        self._client.say(control.NodeMessage(linked=control.Linked(epoch=link.epoch)))

    async def _accept(self, stream: FrameStream) -> None:
        """Serves the stage before this one, or whoever else knocks."""
        self._served.add(stream)
        service = self._service
        try:
            greeting = await greeted(stream)
            epoch, stage = (service.epoch, service.stage) if service and not service.served else (0, -1)
            await accept_link(stream, greeting, epoch, self._welcome.cluster, stage, self._welcome.name)
            assert service is not None  # no greeting fits stage -1
            await service.serve(stream)
        except (EOFError, OSError) as error:
            log.info("a link ended", peer=stream.peer, reason=str(error) or type(error).__name__)
        except ProtocolError as error:
            log.warning("a link was refused or broken", peer=stream.peer, reason=str(error))
        except Exception as error:
            log.error("a step failed", exc_info=error)
            if service is not None:
                self._failed(service.epoch, str(error) or type(error).__name__)
        finally:
            self._served.discard(stream)

    async def _drop_stage(self) -> None:
        if self._loading is not None:
            await asyncio.gather(self._loading, return_exceptions=True)  # a thread cannot be stopped half-way
            self._loading = None
        for stream in list(self._served):
            stream.abort()
        if self._service is not None:
            service, self._service = self._service, None
            await service.close()
