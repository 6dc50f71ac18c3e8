"""GET /v1/models: the model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from shoal.gateway.service import Service


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    def card() -> dict[str, Any]:
        return {"id": service.engine.name, "object": "model", "created": service.engine.created, "owned_by": "shoal"}

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return {"object": "list", "data": [card()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        service.check_model(name)
        return card()

    return router
