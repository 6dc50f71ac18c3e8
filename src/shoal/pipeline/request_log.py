"""The file in which the head keeps its requests, so that they outlive its process.

Records are handed over at once and written by a task, many at a time, in a thread: no step waits for a disk. Guarantees:

- An answer whose HTTP status was sent is in the file, and so is everything sampled up to a few hundredths of a second ago.
- If the process is killed, nothing that was written is lost. Later tokens are sampled again, and come out the same.
- If the machine goes down, whatever the system had not yet put on the disk is lost: about the last half minute of answers.
- If the disk is full or gone, this is logged once, and serving goes on without the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from shoal.errors import ConfigError
from shoal.pipeline import records
from shoal.pipeline.log_file import LogFile
from shoal.pipeline.records import Accepted, Gone, KeptAnswer, Record, SampledToken, SampledTokens
from shoal.request import Request, RequestId, TokenChunk
from shoal.sizes import human_bytes

log = structlog.get_logger()

_LINGER = 0.01  # seconds for which records are gathered; a crash costs that much sampling
_MOST_PENDING = 64 << 20  # bytes that may wait for a disk that does not respond


class RequestLog:
    def __init__(self, folder: Path, identity: str, put: Callable[[bytes], None] = lambda data: None) -> None:
        """identity: the model and how it is run; records of another one in the folder are dropped. put: is given every record, encoded, at
        once. Raises ConfigError."""
        self.kept: list[KeptAnswer] = []
        """Answers that were unfinished when the previous process ended."""
        self._identity, self._copied = identity, put
        self._numbers: dict[RequestId, int] = {}
        self._answers: dict[str, list[RequestId]] = {}
        self._examined: set[RequestId] = set()
        self._next = 0
        self._pending: list[bytes] = []
        self._size = 0
        self._wanted, self._hurry = asyncio.Event(), asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._snapshots: list[Callable[[bytes], None]] = []
        self._off = self._sealed = False
        try:
            self._file = LogFile(folder)
            self._read()
            self._file.replace(records.written(identity, self.kept))
        except OSError as error:
            raise ConfigError(f"cannot keep requests in {folder}: {error.strerror or error}; choose another --state, or none") from error
        self._path = self._file.path
        self._task = asyncio.get_running_loop().create_task(self._write())

    def _read(self) -> None:
        data, path = self._file.read(), str(self._file.path)
        ledger, end = records.read(data)
        if end < len(data):
            log.warning("the end of the kept requests was torn, and is cut off", file=path, bytes=len(data) - end)
        if ledger.identity != self._identity:
            if ledger.answers:
                log.warning("the kept requests are of another model, and are dropped", file=path, requests=len(ledger.answers))
            return
        self.kept = list(ledger.answers.values())
        for kept in self.kept:
            self._know(kept.answer, kept.first, kept.requests)

    def _know(self, answer: str, first: int, requests: Sequence[Request]) -> None:
        self._answers[answer] = [request.id for request in requests]
        self._numbers |= {request.id: first + i for i, request in enumerate(requests)}
        self._examined |= {request.id for request in requests if request.examined}
        self._next = max(self._next, first + len(requests))

    # Events

    async def accepted(self, answer: str, note: bytes, requests: Sequence[Request]) -> None:
        """Returns when it is written, or cannot be. What is sampled meanwhile is recorded after it."""
        first = self._next
        self._know(answer, first, requests)
        self._put(Accepted(answer, first, note, list(requests)))
        await self._written()

    def sampled(self, chunks: Sequence[TokenChunk]) -> None:
        """Records sampled tokens. Chunks about a prompt are too long to keep: they are recomputed, and their choice is then
        sampled anew with the same result."""
        kept = [chunk for chunk in chunks if chunk.choice or chunk.request not in self._examined]
        samples = [SampledToken.of(number, chunk) for chunk in kept if (number := self._numbers.get(chunk.request)) is not None]
        if samples:
            self._put(SampledTokens(samples))

    def gone(self, answer: str) -> None:
        """Nobody will ask for this answer any more. Unknown ones are ignored."""
        if (requests := self._answers.pop(answer, None)) is not None:
            for request in requests:
                self._numbers.pop(request, None)
                self._examined.discard(request)
            self._put(Gone(answer))

    def seal(self) -> None:
        """Records nothing more: another head goes on with what is there."""
        self._sealed = True

    def snapshot(self, take: Callable[[bytes], None]) -> None:
        """Gives `take` all that was put so far; in the same turn of the loop, so that whatever is put later comes after it. Nothing, if the file
        cannot be written."""
        if self._off:
            take(b"")
            return
        self._snapshots.append(take)
        self._wanted.set()
        self._hurry.set()

    async def close(self) -> None:
        await self._written()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._drop_snapshots()
        self._file.close()

    # Writing

    def _put(self, record: Record) -> None:
        if self._sealed:
            return
        data = records.encode(record)
        self._copied(data)
        if self._off:
            return
        self._pending.append(data)
        self._size += len(data)
        self._wanted.set()
        if self._size > _MOST_PENDING:
            self._give_up(f"the disk does not answer; {human_bytes(self._size)} wait")

    async def _written(self) -> None:
        """Returns when everything put so far is written, or cannot be."""
        if self._off:
            return
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._wanted.set()
        self._hurry.set()
        await done

    async def _write(self) -> None:
        try:
            while not self._off:
                await self._wanted.wait()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER):
                        await self._hurry.wait()
                self._wanted.clear()
                self._hurry.clear()
                data, self._pending, self._size = b"".join(self._pending), [], 0
                waiting, self._waiting = self._waiting, []
                try:
                    await asyncio.to_thread(self._file.append, data)
                finally:
                    _release(waiting)
                if self._file.grown:
                    await asyncio.to_thread(self._file.compact)
                if self._snapshots:
                    await self._take_snapshots()
        except Exception as error:  # any error: those who wait for the file must not wait for ever
            if not isinstance(error, OSError):
                log.error("writing the kept requests failed unexpectedly", exc_info=error)
            self._give_up(getattr(error, "strerror", None) or str(error) or type(error).__name__)

    async def _take_snapshots(self) -> None:
        written = await asyncio.to_thread(self._file.read)
        snapshots, self._snapshots = self._snapshots, []
        for take in snapshots:
            take(written + b"".join(self._pending))

    def _give_up(self, why: str) -> None:
        log.error("requests can no longer be kept; those under way will be lost with the head", file=str(self._path), reason=why)
        self._off = True
        self._pending, self._size = [], 0
        _release(self._waiting)
        self._drop_snapshots()

    def _drop_snapshots(self) -> None:
        snapshots, self._snapshots = self._snapshots, []
        for take in snapshots:
            take(b"")


def _release(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
