"""A distributed model from Python: the cluster runs in the background, on this machine."""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import secrets
import sys
import threading
import warnings
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import structlog

from shoal.cli.logs import text_processors
from shoal.cli.relocation import move_in
from shoal.config import HeadSettings
from shoal.config import NodeSettings as _NodeSettings
from shoal.errors import ClusterError, ConfigError
from shoal.executor.runtimes import check_runtime
from shoal.launch.local import LocalCluster, local_cluster
from shoal.models.description import describe
from shoal.native import missing
from shoal.node.model_engine import ModelOffer
from shoal.request import FinishReason, Request, RequestId, SamplingParams
from shoal.settings import from_environment, settings_of
from shoal.text.detokenizer import TextStream

T = TypeVar("T")


class AutoDistributedModel:
    """A model split over node processes. Close it, or use it in a `with` statement, to end them."""

    def __init__(self, settings: HeadSettings, node: _NodeSettings, nodes: int) -> None:
        if not structlog.is_configured():  # as a library, log only warnings, and not to the user's stdout
            structlog.configure(
                processors=text_processors(),
                wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
                logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            )
        move_in(structlog.get_logger().warning)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="shoal", daemon=True)
        self._thread.start()
        self._names = itertools.count()
        self._stop = asyncio.Event()
        self._cluster: LocalCluster | None = None
        self._started = False
        started: queue.Queue[BaseException | None] = queue.Queue()
        self._running = asyncio.run_coroutine_threadsafe(self._run(settings, node, nodes, started), self._loop)
        try:
            error = started.get()
        except BaseException:
            self.close()
            raise
        if error is not None:
            self.close()
            raise error

    @classmethod
    def from_pretrained(
        cls, model: str, *, nodes: int = 2, memory: str | None = None, threads: int | None = None, **settings: Any
    ) -> AutoDistributedModel:
        """model: as for `--model`. settings: fields of HeadSettings, such as precision or context. Raises ShoalError."""
        if nodes < 1:
            raise ConfigError(f"nodes must be at least 1, not {nodes}")
        unknown = set(settings) - {
            s.name for s in settings_of(HeadSettings) if s.name not in ("port", "control_port", "min_nodes", "model")
        }
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
        head = from_environment(HeadSettings, {**settings, "model": model, "port": 0, "control_port": 0})
        node = from_environment(_NodeSettings, {"memory": memory, "threads": threads})
        check_runtime(node.runtime, node.isa)
        if why := missing():
            warnings.warn(f"layers run slowly: {why}", RuntimeWarning, stacklevel=2)
        return cls(head, node, nodes)

    async def _run(self, settings: HeadSettings, node: _NodeSettings, nodes: int, started: queue.Queue[BaseException | None]) -> None:
        try:
            description = await asyncio.to_thread(describe, settings.engine.model)
            async with local_cluster(settings, node, [ModelOffer(description, settings.engine)], nodes) as cluster:
                await cluster.until_ready()
                self._cluster, self._started = cluster, True
                started.put(None)
                await self._stop.wait()
                self._cluster = None
        except BaseException as error:  # passed to the thread that waits or, once that has its model, to close()
            if self._started:
                raise
            started.put(error)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def generate(self, prompt: str, *, max_tokens: int = 256, stop: str | list[str] | None = None, **sampling: Any) -> str:
        """The text that continues the prompt. sampling: fields of SamplingParams; temperature 0 unless given."""
        return "".join(self.stream(prompt, max_tokens=max_tokens, stop=stop, **sampling))

    def chat(self, messages: list[dict[str, str]], *, max_tokens: int = 256, stop: str | list[str] | None = None, **sampling: Any) -> str:
        """The assistant's answer to a conversation."""
        return "".join(self._stream(self._engine.tokenizer.encode_chat(messages), max_tokens, stop, sampling))

    def stream(self, prompt: str, *, max_tokens: int = 256, stop: str | list[str] | None = None, **sampling: Any) -> Iterator[str]:
        """Like generate, but yields pieces. Leaving the iteration cancels the rest."""
        return self._stream(self._engine.tokenizer.encode(prompt), max_tokens, stop, sampling)

    @property
    def _engine(self) -> Any:
        if self._cluster is None:
            raise ClusterError("the model is closed")
        return self._cluster.head.engine

    def _stream(self, prompt: list[int], max_tokens: int, stop: str | list[str] | None, sampling: dict[str, Any]) -> Iterator[str]:
        engine = self._engine
        unknown = set(sampling) - set(SamplingParams.__struct_fields__)
        if unknown:
            raise ConfigError(
                f"unknown sampling parameters: {', '.join(sorted(unknown))}; known are {', '.join(SamplingParams.__struct_fields__)}"
            )
        chosen: dict[str, Any] = {"temperature": 0.0, "seed": secrets.randbits(63), **sampling}
        params = SamplingParams(**chosen)
        params.check(engine.vocabulary)
        request = Request(RequestId(f"python-{next(self._names)}"), prompt, max_tokens, params, 1, engine.tokenizer.stop_tokens)
        text = TextStream(engine.tokenizer, prompt, [stop] if isinstance(stop, str) else stop or [])

        async def submit() -> Any:
            return engine.submit(request)

        stream = self._wait(submit())
        try:
            while not self._loop.is_closed():
                chunk = self._wait(anext(stream))
                piece = "" if chunk.token is None else text.push(chunk.token)
                if chunk.finish is not None:
                    piece += text.finish()
                if piece:
                    yield piece
                if text.stopped or chunk.finish in (FinishReason.STOP, FinishReason.LENGTH):
                    return
            raise ClusterError("the model is closed")
        finally:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(stream.close)

    def close(self) -> None:
        """Ends every process of the cluster."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._running.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> AutoDistributedModel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
