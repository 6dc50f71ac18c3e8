"""This server itself as one of the replicas: its own endpoint answers, and what it refuses for now may go to another."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.gateway.upstream.no_answer import NoAnswer
from shoal.serving.balancing.inquiry import Ending
from shoal.serving.verdict import Cause, verdict


def replayed(raw: bytes, receive: Receive) -> Receive:
    """Receives a body that was read already, and then what follows it."""
    given = False

    async def hear() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": raw, "more_body": False}

    return hear


class LocalAttempt:
    """One request at the endpoint of this server."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, answered: Callable[[], None]) -> None:
        """receive: gives the body again. answered: called when the first byte of the answer is here."""
        self._app, self._scope, self._receive, self._send, self._answered = app, scope, receive, send, answered
        self._held: list[Message] = []
        self._passing = False
        self._left = False
        self.ending = Ending.CANCELLED

    async def run(self) -> NoAnswer | None:
        """None: the client has its answer."""
        try:
            await self._app(self._scope, self._hear, self._say)
        except Exception:
            self.ending = Ending.FAILED
            raise
        if not self._held:
            return None
        start = self._held[0]
        judged = verdict(start["status"], retry_after=Headers(raw=start["headers"]).get("retry-after"))
        self.ending = judged.ending
        return NoAnswer(judged.cause or Cause.BROKEN, f"this server answered {start['status']}", judged.pause, self._held)

    async def _hear(self) -> Message:
        message = await self._receive()
        self._left = self._left or message["type"] == "http.disconnect"
        return message

    async def _say(self, message: Message) -> None:
        refuses = message["type"] == "http.response.start" and verdict(message["status"]).cause is Cause.BUSY
        if self._held or refuses or message.get("status", 0) >= 500:
            self._held.append(message)
        else:
            if message.get("body") and not self._passing:
                self._passing = True
                self._answered()
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.ending = Ending.CANCELLED if self._left else Ending.SERVED
            await self._send(message)
