"""Why a replica did not answer a request, so that another one is asked; if there is none, the client gets the most useful of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.responses import Response
from starlette.types import Message, Send

from shoal.errors import Looped, NotReady, ShoalError, UnknownEndpoint, UpstreamBusy, UpstreamFailed
from shoal.gateway.upstream.asked import Asked
from shoal.serving.verdict import Cause

_USEFUL = (Cause.BUSY, Cause.BROKEN, Cause.ASTRAY, Cause.LOCKED_OUT, Cause.WITHOUT_MODEL, Cause.LOOP, Cause.WITHOUT_ENDPOINT)
"""Causes, by what they tell a client: the most useful one first."""


@dataclass(frozen=True)
class NoAnswer:
    """reason: for the log. pause: seconds after which it is worth asking again. answer: as it was to be sent: of this
    server's own endpoint, or one that says something to this client alone."""

    cause: Cause
    reason: str
    pause: float | None = None
    answer: Sequence[Message] = field(default_factory=list[Message])

    async def send(self, asked: Asked, send: Send) -> None:
        """Raises ShoalError, in the place of an answer."""
        if not self.answer:
            raise self._error(asked)
        for message in self.answer:
            await send(message)

    def _error(self, asked: Asked) -> ShoalError:
        match self.cause:
            case Cause.BUSY:
                return UpstreamBusy(asked.model, self.pause or 1.0)
            case Cause.WITHOUT_ENDPOINT:
                return UnknownEndpoint(asked.path, asked.model)
            case Cause.WITHOUT_MODEL:
                return NotReady(f"the model '{asked.model}' is not served any more by the server that had it")
            case Cause.LOOP:
                return Looped(f"the server that has the model '{asked.model}' sends requests for it back")
            case Cause.LOCKED_OUT:
                return UpstreamFailed(f"the server that has the model '{asked.model}' does not let this one in; tell its operator")
            case Cause.BROKEN | Cause.ASTRAY:
                return UpstreamFailed(f"the server that has the model '{asked.model}' did not answer: {self.reason}")


def most_useful(attempts: Sequence[NoAnswer]) -> NoAnswer:
    """attempts: at least one, in order."""
    return min(attempts, key=lambda attempt: _USEFUL.index(attempt.cause))


def code_of(body: Mapping[str, Any] | None, model: str) -> str | None:
    """What an error is about: the code in its object. Servers that number their errors, or have no codes, tell it otherwise:
    `model_not_found` is one about that model, and `not_found_error` one about something else that the request names. None: it may be
    about the endpoint itself."""
    error = (body or {}).get("error", body)
    if not isinstance(error, dict):
        return None
    told = cast("dict[str, Any]", error)
    code, about, message = told.get("code"), told.get("param"), told.get("message")
    if isinstance(code, str):
        return code
    if about == "model" or (bool(model) and isinstance(message, str) and model in message):
        return "model_not_found"
    return "not_found_error" if told.get("type") == "not_found_error" or (isinstance(about, str) and about) else None


def messages_of(response: Response) -> list[Message]:
    """A whole response, as an application sends it."""
    start: Message = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
    return [start, {"type": "http.response.body", "body": bytes(response.body), "more_body": False}]
