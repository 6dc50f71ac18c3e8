"""The HTTP application: a package for each endpoint that asks the model something, a file for each that does not."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from shoal import __version__
from shoal.config import ApiSettings
from shoal.errors import ShoalError
from shoal.gateway import health, models, streams
from shoal.gateway.chat import route as chat
from shoal.gateway.completions import route as completions
from shoal.gateway.contract import describe
from shoal.gateway.embeddings import route as embeddings
from shoal.gateway.engine import Engine
from shoal.gateway.faults import Fault, fault
from shoal.gateway.service import Service

_ENDPOINTS = (chat, completions, embeddings, streams, models, health)


def _answer(what: Fault) -> JSONResponse:
    headers = {} if what.retry_after is None else {"Retry-After": str(what.retry_after)}
    return JSONResponse(what.body, what.status, headers)


def create_app(engine: Engine, settings: ApiSettings | None = None) -> FastAPI:
    settings = settings or ApiSettings()
    app = FastAPI(title="shoal", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    service = Service(engine, settings)
    for endpoint in _ENDPOINTS:
        app.include_router(endpoint.routes(service))
    describe(app)

    @app.exception_handler(ShoalError)
    async def refused(request: Request, error: ShoalError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return _answer(fault(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        message = str(error.detail) if error.status_code != 404 else f"no such endpoint: {request.method} {request.url.path}"
        return _answer(Fault(error.status_code, message, "invalid_request_error"))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return _answer(Fault(500, "an unexpected error; the server's log says more", "server_error"))

    return app
