"""A worker's side: the engines that run in another process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from shoal.errors import CapacityError, ClusterError, LocalProtocolError, NotReady, RemoteProtocolError, ShoalError
from shoal.gateway.engine import ChatTokenizer, Engine
from shoal.gateway.engines import ServedEngines
from shoal.gateway.operator import Operator
from shoal.gateway.workers import messages
from shoal.gateway.workers.channel import Channel
from shoal.gateway.workers.head_link import HeadLink
from shoal.gateway.workers.messages import Attached, FromHead, Names, ServedModel, Welcome
from shoal.gateway.workers.operations import RemoteOperator
from shoal.gateway.workers.remote_engine import RemoteEngine
from shoal.gateway.workers.remote_home import RemoteHome
from shoal.gateway.workers.remote_limiter import RemoteLimiter
from shoal.observed.models import UpstreamView
from shoal.observed.trace_span import TraceSpan
from shoal.text.tokenizer_parts import TokenizerFiles, fetched

Opened = Callable[[TokenizerFiles, bool], ChatTokenizer]
"""The tokenizer of a model's files; whether text is trusted."""


class RemoteTelemetry:
    """A gateway.engines.Telemetry: the head counts for all workers."""

    def __init__(self, link: HeadLink) -> None:
        self._link = link

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        self._link.say(messages.Observed("", "request", (endpoint, outcome, prompt_tokens)))

    def observe_cache(self, taken: int, evicted: int) -> None:
        self._link.say(messages.Observed("", "cache", (taken, evicted)))

    def observe_upstream(self, url: str, ending: str, first: float, whole: float, prompt: int, completion: int) -> None:
        self._link.say(messages.Observed("", "upstream", (url, ending, first, whole, prompt, completion)))

    def upstream_changed(self, view: UpstreamView) -> None:
        self._link.say(messages.UpstreamChanged(view))

    def traced(self, spans: Sequence[TraceSpan]) -> None:
        self._link.say(messages.Traced([*spans]))

    async def scrape(self) -> bytes:
        return await self._link.ask(messages.Scrape(self._link.number()), lambda scraped: scraped.text)


class RemoteEngines(ServedEngines):
    """The gateway.engines.Engines of the head that welcomed this process. `run` must run alongside their use."""

    def __init__(self, channel: Channel[FromHead], welcome: Welcome, opened: Opened, cache: Path | None = None) -> None:
        """cache: where a gateway puts what tokenizers are opened from."""
        self._channel, self._link, self._opened, self._cache = channel, HeadLink(channel), opened, cache
        self.settings, self._named = welcome.settings, welcome.named
        self.server = welcome.server
        """The id under which other servers know the head: all of its workers are one server."""
        self._remote: dict[str, RemoteEngine] = {}
        resumed = welcome.resumed
        engines = [self._engine(served, [each for each in resumed if each.model == served.name]) for served in welcome.engines]
        super().__init__(engines, RemoteTelemetry(self._link))
        self._rename(welcome.named)
        self.limiter = RemoteLimiter(self._link)
        self.operator = RemoteOperator(self._link.operating(Operator))
        self.home = welcome.home and RemoteHome(welcome.home, welcome.settings, self._link)
        """For a gateway."""
        self.finishing = asyncio.Event()
        """Set when no more requests may be accepted; `finished` is the reply."""

    @classmethod
    async def connect(cls, path: Path, opened: Opened) -> RemoteEngines:
        """Opens the tokenizer of the default model, and of those with answers to take up; others when they are first asked for.
        Raises OSError, EOFError, RemoteProtocolError, and what `opened` raises."""
        engines = await cls.join(*await asyncio.open_unix_connection(path), opened)
        try:
            await engines.prepare()
            return engines
        except BaseException:
            engines._channel.abort()
            raise

    @classmethod
    async def join(
        cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opened: Opened, name: str = "", cache: Path | None = None
    ) -> RemoteEngines:
        """Over a connection to the head. name, cache: of a gateway. Raises EOFError, RemoteProtocolError."""
        channel: Channel[FromHead] = Channel(reader, writer, FromHead)
        try:
            channel.say(messages.Join(os.getpid(), name))
            welcome = await channel.hear()
            if not isinstance(welcome, Welcome):
                raise RemoteProtocolError(f"{type(welcome).__name__} before Welcome")
            return cls(channel, welcome, opened, cache)
        except BaseException:
            channel.abort()
            raise

    async def prepare(self) -> None:
        """Opens the tokenizers of the default model, and of those with answers to take up. A gateway's `run` must run meanwhile. Raises
        what `opened` raises."""
        for engine in self._remote.values():
            if engine.name in self.names[:1] or engine.resumes:
                await engine.prepare()

    async def run(self) -> None:
        """Processes the head's messages until it is gone. Raises RemoteProtocolError."""
        try:
            while True:
                self._heard(await self._channel.hear())
        except EOFError:
            return

    def refuse(self, reason: ShoalError) -> None:
        """Ends what is running here with that reason; answers that clients named go on at the head."""
        self._link.end(reason)

    async def close(self) -> None:
        """Ends what is still running, here and at the head."""
        self._link.end(ClusterError("the server's engine is gone"))
        await self._channel.close()

    async def finish(self, finish: Callable[[], Awaitable[None]]) -> None:
        """When the head is about to end, it waits for the requests that are unfinished here. finish: ends them, and accepts no more."""
        await self.finishing.wait()
        await finish()
        if self.home is not None:  # the head may be gone as soon as this one has finished
            await asyncio.to_thread(self.home.keyring.flush)
        self.finished()

    def finished(self) -> None:
        """Reports that no request is unfinished any more."""
        self._link.say(messages.Finished())

    # The gateway's interface

    @property
    def names(self) -> Sequence[str]:
        return self._named.names

    @property
    def states(self) -> Mapping[str, str]:
        return self._named.states

    @property
    def state(self) -> str:
        return self._named.state

    async def find(self, model: str | None) -> Engine:
        """The head is asked for what is not known here: it may load it, or may just have got it."""
        if (engine := self._found.get(model)) is None:
            engine = await self._wanted(model)
        if isinstance(engine, RemoteEngine):
            await engine.prepare()
        return engine

    async def _wanted(self, model: str | None) -> Engine:
        number = self._link.number()
        try:
            name = await self._link.ask(messages.Want(number, model), lambda wanted: wanted.model)
        except asyncio.CancelledError:
            self._link.say(messages.Unwanted(number))
            raise
        if (engine := self._found.get(name)) is None:
            raise NotReady(f"the model '{name}' was unloaded")
        return engine

    # Messages from the head

    def _engine(self, served: ServedModel, attached: Sequence[Attached]) -> RemoteEngine:
        files = partial(self._files, served.name)
        engine = self._remote[served.name] = RemoteEngine(self._link, served, files, self._tokenizer, attached)
        return engine

    def _tokenizer(self, files: TokenizerFiles) -> ChatTokenizer:
        return self._opened(files, self.settings.trust_text)

    async def _files(self, model: str) -> TokenizerFiles:
        """What a gateway opens a model's tokenizer from."""
        if self._cache is None:
            raise LocalProtocolError("a worker on the head's machine fetches nothing")
        link = self._link

        async def read(part: str, offset: int) -> bytes:
            return await link.ask(messages.ReadPart(link.number(), model, part, offset), lambda read: read.data)

        parts = await link.ask(messages.ListParts(link.number(), model), lambda listed: listed.parts)
        try:
            return await fetched(parts, read, self._cache)
        except OSError as error:
            raise CapacityError(f"the tokenizer of '{model}' cannot be kept in {self._cache}: {error.strerror or error}") from error

    def _rename(self, named: Names) -> None:
        self._named, self._aliases = named, named.aliases
        self._changed()

    def _heard(self, message: FromHead) -> None:
        match message:
            case messages.Said(chunks):
                self._link.said(chunks)
            case messages.Over(request):
                self._link.over(request, StopAsyncIteration())
            case messages.Broke(request, failure):
                self._link.over(request, failure.error)
            case messages.Taken(requests):
                self._link.taken(requests)
            case messages.Changed(model, status):
                self._remote[model].status = status
            case messages.EngineAdded(served, resumed):
                self._put(self._engine(served, resumed))
            case messages.EngineGone(model):
                del self._remote[model]
                self.remove(model)
            case messages.Renamed(named):
                self._rename(named)
            case messages.KeysChanged(keys):
                if self.home is None:
                    raise RemoteProtocolError("keys for a worker that reads them itself")
                self.home.keyring.change(keys)
            case messages.Finish():
                self.finishing.set()
            case messages.Welcome():
                raise RemoteProtocolError("a second Welcome")
            case (
                messages.Begun()
                | messages.Found()
                | messages.Scraped()
                | messages.Entered()
                | messages.Operated()
                | messages.Wanted()
                | messages.PartsListed()
                | messages.PartRead()
                | messages.Refused()
            ):
                self._link.replied(message)
