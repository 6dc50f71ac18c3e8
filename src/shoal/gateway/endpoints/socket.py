"""A client's WebSocket, for all endpoints: each message is a request, and what runs for it ends with the connection.

A client may name each of its messages to tell them apart; then several may run at once. A client that reads slowly delays only
its own connection: sending waits for it.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any, ClassVar

from fastapi.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from shoal.errors import QueueFull, ShoalError
from shoal.gateway.auth.caller import CALLER
from shoal.gateway.http.faults import Fault, fault
from shoal.gateway.http.request_span import refused
from shoal.gateway.http.work import LARGE, work
from shoal.gateway.service import MAX_BODY, Seen, Service, json_object

_AT_ONCE = 16
_TOO_LARGE = 1009
"""RFC 6455, 7.4.1."""


class Session(ABC):
    """One connection."""

    endpoint: ClassVar[str]
    """The name in metrics."""

    def __init__(self, service: Service, socket: WebSocket) -> None:
        self._service, self._socket = service, socket
        self._running: dict[asyncio.Task[None], str | None] = {}

    @abstractmethod
    def name(self, body: dict[str, Any]) -> str | None:
        """The client's name for a request, removed from its body. Raises InvalidRequest."""

    @abstractmethod
    async def ask(self, body: dict[str, Any], name: str | None, size: int, seen: Seen) -> None:
        """Answers a request of `size` bytes, and counts it once it is accepted. Raises ShoalError if it is refused."""

    @abstractmethod
    def named(self, data: dict[str, Any], name: str | None) -> dict[str, Any]:
        """Adds the request's name to a message."""

    def refusal(self, what: Fault) -> dict[str, Any]:
        """The message for a refused request."""
        later = {} if what.retry_after is None else {"retry_after": what.retry_after}
        return {**what.body, "status": what.status, **later}

    async def run(self) -> None:
        """Runs until the client leaves."""
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
        name = None
        try:
            body = json_object(raw) if len(raw) < LARGE else await work(len(raw), json_object, raw)
            name = self.name(body)
            if len(self._running) >= _AT_ONCE:
                raise QueueFull(len(self._running), _AT_ONCE)
        except ShoalError as error:
            await self.send(self.refusal(fault(error)), name)
            return
        task = group.create_task(self._answer(body, name, len(raw)))
        self._running[task] = name
        task.add_done_callback(self._running.pop)

    async def _answer(self, body: dict[str, Any], name: str | None, size: int) -> None:
        if self._service.traces is None:
            await self._admit(body, name, size)
            return
        path = self._socket.url.path
        with self._service.traces.request(f"message {path}", self._socket.headers) as span:
            if span is not None:
                span.attributes |= {"url.path": path, "network.protocol.name": "websocket"}
            await self._admit(body, name, size)

    async def _admit(self, body: dict[str, Any], name: str | None, size: int) -> None:
        caller, seen = CALLER.get(), Seen()
        try:
            with self._service.in_flight.passing() as passage:
                passage.begin()
                self._service.keyring.recheck(caller.key)
                await caller.enter()
                try:
                    await self.ask(body, name, size, seen)
                finally:
                    caller.leave()
        except ShoalError as error:
            self._service.refused(self.endpoint, seen, error)
            refused(fault(error))
            with suppress(WebSocketDisconnect):
                await self.send(self.refusal(fault(error)), name)

    async def send(self, data: dict[str, Any], name: str | None) -> None:
        """Raises WebSocketDisconnect."""
        if self._socket.application_state is not WebSocketState.CONNECTED:
            raise WebSocketDisconnect
        await self._socket.send_text(json.dumps(self.named(data, name), ensure_ascii=False, separators=(",", ":")))
