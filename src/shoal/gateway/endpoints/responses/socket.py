"""Responses over a WebSocket at the endpoint's own path, as OpenAI's API has it: one connection for the many turns of an agent.

    client  {"type": "response.create", "input": "Hi", "stream_id": "a"}
    server  {"type": "response.created", "stream_id": "a", …} … {"type": "response.completed", "stream_id": "a", …}
            {"type": "error", "stream_id": "a", "status": 400, "error": {"message": …, "type": …, "param": …, "code": …}}

Turns of the same stream, or without one, run one after another; those of different streams run at the same time. The connection
remembers turns that are not stored, so that its next turn can continue from them.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from functools import partial
from itertools import takewhile
from time import time
from typing import Any, cast

from fastapi import APIRouter
from fastapi.websockets import WebSocket, WebSocketDisconnect

from shoal.errors import InvalidRequest
from shoal.gateway.answers.events import told
from shoal.gateway.answers.writer import Usage
from shoal.gateway.auth.caller import CALLER
from shoal.gateway.endpoints.responses.job import ResponseJob, response_job
from shoal.gateway.endpoints.responses.store import MAX_CONVERSATION, KeptResponse, Responses
from shoal.gateway.endpoints.responses.wire import ResponseRequest
from shoal.gateway.endpoints.responses.writer import usage_of
from shoal.gateway.endpoints.socket import Session
from shoal.gateway.http.faults import Fault
from shoal.gateway.http.work import work
from shoal.gateway.schema.wire import parse
from shoal.gateway.service import Seen, Service

_MAX_NAME = 128
_ENDS = ("response.completed", "response.incomplete")


class ConnectionTurns:
    """A responses.store.Turns: first the turns of this connection that are not stored, then the stored ones. The oldest are
    forgotten first."""

    def __init__(self, store: Responses) -> None:
        self._store = store
        self._kept: dict[str, KeptResponse] = {}

    @property
    def keeps(self) -> bool:
        return self._store.keeps

    def remember(self, response: dict[str, Any], input: list[dict[str, Any]]) -> None:
        size = len(json.dumps([response, input]))
        self._kept[response["id"]] = KeptResponse(response, input, response["previous_response_id"], size)
        while sum(kept.bytes for kept in self._kept.values()) > MAX_CONVERSATION:
            del self._kept[next(iter(self._kept))]

    def get(self, id: str, owner: str = "") -> KeptResponse:
        return self._kept.get(id) or self._store.get(id, owner)

    def chain(self, id: str, owner: str = "") -> list[KeptResponse]:
        found: list[KeptResponse] = []
        at: str | None = id
        while at is not None and (kept := self._kept.get(at)) is not None:
            found.append(kept)
            at = kept.previous
        return [*(self._store.chain(at, owner) if at is not None else []), *found[::-1]]


class _Responses(Session):
    endpoint = "responses"

    def __init__(self, service: Service, store: Responses, socket: WebSocket) -> None:
        super().__init__(service, socket)
        self._kept = store
        self._turns = ConnectionTurns(store)

    def name(self, body: dict[str, Any]) -> str | None:
        name = body.pop("stream_id", None)
        if name is not None and not (isinstance(name, str) and 0 < len(name) <= _MAX_NAME):
            raise InvalidRequest(f"stream_id must be a string of 1 to {_MAX_NAME} characters", "stream_id")
        if (kind := body.pop("type", None)) != "response.create":
            raise InvalidRequest(f"a message must have the type 'response.create', not '{str(kind)[:64]}'", "type")
        return name

    def named(self, data: dict[str, Any], name: str | None) -> dict[str, Any]:
        return data if name is None else {**data, "stream_id": name}

    def refusal(self, what: Fault) -> dict[str, Any]:
        later = {} if what.retry_after is None else {"headers": {"Retry-After": str(what.retry_after)}}
        return {"type": "error", "status": what.status, "error": {**what.body["error"], **later}}

    async def ask(self, body: dict[str, Any], name: str | None, size: int, seen: Seen) -> None:
        generate = body.pop("generate", True)
        if not isinstance(generate, bool | None):
            raise InvalidRequest("generate must be true or false", "generate")
        body.pop("stream", None)  # it always streams
        if before := self._before(name):
            await asyncio.wait(before)
        try:
            await (self._prepare if generate is False else self._respond)(body, name, size, seen)
        except WebSocketDisconnect:
            return  # the receiving side learns of it too

    def _before(self, name: str | None) -> list[asyncio.Task[None]]:
        """Earlier turns of a stream that have not ended."""
        me = asyncio.current_task()
        earlier = takewhile(lambda turn: turn[0] is not me, self._running.items())
        return [task for task, other in earlier if other == name]

    async def _respond(self, body: dict[str, Any], name: str | None, size: int, seen: Seen) -> None:
        prepare = partial(response_job, store=self._turns)
        answer = await self._service.begin({**body, "stream": True}, ResponseRequest, prepare, seen, size=size)
        self._service.accepted("responses", seen)
        try:
            async with aclosing(told(answer, answer.writer())) as events:
                async for _, event in events:
                    await self._tell(cast("dict[str, Any]", event.data), cast("ResponseJob", answer.job), name)
        finally:
            self._service.answers.leave(answer)

    async def _tell(self, data: dict[str, Any], job: ResponseJob, name: str | None) -> None:
        if data["type"] == "error":  # the error is nested in the message, as in a refusal
            about = {key: data[key] for key in ("message", "param", "code")}
            data = {"type": "error", "sequence_number": data["sequence_number"], "error": {"type": "server_error", **about}}
        if data["type"] in _ENDS and not job.store:
            self._turns.remember(data["response"], list(job.input))
        await self.send(data, name)

    async def _prepare(self, body: dict[str, Any], name: str | None, size: int, seen: Seen) -> None:
        """A turn without an answer, from which others continue."""
        engine = await self._service.engine(body, seen)
        job = await work(size, lambda: response_job(parse(ResponseRequest, body), engine, None, self._turns))
        begun = job.writer(engine).response("in_progress")
        ended = {**begun, "status": "completed", "completed_at": int(time()), "usage": usage_of(Usage(0))}
        if job.store:
            await asyncio.to_thread(self._store, begun, ended, job)
        for number, (kind, response) in enumerate((("created", begun), ("in_progress", begun), ("completed", ended))):
            await self._tell({"type": f"response.{kind}", "sequence_number": number, "response": response}, job, name)

    def _store(self, begun: dict[str, Any], ended: dict[str, Any], job: ResponseJob) -> None:
        self._kept.begin(begun, job.input, CALLER.get().id)
        self._kept.end(ended)


def routes(service: Service, store: Responses) -> APIRouter:
    router = APIRouter()

    @router.websocket("/v1/responses")
    async def responses(socket: WebSocket) -> None:
        await socket.accept()
        await _Responses(service, store, socket).run()

    return router
