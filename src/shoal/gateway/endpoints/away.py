"""What a gateway answers while it has no head: why, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from shoal.errors import NotReady
from shoal.gateway.auth.keyring import Keyring
from shoal.gateway.http.dialect import refusal
from shoal.gateway.http.faults import fault
from shoal.gateway.http.in_flight import InFlight

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@dataclass
class _Nothing:
    """A gateway.server.ServedApp."""

    in_flight: InFlight
    keyring: Keyring


def create_away(why: Callable[[], str]) -> FastAPI:
    """An application for `server.ApiServer`. why: there is no head."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.state.service = _Nothing(InFlight(), Keyring(None))

    def told() -> dict[str, Any]:
        return {"ready": False, "reason": why(), "models": []}

    @app.get("/health/live")
    async def live() -> dict[str, Any]:
        return {"live": True}

    @app.get("/health/ready")
    async def ready() -> Response:
        return JSONResponse(told(), 503)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"live": True, **told()}

    @app.api_route("/{path:path}", methods=_METHODS)
    async def rest(request: Request) -> Response:
        return refusal(request.url.path, request.headers, fault(NotReady(why())))

    return app
