"""The unfinished answers, and those that a client may come back for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import msgspec
import structlog

from shoal.errors import IdTaken, NotReady, UnknownAnswer
from shoal.gateway.answers.answer import Answer
from shoal.gateway.answers.job import Job
from shoal.gateway.answers.traced import describe
from shoal.gateway.auth.caller import CALLER, Caller
from shoal.gateway.auth.key import KeyId
from shoal.gateway.engine import Engine, Resumed, Stream
from shoal.gateway.engines import Engines
from shoal.gateway.http.request_span import SPAN
from shoal.gateway.http.reuse import REUSE
from shoal.request import Request
from shoal.trace_context import TRACE

log = structlog.get_logger()


class Watcher(Protocol):
    """Is told how answers begin and end."""

    async def begun(self, job: Job, engine: Engine) -> None:
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
        engines: Engines,
        recalled: Callable[[bytes, Sequence[Request]], Job],
        watcher: Watcher | None = None,
        caller_of: Callable[[KeyId], Caller] = lambda owner: Caller(),
        patience: float = 0,
    ) -> None:
        """Takes up the answers that previous engines left; if there are any, an event loop must be running.

        recalled: the job of an answer that began elsewhere, from its note and its requests; raises msgspec.MsgspecError
        caller_of: the caller to charge for the tokens of an answer that is taken up
        patience: seconds of silence after which an event stream shows that it is alive; 0: never
        """
        self.patience = patience
        self._engines, self._recalled, self._watcher, self._caller_of = engines, recalled, watcher, caller_of
        self._ended = None if watcher is None else watcher.ended
        self._telling: set[asyncio.Task[None]] = set()
        self._answers: dict[str, Answer] = {}
        self._beginning: set[str] = set()
        self._readers: dict[str, int] = {}
        self._resumable: set[str] = set()
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        self._known: set[Engine] = set()
        """Engines that are there; their earlier answers were taken up."""
        engines.watch(self._look)
        self._look()

    def _look(self) -> None:
        """Takes up the answers of engines that have come, and ends those of engines that have gone."""
        came = [engine for engine in self._engines.all if engine not in self._known]
        self._known = set(self._engines.all)
        for engine in came:
            for resumed in engine.resumed():
                self._take_up(resumed, engine)
        for answer in [*self._answers.values()]:
            self._check(answer)

    def _check(self, answer: Answer) -> None:
        """Ends an answer whose engine has gone."""
        if answer.engine not in self._known and not answer.over:
            answer.fail(NotReady(f"the model '{answer.engine.name}' was unloaded"))

    async def begin(self, job: Job, engine: Engine) -> Answer:
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
            streams = await self._submit(job, engine)
        finally:
            self._beginning.discard(job.id)
        answer = self._answers[job.id] = Answer(job, engine, streams, caller, ended=self._ended)
        caller.spend(prompt=job.prompt_tokens)
        if (span := SPAN.get()) is not None:
            describe(span, answer)
        if job.named:
            self._resumable.add(job.id)
        self.enter(answer)
        self._check(answer)
        return answer

    async def _submit(self, job: Job, engine: Engine) -> Sequence[Stream]:
        note = job.note if job.outlives else b""
        if self._watcher is None:
            return await engine.begin(job.id, note, job.requests, job.named)
        await self._watcher.begun(job, engine)
        try:
            return await engine.begin(job.id, note, job.requests, job.named)
        except BaseException:
            await self._watcher.dropped(job)
            raise

    async def find(self, id: str) -> Answer:
        """An unfinished answer of the caller, here or at another gateway of these engines. Raises UnknownAnswer."""
        caller = CALLER.get()
        answer = self._here(id) or await self._elsewhere(id, caller.id)
        if answer is None or answer.job.owner != caller.id:
            raise UnknownAnswer(id)
        return answer

    async def _elsewhere(self, id: str, owner: KeyId) -> Answer | None:
        for engine in self._engines.all:
            if (resumed := await engine.find(id, owner)) is not None:
                return self._take_up(resumed, engine)
        return None

    def _here(self, id: str) -> Answer | None:
        answer = self._answers.get(id)
        if answer is not None and answer.moved:
            self._let_go(id)
            return None
        return answer

    def _take_up(self, resumed: Resumed, engine: Engine) -> Answer | None:
        """Takes up an answer, which then waits for a reader. None if its note cannot be understood."""
        try:
            job = self._recalled(resumed.note, resumed.requests)
        except msgspec.MsgspecError as error:
            log.warning("a request of an earlier version cannot be taken up", id=resumed.id, reason=str(error))
            engine.forget(resumed.id)
            return None
        self._let_go(job.id)
        caller, streams, said = self._caller_of(job.owner), resumed.streams, resumed.said
        answer = self._answers[job.id] = Answer(job, engine, streams, caller, resumed=True, said=said, ended=self._ended)
        self._resumable.add(job.id)
        self._expire(answer)
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
        if id in self._resumable and answer.engine.resume:
            self._expire(answer)
        else:
            self._drop(answer)

    def _expire(self, answer: Answer) -> None:
        self._expiries[answer.job.id] = asyncio.get_running_loop().call_later(answer.engine.resume, self._drop, answer)

    def _drop(self, answer: Answer) -> None:
        self._let_go(answer.job.id)
        if self._watcher is not None and not answer.over:
            self._tell(self._watcher.dropped(answer.job))
        answer.engine.forget(answer.job.id)

    def _tell(self, telling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(telling)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def _let_go(self, id: str) -> None:
        if (expiry := self._expiries.pop(id, None)) is not None:
            expiry.cancel()
        self._readers.pop(id, None)
        self._resumable.discard(id)
        if (answer := self._answers.pop(id, None)) is not None:
            answer.close()
