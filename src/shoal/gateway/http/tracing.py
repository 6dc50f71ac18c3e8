"""Traces requests: begins a span for each, by what its client says, and hands it on when its answer has been sent.

Attributes are named as in OpenTelemetry's conventions for HTTP: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.gateway.http.request_span import SPAN, RequestSpan
from shoal.observed.trace_span import Attribute, TraceSpan
from shoal.trace_context import TRACE, begun, received

log = structlog.get_logger()

_TRACED = ("/v1/", "/api/")
"""Beginnings of the paths of requests that are traced: not those that ask for health, metrics or the cluster, again and again."""
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})


class RequestTraces:
    def __init__(self, share: float, export: Callable[[list[TraceSpan]], None]) -> None:
        """share: of the requests whose client does not say whether they are traced. export: is given the spans of each."""
        self._share, self._export = share, export

    @contextmanager
    def request(self, name: str, headers: Headers) -> Generator[RequestSpan | None]:
        """What runs inside, and the tasks that it begins, belong to a new request; None: it is not sampled."""
        parent = received(headers.getlist("traceparent"), headers.getlist("tracestate"))
        context = begun(parent, self._share)
        span = RequestSpan(name, context, parent) if context.sampled else None
        # They are not reset: whatever else this task logs is about this request, and the next one has a context of its own.
        TRACE.set(context)
        SPAN.set(span)
        try:
            yield span
        except asyncio.CancelledError:
            if span is not None:
                span.attributes["shoal.cancelled"] = True
            raise
        except Exception as error:
            if span is not None:
                span.failed(type(error).__name__)
            raise
        finally:
            if span is not None:
                self._export(span.over())


class Tracing:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, traces: RequestTraces) -> None:
        self._app, self._traces = app, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        TRACE.set(None)
        SPAN.set(None)
        if scope["type"] != "http" or not scope["path"].startswith(_TRACED):
            return await self._app(scope, receive, send)
        headers, exchange = Headers(scope=scope), _Exchange(receive, send)
        with self._traces.request(scope["method"], headers) as span:
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except Exception:
                exchange.status = exchange.status or 500  # what the server says then
                raise
            finally:
                log.info("a request was answered", method=scope["method"], path=scope["path"], status=exchange.told)
                if span is not None:
                    span.attributes |= _asked(scope, headers)
                    _answered(span, scope, exchange)


class _Exchange:
    """What a client and the application say to each other."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.status = 0
        """0: nothing was sent."""
        self.complete = self.left = False

    @property
    def told(self) -> int:
        """The status; where the client left before there was one, nginx's for that."""
        return self.status or (499 if self.left else 0)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.complete:
            self.left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
        await self._send(message)


def _asked(scope: Scope, headers: Headers) -> dict[str, Attribute]:
    host, port = scope.get("server") or (None, None)
    client, _ = scope.get("client") or (None, None)
    method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
    known = {
        "http.request.method": method,
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "network.protocol.version": scope["http_version"],
        "server.address": host,
        "server.port": port,
        "client.address": client,
        "user_agent.original": headers.get("user-agent"),
    }
    return {name: value for name, value in known.items() if value is not None}


def _answered(span: RequestSpan, scope: Scope, exchange: _Exchange) -> None:
    if (route := getattr(scope.get("route"), "path", None)) is not None:
        span.name = f"{span.name} {route}"
        span.attributes["http.route"] = route
    if exchange.left:
        span.attributes["shoal.client_left"] = True
    if exchange.told:
        span.attributes["http.response.status_code"] = exchange.told
    if exchange.told >= 500 and span.error is None:
        span.failed(str(exchange.told))
