"""The head's side: provides the engine to the API workers, on a Unix socket.

An answer belongs to the worker that began it, or that asked for it last. When a worker is gone its answers end, except those
that their clients named: these continue and belong to nobody until a worker asks for one, or a new worker joins, which takes
over all of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from shoal.config import ApiSettings
from shoal.errors import IdTaken, RemoteProtocolError, ShoalError
from shoal.gateway.auth.key import KeyId
from shoal.gateway.auth.limits import LocalLimiter
from shoal.gateway.engine import Engine
from shoal.gateway.operator import Operator
from shoal.gateway.workers import messages
from shoal.gateway.workers.channel import Channel
from shoal.gateway.workers.messages import Failure, FromWorker, Reply, Status
from shoal.gateway.workers.operations import operated
from shoal.gateway.workers.remote_answer import RemoteAnswer
from shoal.request import RequestId
from shoal.trace_context import TRACE

log = structlog.get_logger()

_LOOK = 0.1  # seconds between checks of the engine's state


class _Worker:
    """One connection."""

    def __init__(self, channel: Channel[FromWorker]) -> None:
        self.channel = channel
        self.pid = 0
        """Set when it has joined."""
        self.calls: dict[int, asyncio.Task[None]] = {}
        self.inside: dict[int, KeyId] = {}
        """The unfinished requests of keys, by the calls with which they entered."""
        self.finished = asyncio.Event()


class EngineServer:
    def __init__(
        self,
        engine: Engine,
        model: Path,
        template: Path | None,
        settings: ApiSettings,
        lost: Callable[[int], None] = lambda pid: None,
        operator: Operator | None = None,
    ) -> None:
        """model, template: from which the workers open the tokenizer. lost: called with the process id of a worker whose
        connection ended. operator: of the cluster."""
        self._engine, self._settings, self._lost, self._operator = engine, settings, lost, operator
        self._model, self._template = str(model), "" if template is None else str(template)
        self._answers: dict[str, RemoteAnswer] = {}
        self._beginning: set[str] = set()
        self._requests: dict[RequestId, RemoteAnswer] = {}
        self._orphans: dict[str, asyncio.TimerHandle] = {}
        self._workers: dict[asyncio.Task[None], _Worker] = {}
        self._status = self._look()
        self._limiter = LocalLimiter()
        self._finishing = False
        self._observe: dict[str, Callable[..., None]] = {
            "first_token": engine.observe_first_token,
            "answer": engine.observe_answer,
            "request": engine.observe_request,
            "reuse": engine.observe_reuse,
            "cache": engine.observe_cache,
        }

    async def start(self, path: Path) -> None:
        """Takes up the answers that a previous engine left, and listens; any process that may enter the folder may connect."""
        for resumed in self._engine.resumed():
            self._hold(RemoteAnswer(resumed.id, resumed.note, resumed.requests, resumed.streams, named=True, counted=resumed.said))
            self._orphan(resumed.id)
        self._server = await asyncio.start_unix_server(self._accept, path)
        os.chmod(path, 0o600)
        self._looking = asyncio.get_running_loop().create_task(self._keep_looking())

    async def close(self) -> None:
        """Ends every conversation, and what was begun in it."""
        self._server.close()
        self._looking.cancel()
        for worker in self._workers.values():
            worker.channel.abort()
        await asyncio.gather(self._looking, *self._workers, return_exceptions=True)
        for timer in self._orphans.values():
            timer.cancel()
        for held in self._answers.values():
            held.close()  # but does not forget it: the next engine may take it up

    async def finish(self) -> None:
        """Tells the workers to accept no more requests, and waits until the current ones are answered."""
        self._finishing = True
        workers = [worker for worker in self._workers.values() if worker.pid]
        for worker in workers:
            worker.channel.say(messages.Finish())
        await asyncio.gather(*(worker.finished.wait() for worker in workers))

    @property
    def inside(self) -> int:
        """Unfinished answers."""
        return sum(not held.over for held in self._answers.values())

    # State

    def _look(self) -> Status:
        engine = self._engine
        try:
            return Status(engine.state, engine.longest(), None)
        except ShoalError as error:
            return Status(engine.state, 0, Failure.of(error))

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            if (status := self._look()) != self._status:
                self._status = status
                for worker in self._workers.values():
                    if worker.pid:
                        worker.channel.say(messages.Changed(status))

    # Conversations

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        worker, task = _Worker(Channel(reader, writer, FromWorker)), asyncio.current_task()
        assert task is not None
        self._workers[task] = worker
        try:
            await self._converse(worker)
        except (EOFError, RemoteProtocolError) as error:
            if isinstance(error, RemoteProtocolError):
                log.error("an API worker said what cannot be", pid=worker.pid, reason=str(error))
        finally:
            del self._workers[task]
            worker.channel.abort()
            for call in worker.calls.values():
                call.cancel()
            await asyncio.gather(*worker.calls.values(), return_exceptions=True)
            self._leave(worker)
            worker.finished.set()
            if worker.pid:
                self._lost(worker.pid)

    async def _converse(self, worker: _Worker) -> None:
        """Raises EOFError, RemoteProtocolError."""
        first = await worker.channel.hear()
        if not isinstance(first, messages.Join):
            raise RemoteProtocolError(f"{type(first).__name__} before Join")
        worker.pid = first.pid
        self._welcome(worker)
        while True:
            self._heard(worker, await worker.channel.hear())

    def _welcome(self, worker: _Worker) -> None:
        engine, orphans = self._engine, [self._answers[id] for id in self._orphans]
        attached = [held.attached for held in orphans]
        settings, status = self._settings, self._look()
        worker.channel.say(
            messages.Welcome(
                engine.name,
                engine.created,
                engine.vocabulary,
                engine.identity,
                engine.facts,
                engine.resume,
                self._model,
                self._template,
                settings,
                status,
                attached,
            )
        )
        for held in orphans:
            self._attach(held, worker)
        if self._finishing:
            worker.channel.say(messages.Finish())

    def _heard(self, worker: _Worker, message: FromWorker) -> None:
        match message:
            case messages.Begin(call):
                self._call(worker, call, lambda: self._begin(worker, message))
            case messages.Find(call, answer, owner):
                self._find(worker, call, answer, owner)
            case messages.Enter(call):
                self._call(worker, call, lambda: self._enter(worker, message))
            case messages.Leave(call):
                if (task := worker.calls.get(call)) is not None:
                    task.cancel()
                elif (key := worker.inside.pop(call, None)) is not None:
                    self._limiter.leave(key)
            case messages.Spend(key, tokens):
                self._limiter.spend(key, tokens)
            case messages.Finished():
                worker.finished.set()
            case messages.Operate(call):
                self._call(worker, call, lambda: self._operate(message))
            case messages.Scrape(call):
                self._call(worker, call, lambda: self._scrape(call))
            case messages.Cancel(call, answer):
                if (task := worker.calls.get(call)) is not None:
                    task.cancel()
                else:
                    self._forget(worker, answer)
            case messages.EndChoice(request, choice):
                if (held := self._of(worker, request)) is not None:
                    held.streams[request].end_choice(choice)
            case messages.Close(request):
                if (held := self._of(worker, request)) is not None:
                    held.streams[request].close()
            case messages.Forget(answer):
                self._forget(worker, answer)
            case messages.GiveBack(answer):
                held = self._answers.get(answer)
                if held is not None and held.owner is worker.channel:
                    self._let_go(held)
            case messages.Observed(what, values):
                if what not in self._observe:
                    raise RemoteProtocolError(f"it observed '{what}', which is not counted")
                self._observe[what](*values)
            case messages.Traced(spans):
                self._engine.traced(spans)
            case messages.Join():
                raise RemoteProtocolError("a second Join")

    def _leave(self, worker: _Worker) -> None:
        """Its requests have ended; its answers too, except those that were named."""
        for key in worker.inside.values():
            self._limiter.leave(key)
        for held in [*self._answers.values()]:
            if held.owner is worker.channel:
                self._let_go(held)

    def _let_go(self, held: RemoteAnswer) -> None:
        held.give(None)
        if held.named and self._engine.resume:
            self._orphan(held.id)
        else:
            self._drop(held.id)

    # Calls

    def _call(self, worker: _Worker, call: int, work: Callable[[], Coroutine[Any, Any, Reply]]) -> None:
        async def answer() -> None:
            try:
                reply = await work()
            except ShoalError as error:
                reply = messages.Refused(call, Failure.of(error))
            except Exception as error:
                log.error("a worker's call failed unexpectedly", exc_info=error)
                reply = messages.Refused(call, Failure("ShoalError", "an unexpected error; the server's log says more"))
            worker.channel.say(reply)

        task = worker.calls[call] = asyncio.get_running_loop().create_task(answer())
        task.add_done_callback(lambda _: worker.calls.pop(call))

    async def _begin(self, worker: _Worker, asked: messages.Begin) -> Reply:
        if asked.answer in self._answers or asked.answer in self._beginning:
            raise IdTaken(asked.answer)
        self._beginning.add(asked.answer)
        TRACE.set(asked.requests[0].trace if asked.requests else None)  # of this call's task, and of those that follow its streams
        try:
            streams = await self._engine.begin(asked.answer, asked.note, asked.requests, asked.named)
        finally:
            self._beginning.discard(asked.answer)
        held = RemoteAnswer(asked.answer, asked.note, asked.requests, streams, asked.named)
        self._hold(held)
        held.give(worker.channel)
        return messages.Begun(asked.call)

    async def _scrape(self, call: int) -> Reply:
        return messages.Scraped(call, await self._engine.scrape())

    async def _operate(self, asked: messages.Operate) -> Reply:
        if self._operator is None:
            raise RemoteProtocolError("this engine has no operator")
        return messages.Operated(asked.call, await operated(self._operator, asked.name, asked.arguments))

    async def _enter(self, worker: _Worker, asked: messages.Enter) -> Reply:
        allowance = await self._limiter.enter(asked.key, asked.limits)
        worker.inside[asked.call] = asked.key
        return messages.Entered(asked.call, allowance)

    def _find(self, worker: _Worker, call: int, answer: str, owner: KeyId) -> None:
        held = self._answers.get(answer)
        if held is not None and (held.key != owner or not held.movable):
            held = None
        if held is not None:
            held.give(None)
        worker.channel.say(messages.Found(call, None if held is None else held.attached))
        if held is not None:
            self._attach(held, worker)

    # Answers

    def _hold(self, held: RemoteAnswer) -> None:
        self._answers[held.id] = held
        for request in held.streams:
            self._requests[request] = held

    def _of(self, worker: _Worker, request: RequestId) -> RemoteAnswer | None:
        """The answer that a request belongs to, if this worker has it."""
        held = self._requests.get(request)
        return held if held is not None and held.owner is worker.channel else None

    def _attach(self, held: RemoteAnswer, worker: _Worker) -> None:
        if (timer := self._orphans.pop(held.id, None)) is not None:
            timer.cancel()
        held.give(worker.channel)
        held.say_again()

    def _orphan(self, id: str) -> None:
        self._orphans[id] = asyncio.get_running_loop().call_later(self._engine.resume, self._drop, id)

    def _forget(self, worker: _Worker, id: str) -> None:
        held = self._answers.get(id)
        if held is not None and held.owner is worker.channel:
            self._drop(id)

    def _drop(self, id: str) -> None:
        held = self._answers.pop(id)
        if (timer := self._orphans.pop(id, None)) is not None:
            timer.cancel()
        for request in held.streams:
            self._requests.pop(request, None)
        held.close()
        self._engine.forget(id)
