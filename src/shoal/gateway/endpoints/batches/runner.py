"""Runs batches, in the one process that may.

The holder of a model's lease runs its batches (of several models' lease those that need them all), through the same endpoints that clients use, in the lowest class. All its state
is on the disk: when it dies, another process, or the next one, continues from there. So the runner only checks from time to
time what there is to do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from time import time

import structlog

from shoal.config import ApiSettings
from shoal.errors import CapacityError, Conflict, ShoalError, UnknownModel, UnknownObject
from shoal.gateway.auth.caller import CALLER, Caller
from shoal.gateway.endpoints.batches.lease import Lease
from shoal.gateway.endpoints.batches.line import BatchItem
from shoal.gateway.endpoints.batches.outputs import BatchOutputs, checked
from shoal.gateway.endpoints.batches.retry_policy import RetryPolicy
from shoal.gateway.endpoints.batches.state import Batch, BatchStatus, Counts, Problem
from shoal.gateway.endpoints.batches.store import BatchStore
from shoal.gateway.endpoints.files.store import FileStore
from shoal.gateway.engines import Engines
from shoal.gateway.http.in_process import Answered, InProcessClient

log = structlog.get_logger()

_POLL = 0.5  # seconds between checks
_REST = 5.0  # seconds after a disk error
_LEFT = {
    BatchStatus.EXPIRED: ("batch_expired", "the batch's window was over before this request was answered"),
    BatchStatus.CANCELLED: ("batch_cancelled", "the batch was cancelled before this request was answered"),
}


@dataclass
class _Work:
    models: tuple[str, ...]
    """Under whose lease it is done."""
    task: asyncio.Task[None]
    over: asyncio.Event
    """Set when nothing more is to be asked."""
    papers: BatchOutputs | None = None
    counted: Counts | None = None


class Runner:
    def __init__(
        self,
        batches: BatchStore,
        files: FileStore,
        inside: InProcessClient,
        engines: Engines,
        settings: ApiSettings,
        caller: Callable[[str], Caller],
        *,
        now: Callable[[], float] = time,
        poll: float = _POLL,
    ) -> None:
        """caller: the caller that stands for a batch's owner at the endpoints."""
        self._batches, self._files, self._inside, self._engines, self._settings = batches, files, inside, engines, settings
        self._caller = caller
        self._now, self._poll, self._rng = now, poll, Random()
        self._slots = asyncio.Semaphore(settings.batch_concurrency)  # first come, first served: batches take turns
        self._leases: dict[tuple[str, ...], Lease] = {}
        self._work: dict[str, _Work] = {}

    @asynccontextmanager
    async def working(self) -> AsyncGenerator[None]:
        """Works while the context is open. Requests unfinished at its end are asked again by the next runner."""
        running = asyncio.get_running_loop().create_task(self._run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(self) -> None:
        swept = False
        try:
            while True:
                try:
                    if not swept:
                        await asyncio.to_thread(self._files.sweep)
                        swept = True
                    await self._look()
                except Exception as error:  # noqa: BLE001 - any error may be temporary, and nothing else would check again
                    log.warning("batches cannot be looked at", reason=repr(error))
                    await asyncio.sleep(_REST)
                await asyncio.sleep(self._poll)
        finally:
            tasks = [work.task for work in self._work.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for lease in self._leases.values():
                lease.release()

    # Which batches to work on

    async def _look(self) -> None:
        for id in [id for id, work in self._work.items() if work.task.done()]:
            self._work.pop(id).task.result()
        for batch in await asyncio.to_thread(self._batches.open):
            over = batch.status is BatchStatus.CANCELLING or batch.expires_at <= self._now()
            if (work := self._work.get(batch.id)) is None:
                # Other models' batches are left to the process that serves them; if none does, they are brought to their end.
                if (self._serves(batch.needed) or over) and self._leased(batch.needed):
                    self._begin(batch)
                continue
            if over:
                work.over.set()
            if work.papers is not None and (counts := work.papers.counts) != work.counted:
                await asyncio.to_thread(self._batches.count, batch.id, counts)
                work.counted = counts
        for models in set(self._leases) - {work.models for work in self._work.values()}:
            if not self._serves(models):
                self._leases.pop(models).release()

    def _serves(self, models: tuple[str, ...]) -> bool:
        return set(models) <= set(self._engines.names)

    def _leased(self, models: tuple[str, ...]) -> bool:
        if models not in self._leases:
            name = f"batches-{sha256(chr(0).join(models).encode()).hexdigest()[:16]}.lock"
            if (lease := Lease.take(self._settings.data_folder / name)) is None:
                return False
            self._leases[models] = lease
        return True

    def _begin(self, batch: Batch) -> None:
        over = asyncio.Event()
        self._work[batch.id] = _Work(batch.needed, asyncio.get_running_loop().create_task(self._see_to(batch.id, over)), over)

    # One batch

    async def _see_to(self, id: str, over: asyncio.Event) -> None:
        try:
            while await self._forward(await asyncio.to_thread(self._batches.get, id), over):
                pass
        except UnknownObject:
            return
        except FileNotFoundError as error:
            log.error("a batch failed", batch=id, reason=str(error))
            await asyncio.to_thread(self._fail, id, Problem("file_not_found", "the input is gone", param="input_file_id"))
        except (OSError, CapacityError) as error:
            log.warning("a batch cannot go on", batch=id, reason=str(error))
            await asyncio.sleep(_REST)
        except Exception as error:  # any error: it would come again
            log.error("a batch failed", batch=id, exc_info=error)
            known = str(error) if isinstance(error, ShoalError) else "an unexpected error; the server's log says more"
            await asyncio.to_thread(self._fail, id, Problem("server_error", known))

    async def _forward(self, batch: Batch, over: asyncio.Event) -> bool:
        """Moves a batch one status forward; False if it has ended. Raises OSError, ShoalError."""
        overdue = batch.expires_at <= self._now()
        try:
            match batch.status:
                case BatchStatus.VALIDATING | BatchStatus.IN_PROGRESS if overdue:
                    await asyncio.to_thread(self._finish, batch, BatchStatus.EXPIRED)
                case BatchStatus.VALIDATING:
                    return await asyncio.to_thread(self._validate, batch)
                case BatchStatus.IN_PROGRESS:
                    if await self._ask_all(batch, over):
                        await asyncio.to_thread(self._batches.move, batch.id, BatchStatus.FINALIZING)
                case BatchStatus.FINALIZING:
                    await asyncio.to_thread(self._finish, batch, BatchStatus.COMPLETED)
                case BatchStatus.CANCELLING:
                    await asyncio.to_thread(self._finish, batch, BatchStatus.CANCELLED)
                case _:
                    return False
        except Conflict:  # it was cancelled meanwhile
            pass
        return True

    def _validate(self, batch: Batch) -> bool:
        """Whether it goes on here: not if it needs others than the models under whose lease it is read."""
        read = checked(batch, self._files, self._settings.batch_requests)
        if read.problems:
            self._batches.move(batch.id, BatchStatus.FAILED, problems=tuple(read.problems))
            return True
        models = self._models(batch, read.models)
        return self._batches.move(batch.id, BatchStatus.IN_PROGRESS, counts=Counts(read.count), models=models).needed == batch.needed

    def _models(self, batch: Batch, named: Collection[str | None]) -> tuple[str, ...]:
        """The models that a batch needs. An unknown one is the result of the requests that name it."""
        needed: set[str] = set()
        for name in named:
            with suppress(UnknownModel):
                needed.add(batch.model if name is None else self._engines.resolve(name))
        return tuple(sorted(needed))

    def _finish(self, batch: Batch, end: BatchStatus) -> None:
        papers = BatchOutputs(batch, self._files)
        try:
            if end in _LEFT and BatchStatus.IN_PROGRESS in batch.reached:
                papers.give_up(*_LEFT[end])
            output, errors = papers.hand_over(self._now())
        except BaseException:
            papers.abandon()
            raise
        self._batches.move(batch.id, end, counts=papers.counts, output_file_id=output, error_file_id=errors)

    def _fail(self, id: str, why: Problem) -> None:
        """Keeps the answers so far, if they can be read."""
        with suppress(Conflict, UnknownObject):
            batch, found = self._batches.get(id), (None, None)
            with suppress(OSError, ShoalError):
                found = BatchOutputs(batch, self._files).hand_over(self._now())
            self._batches.move(id, BatchStatus.FAILED, problems=(why,), output_file_id=found[0], error_file_id=found[1])

    async def _ask_all(self, batch: Batch, over: asyncio.Event) -> bool:
        """Whether every request got its result; False if the batch is over before that."""
        papers = self._work[batch.id].papers = await asyncio.to_thread(BatchOutputs, batch, self._files)
        asking = asyncio.get_running_loop().create_task(self._requests(batch, papers))
        ending = asyncio.get_running_loop().create_task(over.wait())
        try:
            await asyncio.wait({asking, ending}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                asking.result()
            return asking.done()
        finally:
            for task in (asking, ending):
                task.cancel()
            await asyncio.gather(asking, ending, return_exceptions=True)
            await asyncio.to_thread(papers.abandon)

    async def _requests(self, batch: Batch, papers: BatchOutputs) -> None:
        left = papers.left()
        try:
            async with asyncio.TaskGroup() as group:
                while (asked := await asyncio.to_thread(next, left, None)) is not None:
                    await self._slots.acquire()
                    group.create_task(self._request(batch, papers, asked)).add_done_callback(lambda _: self._slots.release())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _request(self, batch: Batch, papers: BatchOutputs, asked: BatchItem) -> None:
        patience = RetryPolicy()
        body = asked.body if asked.model is not None else _naming(batch.model, asked.body)
        caller = self._caller(batch.owner)
        CALLER.set(caller)
        await caller.enter()  # counted once, however often it is asked; it is not limited
        while True:
            answer = await self._inside.post(asked.url, body)
            pause = patience.pause(answer.status, _code(answer), answer.headers.get("retry-after"), self._now(), self._rng)
            if pause is None:
                break
            await asyncio.sleep(pause)
        await papers.answered(asked, answer)


def _naming(model: str, body: bytes) -> bytes:
    """A body that asks for that model, unless it has one that is not a text, which the endpoint refuses."""
    given = json.loads(body)
    return body if given.get("model") is not None else json.dumps({**given, "model": model}).encode()


def _code(answer: Answered) -> str | None:
    """The error object's code."""
    try:
        return json.loads(answer.body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
