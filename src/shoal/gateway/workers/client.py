"""A worker's side: an engine that runs in another process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from shoal.chunk_stream import ChunkStream
from shoal.errors import ClusterError, RemoteProtocolError, ShoalError
from shoal.gateway.auth.key import KeyId, KeyLimits
from shoal.gateway.auth.limits import Allowance
from shoal.gateway.engine import ChatTokenizer, TakenOver
from shoal.gateway.workers import messages
from shoal.gateway.workers.channel import Channel
from shoal.gateway.workers.messages import Attached, Call, FromHead, Message, Reply, Welcome
from shoal.gateway.workers.operations import RemoteOperator
from shoal.observed.trace_span import TraceSpan
from shoal.request import Request, RequestId

T = TypeVar("T")

_SPENDING = 0.05  # seconds for which spent tokens are collected


class RemoteStream(ChunkStream):
    """Its chunks come from another process; it ends with TakenOver if another worker takes it over."""

    def __init__(self, request: Request, engine: RemoteEngine) -> None:
        super().__init__(request)
        self._engine = engine

    def end_choice(self, choice: int) -> None:
        super().end_choice(choice)
        self._engine.tell(self, messages.EndChoice(self.request.id, choice))

    def close(self) -> None:
        if self._open:
            self._engine.tell(self, messages.Close(self.request.id))
        super().close()
        self._engine.release(self)


class RemoteResumed:
    """A gateway.engine.Resumed."""

    def __init__(self, attached: Attached, streams: list[RemoteStream]) -> None:
        self.id, self.note, self.requests, self.said, self.streams = attached.id, attached.note, attached.requests, attached.said, streams


class RemoteLimiter:
    """A gateway.auth.limits.Limiter: the head counts for all workers."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self._numbers = count(1)
        self._inside: dict[KeyId, list[int]] = {}
        self._spent: dict[KeyId, int] = {}

    async def enter(self, key: KeyId, limits: KeyLimits) -> Allowance:
        number = -next(self._numbers)
        try:
            allowance = await self._engine.enter(number, key, limits)
        except asyncio.CancelledError:
            self._engine.say(messages.Leave(number))
            raise
        self._inside.setdefault(key, []).append(number)
        return allowance

    def leave(self, key: KeyId) -> None:
        numbers = self._inside[key]
        self._engine.say(messages.Leave(numbers.pop()))
        if not numbers:
            del self._inside[key]

    def spend(self, key: KeyId, tokens: int) -> None:
        """Reports a little later, many tokens at once."""
        if not self._spent:
            asyncio.get_running_loop().call_later(_SPENDING, self._tell)
        self._spent[key] = self._spent.get(key, 0) + tokens

    def _tell(self) -> None:
        spent, self._spent = self._spent, {}
        for key, tokens in spent.items():
            self._engine.say(messages.Spend(key, tokens))


class RemoteEngine:
    """The gateway.engine.Engine of the head that welcomed this process. `run` must run alongside its use."""

    def __init__(self, channel: Channel[FromHead], welcome: Welcome, tokenizer: ChatTokenizer) -> None:
        self.name, self.created, self.vocabulary = welcome.name, welcome.created, welcome.vocabulary
        self.identity, self.facts = welcome.identity, welcome.facts
        self.resume, self.settings, self.tokenizer = welcome.resume, welcome.settings, tokenizer
        self._channel, self._status = channel, welcome.status
        self._numbers = count()
        self._calls: dict[int, tuple[asyncio.Future[Any], Callable[[Any], Any]]] = {}
        self._streams: dict[RequestId, RemoteStream] = {}
        self._resumed = [self._attached(attached) for attached in welcome.resumed]
        self._gone: ShoalError | None = None
        self.limiter = RemoteLimiter(self)
        self.operator = RemoteOperator(self._operate)
        self.finishing = asyncio.Event()
        """Set when no more requests may be accepted; `finished` is the reply."""

    @classmethod
    async def connect(cls, path: Path, opened: Callable[[Path, Path | None, bool], ChatTokenizer]) -> RemoteEngine:
        """opened: the tokenizer for a model, another chat template, and whether text is trusted. Raises OSError, EOFError,
        RemoteProtocolError, and what `opened` raises."""
        channel: Channel[FromHead] = Channel(*await asyncio.open_unix_connection(path), FromHead)
        try:
            channel.say(messages.Join(os.getpid()))
            welcome = await channel.hear()
            if not isinstance(welcome, Welcome):
                raise RemoteProtocolError(f"{type(welcome).__name__} before Welcome")
            template = Path(welcome.template) if welcome.template else None
            return cls(channel, welcome, opened(Path(welcome.model), template, welcome.settings.trust_text))
        except BaseException:
            channel.abort()
            raise

    async def run(self) -> None:
        """Processes the head's messages until it is gone. Raises RemoteProtocolError."""
        try:
            while True:
                self._heard(await self._channel.hear())
        except EOFError:
            return

    async def close(self) -> None:
        """Ends what is still running, here and at the head."""
        self._gone = ClusterError("the server's engine is gone")
        for stream in [*self._streams.values()]:
            stream.put(self._gone)
        for future, _ in self._calls.values():
            if not future.done():
                future.set_exception(self._gone)
        await self._channel.close()

    # The gateway's interface

    @property
    def state(self) -> str:
        return self._status.state

    def longest(self) -> int:
        if self._status.why is not None:
            raise self._status.why.error
        return self._status.longest

    async def begin(self, answer: str, note: bytes, requests: Sequence[Request], named: bool) -> list[RemoteStream]:
        number = next(self._numbers)
        streams = [RemoteStream(request, self) for request in requests]
        try:
            await self._ask(messages.Begin(number, answer, note, list(requests), named), lambda _: self._listen(streams))
        except asyncio.CancelledError:
            self._channel.say(messages.Cancel(number, answer))
            for stream in streams:
                self.release(stream)
            raise
        return streams

    def forget(self, answer: str) -> None:
        self._channel.say(messages.Forget(answer))

    def resumed(self) -> list[RemoteResumed]:
        resumed, self._resumed = self._resumed, []
        return resumed

    async def find(self, answer: str, owner: KeyId) -> RemoteResumed | None:
        number = next(self._numbers)
        try:
            return await self._ask(messages.Find(number, answer, owner), lambda found: found.answer and self._attached(found.answer))
        except asyncio.CancelledError:
            self._channel.say(messages.GiveBack(answer))
            raise

    async def scrape(self) -> bytes:
        return await self._ask(messages.Scrape(next(self._numbers)), lambda scraped: scraped.text)

    def observe_first_token(self, seconds: float) -> None:
        self._channel.say(messages.Observed("first_token", (seconds,)))

    def observe_answer(self, outcome: str, seconds: float) -> None:
        self._channel.say(messages.Observed("answer", (outcome, seconds)))

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        self._channel.say(messages.Observed("request", (endpoint, outcome, prompt_tokens)))

    def observe_reuse(self, hit: bool) -> None:
        self._channel.say(messages.Observed("reuse", (hit,)))

    def observe_cache(self, taken: int, evicted: int) -> None:
        self._channel.say(messages.Observed("cache", (taken, evicted)))

    def traced(self, spans: Sequence[TraceSpan]) -> None:
        self._channel.say(messages.Traced([*spans]))

    def finished(self) -> None:
        """Reports that no request is unfinished any more."""
        self._channel.say(messages.Finished())

    async def _operate(self, name: str, arguments: bytes) -> bytes:
        return await self._ask(messages.Operate(next(self._numbers), name, arguments), lambda operated: operated.answer)

    # For its limiter and its streams

    async def enter(self, number: int, key: KeyId, limits: KeyLimits) -> Allowance:
        return await self._ask(messages.Enter(number, key, limits), lambda entered: entered.allowance)

    def say(self, message: Message) -> None:
        self._channel.say(message)

    def tell(self, stream: RemoteStream, message: Message) -> None:
        """Sends it if the stream still belongs to this worker."""
        if self._streams.get(stream.request.id) is stream:
            self._channel.say(message)

    def release(self, stream: RemoteStream) -> None:
        """Nothing is sent for the stream any more."""
        if self._streams.get(stream.request.id) is stream:
            del self._streams[stream.request.id]

    def _listen(self, streams: Sequence[RemoteStream]) -> None:
        for stream in streams:
            self._streams[stream.request.id] = stream

    def _attached(self, attached: Attached) -> RemoteResumed:
        streams = [RemoteStream(request, self) for request in attached.requests]
        self._listen(streams)
        return RemoteResumed(attached, streams)

    # Messages from the head

    async def _ask(self, call: Call, take: Callable[[Any], T]) -> T:
        """take: handles the reply in the turn in which it arrives, because the next message may be about it."""
        if self._gone is not None:
            raise self._gone
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._channel.say(call)
        self._calls[call.call] = (future, take)
        try:
            return await future
        finally:
            self._calls.pop(call.call, None)

    def _heard(self, message: FromHead) -> None:
        match message:
            case messages.Said(chunks):
                for chunk in chunks:
                    if (stream := self._streams.get(chunk.request)) is not None:
                        stream.put(chunk)
            case messages.Over(request):
                self._end(request, StopAsyncIteration())
            case messages.Broke(request, failure):
                self._end(request, failure.error)
            case messages.Taken(requests):
                for request in requests:
                    self._end(request, TakenOver())
                    self._streams.pop(request, None)
            case messages.Changed(status):
                self._status = status
            case messages.Finish():
                self.finishing.set()
            case messages.Welcome():
                raise RemoteProtocolError("a second Welcome")
            case messages.Begun() | messages.Found() | messages.Scraped() | messages.Entered() | messages.Operated() | messages.Refused():
                self._replied(message)

    def _end(self, request: RequestId, reason: Exception) -> None:
        if (stream := self._streams.get(request)) is not None:
            stream.put(reason)

    def _replied(self, reply: Reply) -> None:
        future, take = self._calls.get(reply.call, (None, None))
        if future is None or take is None or future.done():
            return  # nobody waits for it any more, and the head was told
        if isinstance(reply, messages.Refused):
            future.set_exception(reply.failure.error)
        else:
            future.set_result(take(reply))
