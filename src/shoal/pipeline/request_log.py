"""The file in which the head keeps its requests, so that they outlive its process.

Records are handed over at once and written by a task, many at a time, in a thread: no step waits for a disk. Guarantees:

- An answer whose HTTP status was sent is in the file, and so is everything sampled up to a few hundredths of a second ago.
- If the process is killed, nothing that was written is lost. Later tokens are sampled again, and come out the same.
- If the machine goes down, whatever the system had not yet put on the disk is lost: about the last half minute of answers.
- If the disk is full or gone, this is logged once, and serving goes on without the file.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from shoal.errors import ConfigError
from shoal.file_lock import locked
from shoal.pipeline import records
from shoal.pipeline.records import Accepted, Gone, KeptAnswer, Record, SampledToken, SampledTokens
from shoal.request import Request, RequestId, TokenChunk
from shoal.sizes import human_bytes

log = structlog.get_logger()

_LINGER = 0.01  # seconds for which records are gathered; a crash costs that much sampling
_BOUND = 8 << 20  # bytes of the file above which it is rewritten with only the live answers
_MOST_PENDING = 64 << 20  # bytes that may wait for a disk that does not respond


class RequestLog:
    def __init__(self, folder: Path, identity: str) -> None:
        """identity: the model and how it is run; records of another one in the folder are dropped. Raises ConfigError."""
        self.kept: list[KeptAnswer] = []
        """Answers that were unfinished when the previous process ended."""
        self._identity, self._path = identity, folder / "requests"
        self._numbers: dict[RequestId, int] = {}
        self._answers: dict[str, list[RequestId]] = {}
        self._examined: set[RequestId] = set()
        self._next = 0
        self._pending: list[bytes] = []
        self._size = 0
        self._wanted, self._hurry = asyncio.Event(), asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._off = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(folder / "lock")
            self._read()
            self._file, self._bytes = _replaced(self._path, records.written(identity, self.kept))
        except OSError as error:
            raise ConfigError(f"cannot keep requests in {folder}: {error.strerror or error}; choose another --state, or none") from error
        self._bound = max(_BOUND, 2 * self._bytes)
        self._task = asyncio.get_running_loop().create_task(self._write())

    def _read(self) -> None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        ledger, end = records.read(data)
        if end < len(data):
            log.warning("the end of the kept requests was torn, and is cut off", file=str(self._path), bytes=len(data) - end)
        if ledger.identity != self._identity:
            if ledger.answers:
                log.warning("the kept requests are of another model, and are dropped", file=str(self._path), requests=len(ledger.answers))
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

    async def close(self) -> None:
        await self._written()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        os.close(self._file)
        os.close(self._lock)

    # Writing

    def _put(self, record: Record) -> None:
        if self._off:
            return
        data = records.encode(record)
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
                    await asyncio.to_thread(self._append, data)
                finally:
                    _release(waiting)
                if self._bytes > self._bound:
                    await asyncio.to_thread(self._compact)
        except Exception as error:  # any error: those who wait for the file must not wait for ever
            if not isinstance(error, OSError):
                log.error("writing the kept requests failed unexpectedly", exc_info=error)
            self._give_up(getattr(error, "strerror", None) or str(error) or type(error).__name__)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = os.write(self._file, view)
            self._bytes += count
            view = view[count:]

    def _compact(self) -> None:
        """Rewrites the file without the answers that are gone."""
        ledger, _ = records.read(self._path.read_bytes())
        old = self._file
        self._file, self._bytes = _replaced(self._path, records.written(self._identity, ledger.answers.values()))
        os.close(old)
        self._bound = max(_BOUND, 2 * self._bytes)

    def _give_up(self, why: str) -> None:
        log.error("requests can no longer be kept; those under way will be lost with the head", file=str(self._path), reason=why)
        self._off = True
        self._pending, self._size = [], 0
        _release(self._waiting)


def _release(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)


def _locked(path: Path) -> int:
    """Locks the folder for as long as the process lives. Raises ConfigError if another process holds the lock."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if not locked(lock):
        os.close(lock)
        raise ConfigError(f"another head keeps its requests in {path.parent}; choose another --state")
    return lock


def _replaced(path: Path, data: bytes) -> tuple[int, int]:
    """Replaces a file, whole or not at all. Returns a descriptor for appending, and the size."""
    fresh = path.with_suffix(".new")
    file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    try:
        if hasattr(os, "fchmod"):  # prompts are private, whoever created the file
            os.fchmod(file, 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        os.fsync(file)
        os.replace(fresh, path)
    except OSError:
        os.close(file)
        with suppress(OSError):
            os.unlink(fresh)
        raise
    return file, len(data)
