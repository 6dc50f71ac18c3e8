"""Whether the model is served, and the metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from shoal.gateway.service import Service


def routes(service: Service) -> APIRouter:
    router, engine = APIRouter(), service.engine

    @router.get("/health")
    async def health() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return {"live": True, "ready": not service.state, "reason": service.state}

    @router.get("/health/live")
    async def live() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return {"live": True}

    @router.get("/health/ready")
    async def ready() -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse({"ready": not service.state, "reason": service.state}, 503 if service.state else 200)

    @router.get("/metrics")
    async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(await engine.scrape(), media_type="text/plain; version=0.0.4")

    return router
