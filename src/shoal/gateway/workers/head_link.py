"""A worker's conversation with the head: its calls with their replies, and the streams that it listens to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar

from shoal.chunk_stream import ChunkStream
from shoal.errors import ShoalError
from shoal.gateway.engine import TakenOver
from shoal.gateway.workers import messages
from shoal.gateway.workers.channel import Channel
from shoal.gateway.workers.messages import Call, FromHead, Message, Reply
from shoal.gateway.workers.operations import Ask
from shoal.request import Request, RequestId, TokenChunk

T = TypeVar("T")


class RemoteStream(ChunkStream):
    """Its chunks come from another process; it ends with TakenOver if another worker takes it over."""

    def __init__(self, request: Request, link: HeadLink) -> None:
        super().__init__(request)
        self._link = link

    def end_choice(self, choice: int) -> None:
        super().end_choice(choice)
        self._link.tell(self, messages.EndChoice(self.request.id, choice))

    def close(self) -> None:
        if self._open:
            self._link.tell(self, messages.Close(self.request.id))
        super().close()
        self._link.release(self)


class HeadLink:
    def __init__(self, channel: Channel[FromHead]) -> None:
        self._channel = channel
        self._numbers = count()
        self._calls: dict[int, tuple[asyncio.Future[Any], Callable[[Any], Any]]] = {}
        self._streams: dict[RequestId, RemoteStream] = {}
        self._gone: ShoalError | None = None

    def number(self) -> int:
        """Of the next call."""
        return next(self._numbers)

    def say(self, message: Message) -> None:
        self._channel.say(message)

    def operating(self, interface: type[Any]) -> Ask:
        """Has the head do the operations of an interface: see operations."""

        async def ask(name: str, arguments: bytes) -> bytes:
            asked = messages.Operate(self.number(), interface.__name__, name, arguments)
            return await self.ask(asked, lambda operated: operated.answer)

        return ask

    async def ask(self, call: Call, take: Callable[[Any], T]) -> T:
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

    def replied(self, reply: Reply) -> None:
        future, take = self._calls.get(reply.call, (None, None))
        if future is None or take is None or future.done():
            return  # nobody waits for it any more, and the head was told
        if isinstance(reply, messages.Refused):
            future.set_exception(reply.failure.error)
        else:
            future.set_result(take(reply))

    def end(self, reason: ShoalError) -> None:
        """Ends what is still running, and every later call."""
        self._gone = reason
        for stream in [*self._streams.values()]:
            stream.put(reason)
        for future, _ in self._calls.values():
            if not future.done():
                future.set_exception(reason)

    # Streams

    def listen(self, streams: Sequence[RemoteStream]) -> None:
        for stream in streams:
            self._streams[stream.request.id] = stream

    def tell(self, stream: RemoteStream, message: Message) -> None:
        """Sends it if the stream still belongs to this worker."""
        if self._streams.get(stream.request.id) is stream:
            self._channel.say(message)

    def release(self, stream: RemoteStream) -> None:
        """Nothing is sent for the stream any more."""
        if self._streams.get(stream.request.id) is stream:
            del self._streams[stream.request.id]

    def said(self, chunks: Sequence[TokenChunk]) -> None:
        for chunk in chunks:
            if (stream := self._streams.get(chunk.request)) is not None:
                stream.put(chunk)

    def over(self, request: RequestId, reason: Exception) -> None:
        if (stream := self._streams.get(request)) is not None:
            stream.put(reason)

    def taken(self, requests: Sequence[RequestId]) -> None:
        """They belong to another worker from now on."""
        for request in requests:
            self.over(request, TakenOver())
            self._streams.pop(request, None)
