"""The API that a request uses, and that API's form of errors.

openai     {"error": {"message", "type", "param", "code"}}
anthropic  {"type": "error", "error": {"type", "message"}}; /v1/messages, and /v1/models if the client sends `anthropic-version`
ollama     {"error": message}; /api
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from shoal.errors import InvalidRequest
from shoal.gateway.http.faults import Fault
from shoal.gateway.http.request_id import chosen_id, new_id
from shoal.gateway.http.request_span import refused


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class AnthropicErrorDetail(BaseModel):
    type: str
    message: str


class AnthropicErrorAnswer(BaseModel):
    type: Literal["error"]
    error: AnthropicErrorDetail


class OllamaErrorAnswer(BaseModel):
    error: str


@dataclass(frozen=True)
class Dialect:
    """error: an error's shape, for the OpenAPI document. status: maps shoal's statuses to the API's own."""

    error: type[BaseModel]
    body: Callable[[Fault], dict[str, Any]]
    status: Callable[[int], int] = lambda status: status

    def response(self, what: Fault) -> JSONResponse:
        return JSONResponse(self.body(what), self.status(what.status), what.headers)


_OVERLOADED = 529
"""Anthropic's status for an overloaded server."""
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _anthropic(what: Fault) -> dict[str, Any]:
    """https://docs.claude.com/en/api/errors. It has no field for a parameter, so the message begins with it."""
    named = what.message if what.param is None or what.param in what.message else f"{what.param}: {what.message}"
    if what.code == "context_length_exceeded":
        named = f"prompt is too long: {what.message}"  # Claude Code recognises this and shortens the conversation
    return {"type": "error", "error": {"type": _ANTHROPIC_TYPES.get(what.status, "invalid_request_error"), "message": named}}


OPENAI = Dialect(ErrorAnswer, lambda what: what.body)
ANTHROPIC = Dialect(AnthropicErrorAnswer, _anthropic, lambda status: _OVERLOADED if status == 503 else status)
OLLAMA = Dialect(OllamaErrorAnswer, lambda what: {"error": what.message})

VERSION = "anthropic-version"
"""The header that only Anthropic's clients send."""
REQUEST_ID = "request-id"
"""The header that those clients read."""


def spoken_at(path: str) -> tuple[Dialect, ...]:
    """The APIs used at that path; if there are several, the first is for requests that do not say."""
    if _within(path, "/v1/messages"):
        return (ANTHROPIC,)
    if _within(path, "/api"):
        return (OLLAMA,)
    return (OPENAI, ANTHROPIC) if _within(path, "/v1/models") else (OPENAI,)


def spoken(path: str, headers: Mapping[str, str]) -> Dialect:
    """The API of one request."""
    first, *others = spoken_at(path)
    return ANTHROPIC if ANTHROPIC in others and VERSION in headers else first


def request_id(headers: Mapping[str, str]) -> str:
    """The id of a request that has no answer: as its client chose, or a new one."""
    try:
        return chosen_id(headers.get("x-request-id")) or new_id("req_")
    except InvalidRequest:
        return new_id("req_")


def refusal(path: str, headers: Mapping[str, str], what: Fault) -> JSONResponse:
    """The answer to a refused request, in the form of the API that it uses."""
    refused(what)
    dialect = spoken(path, headers)
    answer = dialect.response(what)
    if dialect is ANTHROPIC:
        answer.headers[REQUEST_ID] = request_id(headers)
    return answer


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")
