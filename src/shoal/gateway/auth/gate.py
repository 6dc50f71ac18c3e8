"""Checks of a request before its body is read: its size, its key, and its rate."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.address import is_loopback
from shoal.config import ApiSettings
from shoal.errors import Forbidden, InvalidRequest, ShoalError, TooLarge
from shoal.gateway.auth.caller import CALLER, Caller
from shoal.gateway.auth.key import KeyRole
from shoal.gateway.auth.keyring import Keyring
from shoal.gateway.auth.limits import Allowance, Budget, Limiter
from shoal.gateway.http.dialect import refusal
from shoal.gateway.http.faults import fault
from shoal.gateway.http.in_flight import InFlight, Passage
from shoal.request import Priority

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 << 10
"""Limit for all of a request's headers."""
MAX_TARGET = 8 << 10
"""Limit for the bytes of path and query."""

_OPEN = frozenset({"/", "/health", "/health/live", "/health/ready", "/openapi.json", "/console"})
"""Paths that need no key. All others do, even those that do not exist."""


HEADERS = {"X-Priority": {"enum": [priority.name.lower() for priority in Priority]}}
"""The request headers that are read, besides the key."""


def asks_key(path: str) -> bool:
    """Whether the path needs a key, if there are any keys."""
    return path not in _OPEN and not path.startswith("/console/")


def refusals(method: str, path: str) -> list[int]:
    """Statuses that the gate may return."""
    sizes = [414, 431]
    if not asks_key(path):
        return sizes
    inside = [503, *([429] if method == "POST" else [])] if path.startswith("/v1/") or method == "POST" else []
    return sorted([400, 401, 403, *sizes, *inside])


class Gate:
    """ASGI middleware. Sets CALLER for the application inside."""

    def __init__(self, app: ASGIApp, settings: ApiSettings, in_flight: InFlight, keyring: Keyring, limiter: Limiter) -> None:
        self._app, self._settings = app, settings
        self._in_flight, self._keyring, self._limiter = in_flight, keyring, limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            _check_size(scope)
            if not asks_key(scope["path"]):
                return await self._app(scope, receive, send)
            caller = self._caller(headers)
            if not scope["path"].startswith("/v1/") and scope.get("method") != "POST":
                return await self._let_in(caller, scope, receive, send)
            if scope["type"] == "websocket":  # its endpoint counts its requests one by one
                self._in_flight.check()
                return await self._let_in(caller, scope, receive, send)
            with self._in_flight.passing() as passage:
                if scope["method"] != "POST":
                    passage.begin()
                    return await self._let_in(caller, scope, receive, send)
                receive = _beginning(passage, receive)
                allowance = await caller.enter()
                try:
                    return await self._let_in(caller, scope, receive, _telling(allowance, send))
                finally:
                    caller.leave()
        except ShoalError as error:
            await _refuse(error, scope, receive, send)

    async def _let_in(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        token = CALLER.set(caller)
        try:
            await self._app(scope, receive, send)
        finally:
            CALLER.reset(token)

    def _caller(self, headers: Headers) -> Caller:
        """Raises NotAuthenticated, Forbidden, InvalidRequest."""
        floor = _floor(headers.get("x-priority"))
        if self._settings.needs_key or self._keyring.required:
            return Caller(self._keyring, self._limiter, self._keyring.admit(_token(headers)), floor)
        if not self._settings.exposed and (origin := headers.get("origin")) is not None and not self._welcome(origin):
            raise Forbidden(origin)
        return Caller(floor=floor, keyless_role=KeyRole.USER if self._settings.exposed else KeyRole.OPERATOR)

    def _welcome(self, origin: str) -> bool:
        """Whether a web page may use an API of this machine that requires no key.

        A browser sends some requests without asking the server first, and treats a name that points to this machine (DNS
        rebinding) as the page's own; but it says which page sends the request.
        """
        allowed = self._settings.origins
        try:
            return "*" in allowed or origin in allowed or is_loopback(urlsplit(origin).hostname or "")
        except ValueError:
            return False


def _check_size(scope: Scope) -> None:
    """Raises TooLarge."""
    if len(scope["headers"]) > MAX_HEADERS:
        raise TooLarge("the request", MAX_HEADERS, "headers", 431)
    if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        raise TooLarge("the request's headers", MAX_HEADER_BYTES, status=431)
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET:
        raise TooLarge("the request's target", MAX_TARGET, status=414)


def _floor(name: str | None) -> Priority:
    """The class in X-Priority: it can only lower a request's priority, never raise it. Raises InvalidRequest."""
    if name is None:
        return Priority.URGENT
    if name.upper() not in Priority.__members__:
        raise InvalidRequest(f"X-Priority must be one of {', '.join(p.name.lower() for p in Priority)}", "X-Priority")
    return Priority[name.upper()]


def _token(headers: Headers) -> str | None:
    """The key. If both ways of sending one are used, the more common one counts."""
    given = headers.getlist("authorization")
    if not given:
        return headers.get("x-api-key")
    scheme, _, token = given[0].partition(" ")
    return token.strip() if len(given) == 1 and scheme.lower() == "bearer" else "none"


def _beginning(passage: Passage, receive: Receive) -> Receive:
    """Counts the request as begun when its body is complete."""

    async def hear() -> Message:
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            passage.begin()
        return message

    return hear


def _telling(allowance: Allowance, send: Send) -> Send:
    """Adds the rest of the key's limits to the response's headers, as OpenAI does."""
    budgets = {"requests": allowance.requests, "tokens": allowance.tokens}
    extra = {name: value for what, budget in budgets.items() if budget is not None for name, value in _headers(what, budget).items()}
    if not extra:
        return send

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(extra)
        await send(message)

    return tell


def _headers(what: str, budget: Budget) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(budget.limit),
        f"x-ratelimit-remaining-{what}": str(budget.remaining),
        f"x-ratelimit-reset-{what}": _duration(budget.reset),
    }


def _duration(seconds: float) -> str:
    """In OpenAI's form: 120ms, 7.2s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, seconds = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}m{seconds:g}s" if minutes else f"{seconds:g}s"


async def _refuse(error: ShoalError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": str(error)[:100]})
    else:
        await refusal(scope["path"], Headers(scope=scope), fault(error))(scope, receive, send)
