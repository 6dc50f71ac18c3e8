"""The HTTP application: a package for each endpoint that asks the model something, a file for each that does not."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from shoal import __version__
from shoal.config import ApiSettings
from shoal.errors import ShoalError
from shoal.gateway import health, models, streams
from shoal.gateway.batches import route as batches
from shoal.gateway.batches.runner import Runner
from shoal.gateway.batches.store import BatchStore
from shoal.gateway.chat import route as chat
from shoal.gateway.completions import route as completions
from shoal.gateway.database import Database
from shoal.gateway.engine import Engine
from shoal.gateway.faults import Fault, fault
from shoal.gateway.files import route as files
from shoal.gateway.files.store import FileStore
from shoal.gateway.inside import Inside
from shoal.gateway.service import Service

_ENDPOINTS = (chat, completions, streams, models, health)
_BATCHED = {"/v1/chat/completions": chat, "/v1/completions": completions}
"""What the requests of a batch may be for."""


def _answer(what: Fault) -> JSONResponse:
    headers = {} if what.retry_after is None else {"Retry-After": str(what.retry_after)}
    return JSONResponse(what.body, what.status, headers)


def create_app(engine: Engine, settings: ApiSettings | None = None) -> FastAPI:
    """settings: None for a server that ends with its command: it keeps nothing, so it has no files and no batches. Raises ConfigError."""
    service = Service(engine, settings or ApiSettings())
    app = _application(endpoint.routes(service) for endpoint in _ENDPOINTS)
    if settings is not None:
        _add_batches(app, service)
    return app


def _add_batches(app: FastAPI, service: Service) -> None:
    """Files, batches, and what works them off while the application runs."""
    settings, model = service.settings, service.engine.name
    database = Database(settings.data_folder)
    kept = FileStore(database, settings)
    made = BatchStore(database, settings)
    app.include_router(files.routes(kept))
    app.include_router(batches.routes(made, kept, model, _BATCHED))
    inside = Inside(_application(endpoint.routes(service) for endpoint in _BATCHED.values()))

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncGenerator[None]:
        async with Runner(made, kept, inside, model, settings).working():
            yield

    app.router.lifespan_context = working


def _application(routers: Iterable[APIRouter]) -> FastAPI:
    """Endpoints, and what becomes of their errors."""
    app = FastAPI(title="shoal", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    for router in routers:
        app.include_router(router)

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
