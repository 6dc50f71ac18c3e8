"""The head's side: provides the engines to the API workers, on a Unix socket, and to gateways, which are workers on other machines.

An answer belongs to the worker that began it, or that asked for it last. When a worker is gone its answers end, except those
that their clients named: these continue and belong to nobody until a worker asks for one, or a new worker joins, which takes
over all of them. A gateway takes over only what it asks for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import structlog

from shoal.config import ApiSettings
from shoal.errors import CapacityError, IdTaken, NotReady, RemoteProtocolError, ShoalError
from shoal.gateway.auth.key import KeyId
from shoal.gateway.auth.limits import LocalLimiter
from shoal.gateway.endpoints.responses.store import Responses
from shoal.gateway.engine import Engine
from shoal.gateway.engines import Engines
from shoal.gateway.operator import Operator
from shoal.gateway.upstream.hops import server_id
from shoal.gateway.workers import messages
from shoal.gateway.workers.channel import Channel
from shoal.gateway.workers.home import HeadHome
from shoal.gateway.workers.messages import Failure, FromWorker, Reply, Status
from shoal.gateway.workers.operations import INTERFACES, operated
from shoal.gateway.workers.remote_answer import RemoteAnswer
from shoal.request import RequestId
from shoal.text.tokenizer_parts import TokenizerFiles, TokenizerParts
from shoal.trace_context import TRACE

log = structlog.get_logger()

_LOOK = 0.1  # seconds between checks of the engines' states
_OBSERVED = frozenset({"first_token", "answer", "request", "reuse"})
_OBSERVED_OF_ALL = frozenset({"request", "cache", "upstream"})
"""What is counted, for a model and for all of them together."""


class _Worker:
    """One connection."""

    def __init__(self, channel: Channel[FromWorker], gateway: str = "") -> None:
        """gateway: where it is; '' for a worker on this machine."""
        self.channel, self.gateway = channel, gateway
        self.pid = 0
        """Set when it has joined."""
        self.calls: dict[int, asyncio.Task[None]] = {}
        self.inside: dict[int, KeyId] = {}
        """The unfinished requests of keys, by the calls with which they entered."""
        self.finished = asyncio.Event()


class EngineServer:
    def __init__(
        self,
        engines: Engines,
        files: Callable[[str], TokenizerFiles],
        settings: ApiSettings,
        lost: Callable[[int], None] = lambda pid: None,
        operator: Operator | None = None,
        home: HeadHome | None = None,
    ) -> None:
        """files: of a model, from which the workers open its tokenizer. lost: called with the process id of a worker whose
        connection ended. operator: of the cluster. home: for gateways; None: there are none."""
        self._engines, self._files, self._settings, self._lost, self._operator = engines, files, settings, lost, operator
        self._answers: dict[str, RemoteAnswer] = {}
        self._beginning: set[str] = set()
        self._requests: dict[RequestId, RemoteAnswer] = {}
        self._orphans: dict[str, asyncio.TimerHandle] = {}
        self._workers: dict[asyncio.Task[None], _Worker] = {}
        self._told: dict[str, tuple[Engine, Status]] = {}
        """The engines as the workers know them."""
        self._named = self._names()
        self._limiter = LocalLimiter()
        self._home = home
        self._server_id = server_id()
        self._finishing = False

    async def start(self, path: Path) -> None:
        """Takes up the answers that previous engines left, and listens; any process that may enter the folder may connect."""
        self._engines.watch(self._look)
        self._look()
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
        self._tell(messages.Finish())
        await asyncio.gather(*(worker.finished.wait() for worker in self._joined))

    @property
    def inside(self) -> int:
        """Unfinished answers."""
        return sum(not held.over for held in self._answers.values())

    # State

    def _look(self) -> None:
        """Tells the workers what has changed of the engines."""
        there = {engine.name: engine for engine in self._engines.all}
        for name, (engine, _) in [*self._told.items()]:
            if there.get(name) is not engine:
                self._gone(engine)
        for engine in there.values():
            status = _status(engine)
            if engine.name not in self._told:
                self._came(engine, status)
            elif self._told[engine.name][1] != status:
                self._told[engine.name] = engine, status
                self._tell(messages.Changed(engine.name, status))
        if (named := self._names()) != self._named:
            self._named = named
            self._tell(messages.Renamed(named))
        if self._home is not None and self._home.keys_changed:
            changed = messages.KeysChanged(self._home.keys)
            for worker in self._joined:
                if worker.gateway:
                    worker.channel.say(changed)

    def _names(self) -> messages.Names:
        engines = self._engines
        return messages.Names([*engines.names], dict(engines.aliases), dict(engines.states), engines.state)

    def _came(self, engine: Engine, status: Status) -> None:
        """Its earlier answers go to one of the workers, or wait for one."""
        self._told[engine.name] = engine, status
        resumed = [
            RemoteAnswer(engine, each.id, each.note, each.requests, each.streams, named=True, counted=each.said)
            for each in engine.resumed()
        ]
        for held in resumed:
            self._hold(held)
        first = next((worker for worker in self._joined if not worker.gateway), None)
        for worker in self._joined:
            attached = [held.attached for held in resumed] if worker is first else []
            worker.channel.say(messages.EngineAdded(self._served(worker, engine, status), attached))
        for held in resumed:
            if first is None:
                self._orphan(held)
            else:
                self._attach(held, first)

    def _gone(self, engine: Engine) -> None:
        """Its answers end here, and wait until they are forgotten."""
        del self._told[engine.name]
        for held in self._answers.values():
            if held.engine is engine:
                held.fail(NotReady(f"the model '{engine.name}' was unloaded"))
        self._tell(messages.EngineGone(engine.name))

    def _served(self, worker: _Worker, engine: Engine, status: Status) -> messages.ServedModel:
        model, template = ("", None) if worker.gateway else self._files(engine.name)
        return messages.ServedModel(
            engine.name,
            engine.created,
            engine.vocabulary,
            engine.identity,
            engine.facts,
            engine.resume,
            str(model),
            "" if template is None else str(template),
            status,
        )

    @property
    def _joined(self) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.pid]

    def _tell(self, message: messages.FromHead) -> None:
        for worker in self._joined:
            worker.channel.say(message)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            self._look()

    # Conversations

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.converse(reader, writer)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gateway: str = "") -> None:
        """Serves a worker until it is gone. gateway: where it is, if it is one."""
        worker, task = _Worker(Channel(reader, writer, FromWorker), gateway), asyncio.current_task()
        assert task is not None
        self._workers[task] = worker
        try:
            await self._converse(worker)
        except (EOFError, RemoteProtocolError) as error:
            if isinstance(error, RemoteProtocolError):
                log.error("an API worker said what cannot be", pid=worker.pid, gateway=gateway, reason=str(error))
        finally:
            del self._workers[task]
            worker.channel.abort()
            for call in worker.calls.values():
                call.cancel()
            await asyncio.gather(*worker.calls.values(), return_exceptions=True)
            self._leave(worker)
            worker.finished.set()
            if gateway:
                await self._lose(worker)
            elif worker.pid:
                self._lost(worker.pid)

    async def _converse(self, worker: _Worker) -> None:
        """Raises EOFError, RemoteProtocolError."""
        first = await worker.channel.hear()
        if not isinstance(first, messages.Join):
            raise RemoteProtocolError(f"{type(first).__name__} before Join")
        self._look()
        worker.pid = first.pid
        if worker.gateway:
            log.info("a gateway has come", gateway=worker.gateway, name=first.name)
        self._welcome(worker)
        while True:
            self._heard(worker, await worker.channel.hear())

    def _welcome(self, worker: _Worker) -> None:
        orphans = [self._answers[id] for id in self._orphans] if not worker.gateway else []
        served = [self._served(worker, *told) for told in self._told.values()]
        home = messages.AtHome(self._home.api, self._home.keys) if self._home is not None and worker.gateway else None
        # Folders, and the keys of upstreams, are on this machine.
        settings = self._settings if home is None else dataclasses.replace(self._settings, data="", upstream="", upstream_key_file="")
        resumed = [held.attached for held in orphans]
        worker.channel.say(messages.Welcome(settings, served, self._named, resumed, self._server_id, home))
        for held in orphans:
            self._attach(held, worker)
        if self._finishing:
            worker.channel.say(messages.Finish())

    def _heard(self, worker: _Worker, message: FromWorker) -> None:
        match message:
            case messages.Begin(call):
                self._call(worker, call, lambda: self._begin(worker, message))
            case messages.Find():
                self._find(worker, message)
            case messages.Want(call, model):
                self._call(worker, call, lambda: self._want(call, model))
            case messages.Unwanted(call):
                if (task := worker.calls.get(call)) is not None:
                    task.cancel()
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
                self._call(worker, call, lambda: self._operate(worker, message))
            case messages.ListParts(call, model):
                self._call(worker, call, lambda: self._list_parts(call, model))
            case messages.ReadPart(call):
                self._call(worker, call, lambda: self._read_part(message))
            case messages.Used(uses):
                self._at_home.keyring.used_elsewhere(uses)
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
            case messages.Observed(model, what, values):
                self._observed(model, what, values)
            case messages.Traced(spans):
                self._engines.traced(spans)
            case messages.UpstreamChanged(upstream):
                self._engines.upstream_changed(upstream)
            case messages.Join():
                raise RemoteProtocolError("a second Join")

    def _observed(self, model: str, what: str, values: Sequence[Any]) -> None:
        """Raises RemoteProtocolError."""
        of = _OBSERVED if model else _OBSERVED_OF_ALL
        if what not in of:
            raise RemoteProtocolError(f"it observed '{what}', which is not counted")
        where = self._engine(model) if model else self._engines
        if where is not None:
            getattr(where, f"observe_{what}")(*values)

    def _engine(self, model: str) -> Engine | None:
        """The engine of that name, or one that has gone and still has answers."""
        if model in self._told:
            return self._told[model][0]
        return next((held.engine for held in self._answers.values() if held.engine.name == model), None)

    def _leave(self, worker: _Worker) -> None:
        """Its requests have ended; its answers too, except those that were named."""
        for key in worker.inside.values():
            self._limiter.leave(key)
        for held in [*self._answers.values()]:
            if held.owner is worker.channel:
                self._let_go(held)

    def _let_go(self, held: RemoteAnswer) -> None:
        held.give(None)
        if held.named and held.engine.resume:
            self._orphan(held)
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
        if asked.model not in self._told:
            raise NotReady(f"the model '{asked.model}' was unloaded")
        engine, _ = self._told[asked.model]
        self._beginning.add(asked.answer)
        TRACE.set(asked.requests[0].trace if asked.requests else None)  # of this call's task, and of those that follow its streams
        try:
            streams = await engine.begin(asked.answer, asked.note, asked.requests, asked.named)
        finally:
            self._beginning.discard(asked.answer)
        held = RemoteAnswer(engine, asked.answer, asked.note, asked.requests, streams, asked.named)
        self._hold(held)
        held.give(worker.channel)
        if self._told.get(asked.model, (None,))[0] is not engine:
            held.fail(NotReady(f"the model '{asked.model}' was unloaded"))
        return messages.Begun(asked.call)

    async def _want(self, call: int, model: str | None) -> Reply:
        engine = await self._engines.find(model)
        self._look()
        return messages.Wanted(call, engine.name)

    async def _scrape(self, call: int) -> Reply:
        return messages.Scraped(call, await self._engines.scrape())

    async def _operate(self, worker: _Worker, asked: messages.Operate) -> Reply:
        if (interface := INTERFACES.get(asked.interface)) is None:
            raise RemoteProtocolError(f"nothing here is a '{asked.interface}'")
        target = self._target(worker, interface)
        if target is None:
            raise RemoteProtocolError(f"these engines have no {asked.interface}")
        return messages.Operated(asked.call, await operated(target, asked.name, asked.arguments, interface))

    def _target(self, worker: _Worker, interface: type[Any]) -> object:
        """What a worker's operations are done with."""
        if interface is Operator:
            return self._operator
        return self._at_home.responses_of(worker) if interface is Responses else self._at_home.keyring

    @property
    def _at_home(self) -> HeadHome:
        """Raises RemoteProtocolError."""
        if self._home is None:
            raise RemoteProtocolError("this head takes no gateways")
        return self._home

    async def _parts(self, model: str) -> TokenizerParts:
        """Raises NotReady, OSError."""
        if model not in self._told:
            raise NotReady(f"the model '{model}' was unloaded")
        return await self._at_home.parts(self._told[model][0])

    async def _list_parts(self, call: int, model: str) -> Reply:
        return messages.PartsListed(call, (await self._parts(model)).listed)

    async def _read_part(self, asked: messages.ReadPart) -> Reply:
        parts = await self._parts(asked.model)
        return messages.PartRead(asked.call, await asyncio.to_thread(parts.read, asked.part, asked.offset))

    async def _lose(self, gateway: _Worker) -> None:
        """Its responses run nowhere any more."""
        log.info("a gateway is gone", gateway=gateway.gateway)
        try:
            await asyncio.to_thread(self._at_home.responses_of(gateway).lose)
        except CapacityError as error:
            log.warning("responses of a gateway that is gone go on looking as if they ran", reason=str(error))

    async def _enter(self, worker: _Worker, asked: messages.Enter) -> Reply:
        allowance = await self._limiter.enter(asked.key, asked.limits)
        worker.inside[asked.call] = asked.key
        return messages.Entered(asked.call, allowance)

    def _find(self, worker: _Worker, asked: messages.Find) -> None:
        held = self._answers.get(asked.answer)
        if held is not None and (held.key != asked.owner or not held.movable or held.engine.name != asked.model):
            held = None
        if held is not None:
            held.give(None)
        worker.channel.say(messages.Found(asked.call, None if held is None else held.attached))
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

    def _orphan(self, held: RemoteAnswer) -> None:
        self._orphans[held.id] = asyncio.get_running_loop().call_later(held.engine.resume, self._drop, held.id)

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
        held.engine.forget(id)


def _status(engine: Engine) -> Status:
    try:
        return Status(engine.state, engine.longest(), None)
    except ShoalError as error:
        return Status(engine.state, 0, Failure.of(error))
