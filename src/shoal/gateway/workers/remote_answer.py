"""An unfinished answer at the head: which worker has it, and all its chunks so far, so that any worker can take it over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from shoal.errors import ShoalError
from shoal.gateway.answers.job import owner_of
from shoal.gateway.engine import Engine, Stream
from shoal.gateway.workers.channel import Channel
from shoal.gateway.workers.messages import Attached, Broke, Failure, FromWorker, Over, Taken
from shoal.request import Request, TokenChunk

log = structlog.get_logger()


class RemoteAnswer:
    def __init__(
        self, engine: Engine, id: str, note: bytes, requests: Sequence[Request], streams: Sequence[Stream], named: bool, counted: int = 0
    ) -> None:
        """counted: tokens at the beginning of the streams that were already counted for its key"""
        self.engine, self.id = engine, id
        self._note, self._requests = note, list(requests)
        self.key = owner_of(note)
        """The key whose client may take it over."""
        self.named = named
        """Whether it outlives the worker that has it."""
        self.streams = {request.id: stream for request, stream in zip(requests, streams, strict=True)}
        self._owner: Channel[FromWorker] | None = None
        self._said: list[TokenChunk | Over | Broke] = []
        self._counted, self._told = counted, 0
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follow(request, stream)) for request, stream in zip(requests, streams, strict=True)]

    @property
    def owner(self) -> Channel[FromWorker] | None:
        return self._owner

    @property
    def movable(self) -> bool:
        """Whether another worker could continue it: an answer without a note ends with the worker that began it."""
        return bool(self._note)

    @property
    def attached(self) -> Attached:
        told = sum(isinstance(item, TokenChunk) and item.counts for item in self._said[: self._told])
        return Attached(self.engine.name, self.id, self._note, self._requests, max(told, self._counted))

    @property
    def over(self) -> bool:
        """Whether everything is sampled."""
        return all(task.done() for task in self._tasks)

    def give(self, owner: Channel[FromWorker] | None) -> None:
        """Gives the answer to a worker, which gets its chunks from now on; the previous one is told."""
        if self._owner is not None:
            self._owner.say(Taken([*self.streams]))
        self._owner = owner

    def say_again(self) -> None:
        """Sends its owner all chunks so far."""
        for item in self._said:
            self._tell(item)
        self._told = len(self._said)

    def fail(self, error: ShoalError) -> None:
        """Ends what is still running with that error."""
        for task, request in zip(self._tasks, self.streams, strict=True):
            if not task.done():
                task.cancel()
                self._came(Broke(request, Failure.of(error)))
        for stream in self.streams.values():
            stream.close()

    def close(self) -> None:
        """Cancels what is still running."""
        for task in self._tasks:
            task.cancel()
        for stream in self.streams.values():
            stream.close()

    def _tell(self, item: TokenChunk | Over | Broke) -> None:
        if self._owner is None:
            return
        if isinstance(item, TokenChunk):
            self._owner.say_token(item)
        else:
            self._owner.say(item)

    def _came(self, item: TokenChunk | Over | Broke) -> None:
        self._said.append(item)
        self._tell(item)
        if self._owner is not None:
            self._told = len(self._said)

    async def _follow(self, request: Request, stream: Stream) -> None:
        try:
            async for chunk in stream:
                self._came(chunk)
            self._came(Over(request.id))
        except ShoalError as error:
            self._came(Broke(request.id, Failure.of(error)))
        except Exception as error:
            log.error("a stream ended with an unexpected error", request=request.id, exc_info=error)
            self._came(Broke(request.id, Failure("ShoalError", "an unexpected error; the server's log says more")))
