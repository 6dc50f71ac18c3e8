"""GET /v1/models: the model that is served."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from shoal.gateway.contract import contract
from shoal.gateway.service import Service


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    def card() -> dict[str, Any]:
        return {"id": service.engine.name, "object": "model", "created": service.engine.created, "owned_by": "shoal"}

    @router.get("/v1/models", **contract(None, ModelList))
    async def models() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return {"object": "list", "data": [card()]}

    @router.get("/v1/models/{name:path}", **contract(None, ModelCard, 404))
    async def model(name: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        service.check_model(name)
        return card()

    return router
