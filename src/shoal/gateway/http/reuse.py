"""Whether a request may be answered from the response cache, and whether it was: the headers Cache-Control, X-Shoal-Cache and Age.

Only HTTP requests that POST have a Reuse. Messages of a WebSocket have no headers of their own, so they are never answered from it.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.serving.cache_control import CacheControl, cache_control
from shoal.serving.response_cache import Question


@dataclass
class Reuse:
    control: CacheControl
    question: Question | None = None
    """Known when the request has been read."""
    age: float | None = None
    """Seconds since the kept answer that it gets was made."""
    missed: bool = False
    """Whether it might have got one, and did not."""

    @property
    def found(self) -> str:
        """hit, miss, or nothing."""
        return "hit" if self.age is not None else "miss" if self.missed else ""

    @property
    def headers(self) -> dict[str, str]:
        age = {} if self.age is None else {"Age": str(int(self.age))}
        return {"X-Shoal-Cache": self.found, **age} if self.found else {}


REUSE: ContextVar[Reuse | None] = ContextVar("reuse", default=None)
"""Of the request under way; None: it is to be answered by the engine alone."""


class Reusing:
    """ASGI middleware. Sets REUSE for the application inside."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        reuse = Reuse(cache_control(Headers(scope=scope).getlist("cache-control")))

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(reuse.headers)
            await send(message)

        token = REUSE.set(reuse)
        try:
            await self._app(scope, receive, tell)
        finally:
            REUSE.reset(token)
