"""The answers under way, and those that a client may come back for."""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from shoal.errors import IdTaken, ShoalError, UnknownAnswer
from shoal.gateway.answer import Answer
from shoal.gateway.engine import Engine, Stream
from shoal.gateway.job import Job
from shoal.gateway.kinds import recalled

log = structlog.get_logger()


class Answers:
    """An answer is dropped, and what runs for it ended, when its reader leaves; where the client named it, some time after that."""

    def __init__(self, engine: Engine) -> None:
        """Takes up what an engine before this one was about; where there is such a thing an event loop has to run."""
        self._engine = engine
        self._answers: dict[str, Answer] = {}
        self._readers: dict[str, int] = {}
        self._resumable: set[str] = set()
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        for resumed in engine.resumed():
            try:
                job = recalled(resumed.note, resumed.requests)
            except msgspec.MsgspecError as error:
                log.warning("a request of an earlier version cannot be taken up", id=resumed.id, reason=str(error))
                engine.forget(resumed.id)
                continue
            self._answers[job.id] = Answer(job, engine, resumed.streams, resumed=True)
            self._resumable.add(job.id)
            self._expire(job.id)

    async def begin(self, job: Job) -> Answer:
        """Submits before anything is answered, so that a refusal is known. Its reader is expected.

        Raises IdTaken and what the engine raises.
        """
        if job.id in self._answers:
            raise IdTaken(job.id)
        streams: list[Stream] = []
        try:
            for request in job.requests:
                streams.append(self._engine.submit(request))
        except ShoalError:
            for stream in streams:
                stream.close()
            raise
        answer = self._answers[job.id] = Answer(job, self._engine, streams)
        if job.named:
            self._resumable.add(job.id)
        self.enter(answer)
        try:
            if job.kept:
                await self._engine.keep(job.id, job.note, job.requests)
        except BaseException:
            self.leave(answer)
            raise
        return answer

    def find(self, id: str) -> Answer:
        """Raises UnknownAnswer."""
        if id not in self._answers:
            raise UnknownAnswer(id)
        return self._answers[id]

    def enter(self, answer: Answer) -> None:
        """A reader has come."""
        id = answer.job.id
        self._readers[id] = self._readers.get(id, 0) + 1
        if (expiry := self._expiries.pop(id, None)) is not None:
            expiry.cancel()

    def leave(self, answer: Answer) -> None:
        """A reader has gone."""
        id = answer.job.id
        self._readers[id] -= 1
        if self._readers[id]:
            return
        if id in self._resumable and self._engine.resume:
            self._expire(id)
        else:
            self._drop(id)

    def _expire(self, id: str) -> None:
        self._expiries[id] = asyncio.get_running_loop().call_later(self._engine.resume, self._drop, id)

    def _drop(self, id: str) -> None:
        self._expiries.pop(id, None)
        self._readers.pop(id, None)
        self._resumable.discard(id)
        self._answers.pop(id).close()
        self._engine.forget(id)
