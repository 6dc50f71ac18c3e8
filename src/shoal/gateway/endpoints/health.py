"""Whether the model is served, and the metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from shoal.gateway.schema.contract import contract
from shoal.gateway.schema.wire import Shape
from shoal.gateway.service import Service


class Live(Shape):
    live: bool


class Ready(Shape):
    ready: bool
    reason: str


class Health(Live, Ready):
    pass


def routes(service: Service) -> APIRouter:
    router, engine = APIRouter(), service.engine

    @router.get("/health", **contract(None, Health))
    async def health() -> dict[str, Any]:
        return {"live": True, "ready": not service.state, "reason": service.state}

    @router.get("/health/live", **contract(None, Live))
    async def live() -> dict[str, Any]:
        return {"live": True}

    @router.get(
        "/health/ready",
        responses={200: {"model": Ready, "description": "Requests are taken"}, 503: {"model": Ready, "description": "They are not"}},
        response_model=None,
    )
    async def ready() -> Response:
        return JSONResponse({"ready": not service.state, "reason": service.state}, 503 if service.state else 200)

    @router.get("/metrics", **contract(None, None, media="text/plain"))
    async def metrics() -> Response:
        return Response(await engine.scrape(), media_type="text/plain; version=0.0.4")

    return router
