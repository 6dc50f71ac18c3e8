"""The unfinished answers, and those that a client may come back for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import msgspec
import structlog

from shoal.errors import IdTaken, UnknownAnswer
from shoal.gateway.answers.answer import Answer
from shoal.gateway.answers.job import Job
from shoal.gateway.answers.traced import describe
from shoal.gateway.auth.caller import CALLER, Caller
from shoal.gateway.auth.key import KeyId
from shoal.gateway.engine import Engine, Resumed, Stream
from shoal.gateway.http.request_span import SPAN
from shoal.gateway.http.reuse import REUSE
from shoal.request import Request
from shoal.trace_context import TRACE

log = structlog.get_logger()


class Watcher(Protocol):
    """Is told how answers begin and end."""

    async def begun(self, job: Job) -> None:
        """Called before it is submitted. Raises ShoalError if it must not begin."""
        ...

    async def moved(self, job: Job) -> None:
        """It was begun elsewhere, or before the engine restarted, and now runs here."""
        ...

    async def ended(self, answer: Answer) -> None:
        """Everything is sampled, or the engine failed; readers are told when this returns."""
        ...

    async def dropped(self, job: Job) -> None:
        """It was refused after it had begun, or its reader left before it ended."""
        ...


class Answers:
    """When its reader leaves, an answer is dropped and what runs for it is ended; if the client named it, some time later."""

    def __init__(
        self,
        engine: Engine,
        recalled: Callable[[bytes, Sequence[Request]], Job],
        watcher: Watcher | None = None,
        caller_of: Callable[[KeyId], Caller] = lambda owner: Caller(),
        patience: float = 0,
    ) -> None:
        """Takes up the answers that a previous engine left; if there are any, an event loop must be running.

        recalled: the job of an answer that began elsewhere, from its note and its requests; raises msgspec.MsgspecError
        caller_of: the caller to charge for the tokens of an answer that is taken up
        patience: seconds of silence after which an event stream shows that it is alive; 0: never
        """
        self.patience = patience
        self._engine, self._recalled, self._watcher, self._caller_of = engine, recalled, watcher, caller_of
        self._ended = None if watcher is None else watcher.ended
        self._telling: set[asyncio.Task[None]] = set()
        self._answers: dict[str, Answer] = {}
        self._beginning: set[str] = set()
        self._readers: dict[str, int] = {}
        self._resumable: set[str] = set()
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        for resumed in engine.resumed():
            self._take_up(resumed)

    async def begin(self, job: Job) -> Answer:
        """Submits the job before anything is answered, so that a refusal is known. Counts its reader as present.

        Raises IdTaken and what the engine raises.
        """
        if job.id in self._beginning or self._here(job.id) is not None:
            raise IdTaken(job.id)
        caller = CALLER.get()
        job = job.of(caller.id, caller.priority, TRACE.get())
        self._beginning.add(job.id)
        if (reuse := REUSE.get()) is not None:
            reuse.question = job.question
        try:
            streams = await self._submit(job)
        finally:
            self._beginning.discard(job.id)
        answer = self._answers[job.id] = Answer(job, self._engine, streams, caller, ended=self._ended)
        caller.spend(prompt=job.prompt_tokens)
        if (span := SPAN.get()) is not None:
            describe(span, answer, self._engine.name)
        if job.named:
            self._resumable.add(job.id)
        self.enter(answer)
        return answer

    async def _submit(self, job: Job) -> Sequence[Stream]:
        note = job.note if job.outlives else b""
        if self._watcher is None:
            return await self._engine.begin(job.id, note, job.requests, job.named)
        await self._watcher.begun(job)
        try:
            return await self._engine.begin(job.id, note, job.requests, job.named)
        except BaseException:
            await self._watcher.dropped(job)
            raise

    async def find(self, id: str) -> Answer:
        """An unfinished answer of the caller, here or at another gateway of this engine. Raises UnknownAnswer."""
        caller = CALLER.get()
        answer = self._here(id)
        if answer is None and (resumed := await self._engine.find(id, caller.id)) is not None:
            answer = self._take_up(resumed)
        if answer is None or answer.job.owner != caller.id:
            raise UnknownAnswer(id)
        return answer

    def _here(self, id: str) -> Answer | None:
        answer = self._answers.get(id)
        if answer is not None and answer.moved:
            self._let_go(id)
            return None
        return answer

    def _take_up(self, resumed: Resumed) -> Answer | None:
        """Takes up an answer, which then waits for a reader. None if its note cannot be understood."""
        try:
            job = self._recalled(resumed.note, resumed.requests)
        except msgspec.MsgspecError as error:
            log.warning("a request of an earlier version cannot be taken up", id=resumed.id, reason=str(error))
            self._engine.forget(resumed.id)
            return None
        self._let_go(job.id)
        caller, streams, said = self._caller_of(job.owner), resumed.streams, resumed.said
        answer = self._answers[job.id] = Answer(job, self._engine, streams, caller, resumed=True, said=said, ended=self._ended)
        self._resumable.add(job.id)
        self._expire(job.id)
        if self._watcher is not None:
            self._tell(self._watcher.moved(job))
        return answer

    def __contains__(self, id: object) -> bool:
        """Whether there is an answer with that id."""
        return id in self._answers

    def enter(self, answer: Answer) -> None:
        """A reader has come."""
        id = answer.job.id
        self._readers[id] = self._readers.get(id, 0) + 1
        if (expiry := self._expiries.pop(id, None)) is not None:
            expiry.cancel()

    def leave(self, answer: Answer) -> None:
        """A reader has gone."""
        id = answer.job.id
        if self._answers.get(id) is not answer:
            return  # another gateway has it
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
        answer = self._let_go(id)
        if self._watcher is not None and answer is not None and not answer.over:
            self._tell(self._watcher.dropped(answer.job))
        self._engine.forget(id)

    def _tell(self, telling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(telling)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def _let_go(self, id: str) -> Answer | None:
        if (expiry := self._expiries.pop(id, None)) is not None:
            expiry.cancel()
        self._readers.pop(id, None)
        self._resumable.discard(id)
        if (answer := self._answers.pop(id, None)) is not None:
            answer.close()
        return answer
