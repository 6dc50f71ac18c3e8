"""Calls an application's endpoints from inside: the code that answers HTTP, without a socket."""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import dataclass, field

import structlog
from starlette.types import ASGIApp, Message

log = structlog.get_logger()


@dataclass
class Answered:
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict[str, str])
    """Names in lower case."""
    body: bytes = b""


class InProcessClient:
    def __init__(self, app: ASGIApp) -> None:
        """app: one that requires no key; the caller was admitted before."""
        self._app = app

    async def post(self, path: str, body: bytes) -> Answered:
        """The whole answer to a JSON body, for CALLER. What runs for it ends if the caller is cancelled."""
        answered = Answered()
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if sent:  # there is no disconnect: a caller that leaves is cancelled
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.status = message["status"]
                answered.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]}
            else:
                answered.body += message.get("body", b"")

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
            "client": None,
            "server": None,
        }
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - a bug, which the application has answered with 500
            log.error("an endpoint failed", path=path, trace="".join(traceback.format_exception(error)))
        return answered
