"""An API without an engine, of a head that does not lead or a gateway without a head: it refuses every request, and says why."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from shoal.errors import NotReady
from shoal.gateway.http.dialect import refusal
from shoal.gateway.http.faults import fault
from shoal.gateway.server import QuietServer

_TRY_AGAIN_LATER = 1013  # status of a closed WebSocket (RFC 6455's registry)


class StandbyServer:
    def __init__(self, address: socket.socket, why: Callable[[], str]) -> None:
        """address: from `listening`; it is closed when `serve` returns. why: for people."""
        self._socket, self._why = address, why
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            log_config=None,
            log_level="error",
            lifespan="off",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = QuietServer(config)

    async def serve(self) -> None:
        """Runs until stop() is called."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        self._server.should_exit = True

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": self._why()[:100]})
        else:
            await self._response(scope)(scope, receive, send)

    def _response(self, scope: Scope) -> Response:
        path = str(scope["path"])
        state: dict[str, Any] = {"ready": False, "reason": self._why(), "models": []}
        match path:
            case "/health/live":
                return JSONResponse({"live": True})
            case "/health":
                return JSONResponse({"live": True, **state})
            case "/health/ready":
                return JSONResponse(state, 503)
            case _:
                answer = refusal(path, Headers(scope=scope), fault(NotReady(self._why())))
                answer.headers.setdefault("Retry-After", "1")
                return answer
