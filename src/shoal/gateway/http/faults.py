"""Maps errors to HTTP answers: the one place that knows both sides."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from shoal.errors import (
    CapacityError,
    ClusterError,
    Conflict,
    Forbidden,
    IdTaken,
    InvalidRequest,
    KeptElsewhere,
    Looped,
    NoRoom,
    NotAllowed,
    NotAuthenticated,
    NotCached,
    NotReady,
    QueueFull,
    RateLimited,
    ShoalError,
    ShuttingDown,
    TooLarge,
    UnknownAnswer,
    UnknownEndpoint,
    UnknownModel,
    UnknownObject,
    UpstreamBusy,
    UpstreamFailed,
    UserError,
    WrongMediaType,
)


@dataclass(frozen=True)
class Fault:
    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        out = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**out, "WWW-Authenticate": "Bearer"} if self.status == 401 else out


def fault(error: ShoalError) -> Fault:
    message = str(error)
    match error:
        case InvalidRequest():
            return Fault(400, message, "invalid_request_error", error.param, error.code)
        case UnknownModel():
            return Fault(404, message, "invalid_request_error", "model", "model_not_found")
        case NotAuthenticated():
            return Fault(401, message, "invalid_request_error", code="invalid_api_key")
        case Forbidden():
            return Fault(403, message, "invalid_request_error", code="origin_not_allowed")
        case NotAllowed():
            return Fault(403, message, "invalid_request_error", code="not_allowed")
        case RateLimited():
            return Fault(429, message, error.what, code="rate_limit_exceeded", retry_after=max(ceil(error.wait), 1))
        case TooLarge():
            return Fault(error.status, message, "invalid_request_error", code="request_too_large")
        case WrongMediaType():
            return Fault(415, message, "invalid_request_error", "Content-Type", "unsupported_media_type")
        case IdTaken():
            return Fault(409, message, "invalid_request_error", "X-Request-Id", "id_taken")
        case UnknownAnswer():
            return Fault(404, message, "invalid_request_error", "id", "answer_not_found")
        case UnknownEndpoint():
            return Fault(404, message, "invalid_request_error", "model", "endpoint_not_found")
        case UnknownObject():
            return Fault(404, message, "invalid_request_error", "id", f"{error.kind}_not_found")
        case Conflict():
            return Fault(409, message, "invalid_request_error", error.param, "conflict")
        case NoRoom():
            return Fault(413, message, "invalid_request_error", error.param, "no_room")
        case KeptElsewhere():
            return Fault(501, message, "invalid_request_error", code="kept_elsewhere")
        case NotCached():
            return Fault(504, message, "invalid_request_error", "Cache-Control", "not_cached")
        case Looped():
            return Fault(508, message, "invalid_request_error", code="loop_detected")
        case UserError():
            return Fault(400, message, "invalid_request_error")
        case QueueFull():
            return Fault(429, message, "rate_limit_error", code="queue_full", retry_after=5)
        case UpstreamBusy():
            return Fault(429, message, "rate_limit_error", code="upstream_busy", retry_after=max(ceil(error.wait), 1))
        case UpstreamFailed():
            return Fault(502, message, "server_error", code="upstream_failed")
        case ShuttingDown():
            return Fault(503, message, "server_error", code="shutting_down", retry_after=10)
        case NotReady():
            return Fault(503, message, "server_error", code="not_ready", retry_after=5)
        case CapacityError() | ClusterError():
            return Fault(503, message, "server_error", code="unavailable", retry_after=5)
        case _:
            return Fault(500, message, "server_error")
