"""The HTTP application: a package for each endpoint that runs the model, a file for each that does not."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from shoal import __version__
from shoal.config import ApiSettings
from shoal.errors import ShoalError
from shoal.gateway.auth.caller import Caller
from shoal.gateway.auth.gate import Gate
from shoal.gateway.auth.key import KeyId
from shoal.gateway.auth.keyring import Keyring
from shoal.gateway.auth.limits import Limiter, LocalLimiter
from shoal.gateway.caching.cache import AnswerCache
from shoal.gateway.caching.engines import CachingEngines
from shoal.gateway.endpoints import console, elsewhere, health, models, streams, tokens
from shoal.gateway.endpoints.batches import route as batches
from shoal.gateway.endpoints.batches.runner import Runner
from shoal.gateway.endpoints.batches.store import BatchStore
from shoal.gateway.endpoints.chat import route as chat
from shoal.gateway.endpoints.chat import socket as chat_socket
from shoal.gateway.endpoints.completions import route as completions
from shoal.gateway.endpoints.database import Database
from shoal.gateway.endpoints.embeddings import route as embeddings
from shoal.gateway.endpoints.files import route as files
from shoal.gateway.endpoints.files.store import FileStore
from shoal.gateway.endpoints.kinds import recalled
from shoal.gateway.endpoints.messages import route as messages
from shoal.gateway.endpoints.ollama import route as ollama
from shoal.gateway.endpoints.operator import keys as operator_keys
from shoal.gateway.endpoints.operator import route as operator_route
from shoal.gateway.endpoints.responses import route as responses
from shoal.gateway.endpoints.responses import socket as responses_socket
from shoal.gateway.endpoints.responses.keeper import ResponseKeeper
from shoal.gateway.endpoints.responses.store import Bounds, Responses, ResponseStore
from shoal.gateway.engines import Engines
from shoal.gateway.http.dialect import refusal
from shoal.gateway.http.faults import Fault, fault
from shoal.gateway.http.in_process import InProcessClient
from shoal.gateway.http.reuse import Reusing
from shoal.gateway.http.tracing import Tracing
from shoal.gateway.operator import Operator
from shoal.gateway.schema.contract import describe
from shoal.gateway.service import Service
from shoal.request import Priority
from shoal.serving.response_store import AnswerStore

if TYPE_CHECKING:
    from shoal.gateway.upstream.upstreams import Upstreams

_ENDPOINTS = (
    chat,
    chat_socket,
    completions,
    embeddings,
    responses,
    responses_socket,
    messages,
    ollama,
    streams,
    tokens,
    models,
    health,
    console,
)
_KEEPING = (responses, responses_socket)
"""Those of them that look up kept responses."""
_BATCHED = {
    "/v1/chat/completions": chat,
    "/v1/completions": completions,
    "/v1/embeddings": embeddings,
    "/v1/responses": responses,
}
"""The endpoints that a batch may use."""
_TOLD = (
    "X-Request-Id",
    "Request-Id",
    "Retry-After",
    "X-Shoal-Cache",
    "Age",
    *(f"X-RateLimit-{part}-{what}" for part in ("Limit", "Remaining", "Reset") for what in ("Requests", "Tokens")),
)
"""Response headers that pages of other origins may read."""


@dataclass(frozen=True)
class Home:
    """What a gateway's application has of the head's machine."""

    responses: Responses
    api: str
    """Where the head's own API is, for people."""


class _App(FastAPI):
    def __init__(self, origins: Iterable[str] = ()) -> None:
        """origins: of web pages that may send requests."""
        super().__init__(title="shoal", version=__version__, openapi_url=None, redirect_slashes=False)
        self._origins = list(origins)

    def build_middleware_stack(self) -> ASGIApp:
        """CORS wraps everything: the answer to an internal error must reach the page too."""
        stack = super().build_middleware_stack()
        if not self._origins:
            return stack
        methods = ("GET", "POST", "DELETE")
        return CORSMiddleware(stack, self._origins, allow_methods=methods, allow_headers=("*",), expose_headers=_TOLD)


def create_app(
    engines: Engines,
    settings: ApiSettings | None = None,
    keyring: Keyring | None = None,
    limiter: Limiter | None = None,
    operator: Operator | None = None,
    home: Home | None = None,
    upstreams: Upstreams | None = None,
) -> FastAPI:
    """The application. Raises ConfigError.

    settings: None for a server that ends with its command: it keeps nothing, so it has no keys, files or batches
    keyring:  default: the one in the settings' folder
    limiter:  enforces the keys' limits; default: one in this process
    operator: of whatever runs the engines, if there is more to it than the engines
    home:     where a gateway's responses, files and batches are; default: in the settings' folder
    upstreams: other servers that answer for some models; they are asked while the application runs
    """
    given = settings or ApiSettings(responses=0)
    keyring = keyring or Keyring(None if settings is None else given.data_folder)
    app = _App(given.origins)
    engines = here = _caching(engines, given)
    between: list[Middleware] = []
    if upstreams is not None:
        from shoal.gateway.upstream.engines import EnginesAndUpstreams
        from shoal.gateway.upstream.forwarding import Forwarding  # an HTTP client, which takes time to load

        engines = both = EnginesAndUpstreams(here, upstreams)
        between.append(Middleware(Forwarding, upstreams, both))
    if given.response_cache_bytes:
        between.insert(0, Middleware(Reusing))
    store: Responses = ResponseStore(given.data_folder, Bounds.of(given)) if home is None else home.responses
    service = app.state.service = Service(engines, given, keyring, limiter or LocalLimiter(), recalled, ResponseKeeper(store))
    _put_between(app, between)
    app.add_middleware(Gate, given, service.in_flight, keyring, service.limiter)
    if service.traces is not None:
        app.add_middleware(Tracing, service.traces)  # around the gate: a request that is refused there is traced, too
    routers = [_routes(endpoint, service, store) for endpoint in _ENDPOINTS]
    if operator is not None:
        routers += [operator_route.routes(service, operator), operator_keys.routes(service)]
    alongside: list[Callable[[], AbstractAsyncContextManager[None]]] = [] if upstreams is None else [upstreams.running]
    if home is not None:
        routers.append(elsewhere.routes(home.api))
    elif settings is not None:
        more, working = _batches(service, store, between)
        routers += more
        alongside.append(working)
    app.router.lifespan_context = _during(alongside)
    _furnish(app, routers)
    describe(app, routers, keyring, given.needs_key)
    return app


def _caching(engines: Engines, settings: ApiSettings) -> Engines:
    """The engines, behind the response cache if there is to be one. Raises ConfigError."""
    if not settings.response_cache_bytes:
        return engines
    store = AnswerStore(settings.data_folder, settings.response_cache_bytes, settings.response_cache_ttl)
    return CachingEngines(engines, AnswerCache(store, settings.response_cache_scope, engines))


def _routes(endpoint: Any, service: Service, store: Responses) -> APIRouter:
    return endpoint.routes(service, store) if endpoint in _KEEPING else endpoint.routes(service)


def _put_between(app: FastAPI, middlewares: Sequence[Middleware]) -> None:
    """middlewares: the outermost first."""
    for each in reversed(middlewares):
        app.add_middleware(each.cls, *each.args, **each.kwargs)


def _during(contexts: Sequence[Callable[[], AbstractAsyncContextManager[None]]]) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """What is open while an application runs."""

    @asynccontextmanager
    async def open(_: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            for context in contexts:
                await stack.enter_async_context(context())
            yield

    return open


def _batches(
    service: Service, store: Responses, between: Sequence[Middleware]
) -> tuple[list[APIRouter], Callable[[], AbstractAsyncContextManager[None]]]:
    """The endpoints of files and batches, and the runner that processes batches while the application runs. between: the middlewares
    before the endpoints."""
    settings, engines, keyring = service.settings, service.engines, service.keyring
    database = Database(settings.data_folder)
    kept = FileStore(database, settings)
    made = BatchStore(database, settings)
    inner = _App()
    _put_between(inner, between)
    _furnish(inner, (_routes(endpoint, service, store) for endpoint in _BATCHED.values()))

    def caller(owner: str) -> Caller:
        return Caller(keyring, None, keyring.known(KeyId(owner)), Priority.BATCH)

    def working() -> AbstractAsyncContextManager[None]:
        return Runner(made, kept, InProcessClient(inner), engines, settings, caller).working()

    return [files.routes(kept), batches.routes(made, kept, engines, _BATCHED)], working


def _furnish(app: FastAPI, routers: Iterable[APIRouter]) -> None:
    """Adds endpoints, and handlers for their errors."""
    for router in routers:
        app.include_router(router)

    @app.exception_handler(ShoalError)
    async def refused(request: Request, error: ShoalError) -> JSONResponse:
        return _told(request, fault(error))

    @app.exception_handler(RequestValidationError)
    async def invalid_query(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _told(request, Fault(400, f"{first['loc'][-1]}: {first['msg']}", "invalid_request_error", str(first["loc"][-1])))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"no such endpoint: {request.method} {request.url.path}"
        elif error.status_code == 405:
            message = f"{request.url.path} does not know {request.method}, but {(error.headers or {}).get('Allow', 'others')}"
        answer = _told(request, Fault(error.status_code, message, "invalid_request_error"))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # before its request was complete; nobody reads this

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return _told(request, Fault(500, "an unexpected error; the server's log says more", "server_error"))


def _told(request: Request, what: Fault) -> JSONResponse:
    """In the form of the API that the request uses."""
    return refusal(request.url.path, request.headers, what)
