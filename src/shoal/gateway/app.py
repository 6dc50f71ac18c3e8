"""The HTTP application: a package for each endpoint that asks the model something, a file for each that does not."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from shoal import __version__
from shoal.config import ApiSettings
from shoal.errors import ShoalError
from shoal.gateway import health, models, streams, tokens
from shoal.gateway.chat import route as chat
from shoal.gateway.chat import socket as chat_socket
from shoal.gateway.completions import route as completions
from shoal.gateway.contract import describe
from shoal.gateway.embeddings import route as embeddings
from shoal.gateway.engine import Engine
from shoal.gateway.faults import Fault, fault
from shoal.gateway.gate import Gate
from shoal.gateway.keyring import Keyring
from shoal.gateway.limits import Limiter, LocalLimiter
from shoal.gateway.responses import route as responses
from shoal.gateway.service import Service

_ENDPOINTS = (chat, chat_socket, completions, embeddings, responses, streams, tokens, models, health)
_TOLD = (
    "X-Request-Id",
    "Retry-After",
    *(f"X-RateLimit-{part}-{what}" for part in ("Limit", "Remaining", "Reset") for what in ("Requests", "Tokens")),
)
"""Response headers that a page of another origin may read."""


class _App(FastAPI):
    origins: list[str]

    def build_middleware_stack(self) -> ASGIApp:
        """CORS goes around everything: the answer to a bug has to reach the page too."""
        stack = super().build_middleware_stack()
        if not self.origins:
            return stack
        methods = ("GET", "POST", "DELETE")
        return CORSMiddleware(stack, self.origins, allow_methods=methods, allow_headers=("*",), expose_headers=_TOLD)


def create_app(
    engine: Engine, settings: ApiSettings | None = None, keyring: Keyring | None = None, limiter: Limiter | None = None
) -> FastAPI:
    """keyring: else the one in the settings' folder. limiter: counts what keys may ask; else this process does. Raises ConfigError."""
    settings = settings or ApiSettings()
    app = _App(title="shoal", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.origins = settings.origins
    service = app.state.service = Service(engine, settings, keyring or Keyring(settings.data_folder), limiter or LocalLimiter())
    app.add_middleware(Gate, settings, service.doors, service.keyring, service.limiter)
    for endpoint in _ENDPOINTS:
        app.include_router(endpoint.routes(service))
    describe(app)

    @app.exception_handler(ShoalError)
    async def refused(request: Request, error: ShoalError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return fault(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid_query(request: Request, error: RequestValidationError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        first = error.errors()[0]
        return Fault(400, f"{first['loc'][-1]}: {first['msg']}", "invalid_request_error", str(first["loc"][-1])).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        message = str(error.detail)
        if error.status_code == 404:
            message = f"no such endpoint: {request.method} {request.url.path}"
        elif error.status_code == 405:
            message = f"{request.url.path} does not know {request.method}, but {(error.headers or {}).get('Allow', 'others')}"
        answer = Fault(error.status_code, message, "invalid_request_error").response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(status_code=499)  # before its request was there whole; nobody reads this

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return Fault(500, "an unexpected error; the server's log says more", "server_error").response()

    return app
