"""Stores responses as they begin and end."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from shoal.errors import CapacityError, ShoalError, UnknownAnswer
from shoal.gateway.answers.answer import Answer, TakenOver
from shoal.gateway.answers.job import Job
from shoal.gateway.endpoints.responses.job import ResponseJob
from shoal.gateway.endpoints.responses.store import Responses
from shoal.gateway.endpoints.responses.writer import ResponseWriter
from shoal.gateway.engine import Engine
from shoal.gateway.http.faults import fault

log = structlog.get_logger()


class ResponseKeeper:
    """A gateway.answers.under_way.Watcher for responses that are to be stored; it ignores other answers."""

    def __init__(self, store: Responses) -> None:
        self._store = store

    async def begun(self, job: Job, engine: Engine) -> None:
        if isinstance(job, ResponseJob) and job.store:
            response = job.writer(engine).response("in_progress")
            beginning = asyncio.ensure_future(asyncio.to_thread(self._store.begin, response, job.input, job.owner))
            try:
                await asyncio.shield(beginning)
            except asyncio.CancelledError:
                with suppress(ShoalError):  # then there is nothing to undo
                    await beginning
                    await self.dropped(job)
                raise

    async def ended(self, answer: Answer) -> None:
        """A response that cannot be stored is still sent to its reader: the log says that it was lost."""
        if not (isinstance(answer.job, ResponseJob) and answer.job.store) or isinstance(answer.error, TakenOver):
            return
        try:
            await asyncio.to_thread(self._end, answer, answer.job.writer(answer.engine))
        except CapacityError as lost:
            log.warning("a response was not kept", id=answer.job.id, reason=str(lost))

    def _end(self, answer: Answer, writer: ResponseWriter) -> None:
        if answer.error is None:
            self._store.end(writer.whole(answer.pieces, answer.usage))
        else:
            error = answer.error if isinstance(answer.error, ShoalError) else ShoalError("an unexpected error; the server's log says more")
            self._store.end(writer.failure(fault(error)))

    async def moved(self, job: Job) -> None:
        if not (isinstance(job, ResponseJob) and job.store):
            return
        try:
            await asyncio.to_thread(self._store.adopt, job.id)
        except CapacityError as error:
            log.warning("nobody is told where a response runs", id=job.id, reason=str(error))

    async def dropped(self, job: Job) -> None:
        """Its client left, or it was refused: removes it as if it had never existed."""
        if not (isinstance(job, ResponseJob) and job.store):
            return
        try:
            await asyncio.to_thread(self._store.delete, job.id, job.owner)
        except UnknownAnswer:
            pass  # deleted meanwhile
        except CapacityError as error:
            log.warning("a response was not deleted", id=job.id, reason=str(error))
