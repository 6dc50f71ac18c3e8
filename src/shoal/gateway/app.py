"""The HTTP application: a package for each endpoint that asks the model something, a file for each that does not."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from shoal import __version__
from shoal.config import ApiSettings
from shoal.errors import ShoalError
from shoal.gateway import health, models, streams, tokens
from shoal.gateway.chat import route as chat
from shoal.gateway.chat import socket as chat_socket
from shoal.gateway.completions import route as completions
from shoal.gateway.engine import Engine
from shoal.gateway.faults import Fault, fault
from shoal.gateway.responses import route as responses
from shoal.gateway.service import Service

_ENDPOINTS = (chat, chat_socket, completions, responses, streams, tokens, models, health)


def _answer(what: Fault) -> JSONResponse:
    headers = {} if what.retry_after is None else {"Retry-After": str(what.retry_after)}
    return JSONResponse(what.body, what.status, headers)


def create_app(engine: Engine, settings: ApiSettings | None = None) -> FastAPI:
    settings = settings or ApiSettings()
    app = FastAPI(title="shoal", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    service = Service(engine, settings)
    for endpoint in _ENDPOINTS:
        app.include_router(endpoint.routes(service))

    @app.exception_handler(ShoalError)
    async def refused(request: Request, error: ShoalError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return _answer(fault(error))

    @app.exception_handler(RequestValidationError)
    async def invalid_query(request: Request, error: RequestValidationError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        first = error.errors()[0]
        return _answer(Fault(400, f"{first['loc'][-1]}: {first['msg']}", "invalid_request_error", str(first["loc"][-1])))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        message = str(error.detail) if error.status_code != 404 else f"no such endpoint: {request.method} {request.url.path}"
        return _answer(Fault(error.status_code, message, "invalid_request_error"))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return _answer(Fault(500, "an unexpected error; the server's log says more", "server_error"))

    return app
