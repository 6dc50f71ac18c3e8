"""Chat over a WebSocket at the endpoint's own path: each request is a message, and so is each chunk of its answer.

client  {"id": "a", "messages": [{"role": "user", "content": "Hi"}]}
server  {"id": "a", "object": "chat.completion.chunk", …} …  {"type": "done", "id": "a"}
        {"id": "a", "error": {"message": …, "type": …, "param": …, "code": …}, "status": 400}
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi.websockets import WebSocket, WebSocketDisconnect

from shoal.errors import InvalidRequest, ShoalError
from shoal.gateway.answers.answer import Answer
from shoal.gateway.answers.events import told
from shoal.gateway.endpoints.chat.job import chat_job
from shoal.gateway.endpoints.chat.wire import ChatRequest
from shoal.gateway.endpoints.socket import Session
from shoal.gateway.engine import TakenOver
from shoal.gateway.http.faults import fault
from shoal.gateway.service import Seen, Service

_MAX_ID = 128


class _Chat(Session):
    endpoint = "chat"

    def name(self, body: dict[str, Any]) -> str | None:
        id = body.pop("id", None)
        if id is None:
            return None
        if not isinstance(id, str) or not 0 < len(id) <= _MAX_ID:
            raise InvalidRequest(f"id must be a string of 1 to {_MAX_ID} characters", "id")
        if id in self._running.values():
            raise InvalidRequest(f"a request '{id}' is already running on this connection; choose another id", "id")
        return id

    def named(self, data: dict[str, Any], name: str | None) -> dict[str, Any]:
        """Replaces the answer's id by the client's."""
        return data if name is None else {**data, "id": name}

    async def ask(self, body: dict[str, Any], name: str | None, size: int, seen: Seen) -> None:
        answer = await self._service.begin({"stream": True, **body}, ChatRequest, chat_job, seen, size=size)
        self._service.accepted("chat", seen)
        try:
            await (self._stream if answer.job.stream else self._whole)(answer, name)
        except WebSocketDisconnect:
            return  # the receiving side learns of it too
        finally:
            self._service.answers.leave(answer)

    async def _stream(self, answer: Answer, name: str | None) -> None:
        async with aclosing(told(answer, answer.writer())) as events:
            async for _, event in events:
                done = {"type": "done", "id": answer.job.id}
                await self.send(done if isinstance(event.data, str) else event.data, name)

    async def _whole(self, answer: Answer, name: str | None) -> None:
        try:
            pieces = [piece async for piece in answer.read()]
        except ShoalError as error:
            await self.send(self.refusal(fault(error)), name)
            return
        except TakenOver:
            return
        await self.send(answer.writer().whole(pieces, answer.usage), name)
        await self.send({"type": "done", "id": answer.job.id}, name)


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.websocket("/v1/chat/completions")
    async def chat(socket: WebSocket) -> None:
        await socket.accept()
        await _Chat(service, socket).run()

    return router
