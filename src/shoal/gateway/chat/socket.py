"""Chat over a WebSocket at the endpoint's own path: a request is a message, and so is every chunk of its answer.

    client  {"id": "a", "messages": [{"role": "user", "content": "Hi"}]}
    server  {"id": "a", "object": "chat.completion.chunk", …} …  {"type": "done", "id": "a"}
            {"id": "a", "error": {"message": …, "type": …, "param": …, "code": …}, "status": 400}

Messages are told apart by `id`, which the client may choose for each request: then several may run at once. Whoever closes the
connection cancels them. A client that reads slowly holds back its own connection alone: sending waits for it.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, suppress
from typing import Any

from fastapi import APIRouter
from fastapi.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from shoal.errors import InvalidRequest, QueueFull, ShoalError
from shoal.gateway.answer import Answer
from shoal.gateway.caller import CALLER
from shoal.gateway.chat.job import chat_job
from shoal.gateway.chat.wire import ChatRequest
from shoal.gateway.engine import TakenOver
from shoal.gateway.events import told
from shoal.gateway.faults import Fault, fault
from shoal.gateway.service import MAX_BODY, Service, json_object
from shoal.gateway.work import LARGE, work

_AT_ONCE = 16
_MAX_ID = 128
_TOO_LARGE = 1009
"""RFC 6455, 7.4.1."""


class _Session:
    """One connection."""

    def __init__(self, service: Service, socket: WebSocket) -> None:
        self._service, self._socket = service, socket
        self._running: dict[asyncio.Task[None], str | None] = {}

    async def run(self) -> None:
        """Until the client leaves."""
        async with asyncio.TaskGroup() as group:
            try:
                while True:
                    await self._received(await self._socket.receive(), group)
            except WebSocketDisconnect:
                for task in self._running:
                    task.cancel()

    async def _received(self, message: Any, group: asyncio.TaskGroup) -> None:
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        raw: bytes = message.get("bytes") or (message.get("text") or "").encode(errors="surrogatepass")
        if len(raw) > MAX_BODY:
            await self._socket.close(_TOO_LARGE, f"more than {MAX_BODY} bytes")
            raise WebSocketDisconnect
        id = None
        try:
            body = json_object(raw) if len(raw) < LARGE else await work(len(raw), json_object, raw)
            id = self._id(body)
            if len(self._running) >= _AT_ONCE:
                raise QueueFull(len(self._running), _AT_ONCE)
        except ShoalError as error:
            await self._refuse(fault(error), id)
            return
        task = group.create_task(self._answer(body, id, len(raw)))
        self._running[task] = id
        task.add_done_callback(self._running.pop)

    def _id(self, body: dict[str, Any]) -> str | None:
        """What the client calls the request. Raises InvalidRequest."""
        id = body.pop("id", None)
        if id is None:
            return None
        if not isinstance(id, str) or not 0 < len(id) <= _MAX_ID:
            raise InvalidRequest(f"id is a text of 1 to {_MAX_ID} characters", "id")
        if id in self._running.values():
            raise InvalidRequest(f"a request '{id}' runs already on this connection; choose another id", "id")
        return id

    async def _answer(self, body: dict[str, Any], id: str | None, size: int) -> None:
        caller = CALLER.get()
        try:
            with self._service.doors.passing():
                self._service.keyring.recheck(caller.key)
                await caller.enter()
                try:
                    await self._ask(body, id, size)
                finally:
                    caller.leave()
        except ShoalError as error:
            self._service.engine.observe_request("chat", str(fault(error).status), 0)
            with suppress(WebSocketDisconnect):
                await self._refuse(fault(error), id)

    async def _ask(self, body: dict[str, Any], id: str | None, size: int) -> None:
        """Raises ShoalError where it is refused."""
        answer = await self._service.begin({"stream": True, **body}, ChatRequest, chat_job, size=size)
        self._service.engine.observe_request("chat", "accepted", answer.job.prompt_tokens)
        try:
            await (self._stream if answer.job.stream else self._whole)(answer, id)
        except WebSocketDisconnect:
            return  # whoever receives learns of it too
        finally:
            self._service.answers.leave(answer)

    async def _stream(self, answer: Answer, id: str | None) -> None:
        async with aclosing(told(answer, answer.writer())) as events:
            async for _, event in events:
                done = {"type": "done", "id": answer.job.id}
                await self._send(done if isinstance(event.data, str) else event.data, id)

    async def _whole(self, answer: Answer, id: str | None) -> None:
        try:
            pieces = [piece async for piece in answer.read()]
        except ShoalError as error:
            await self._refuse(fault(error), id)
            return
        except TakenOver:
            return
        await self._send(answer.writer().whole(pieces, answer.usage), id)
        await self._send({"type": "done", "id": answer.job.id}, id)

    async def _refuse(self, what: Fault, id: str | None) -> None:
        later = {} if what.retry_after is None else {"retry_after": what.retry_after}
        await self._send({**what.body, "status": what.status, **later}, id)

    async def _send(self, data: dict[str, Any], id: str | None) -> None:
        """id: the client's, in place of the answer's. Raises WebSocketDisconnect."""
        if self._socket.application_state is not WebSocketState.CONNECTED:
            raise WebSocketDisconnect
        named = data if id is None else {**data, "id": id}
        await self._socket.send_text(json.dumps(named, ensure_ascii=False, separators=(",", ":")))


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.websocket("/v1/chat/completions")
    async def chat(socket: WebSocket) -> None:  # pyright: ignore[reportUnusedFunction]
        await socket.accept()
        await _Session(service, socket).run()

    return router
