"""GET /v1/models: the model that is served."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter

from shoal.errors import NotReady
from shoal.gateway.contract import contract
from shoal.gateway.service import Service
from shoal.gateway.wire import Shape


class ModelCard(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    """vLLM's: tokens of the longest prompt and answer, once that is known."""


class ModelList(Shape):
    object: Literal["list"]
    data: list[ModelCard]


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    def card() -> dict[str, Any]:
        engine = service.engine
        try:
            longest = engine.longest()
        except NotReady:
            longest = None
        return {"id": engine.name, "object": "model", "created": engine.created, "owned_by": "shoal", "max_model_len": longest}

    @router.get("/v1/models", **contract(None, ModelList))
    async def models() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return {"object": "list", "data": [card()]}

    @router.get("/v1/models/{name:path}", **contract(None, ModelCard, 404))
    async def model(name: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        service.check_model(name)
        return card()

    return router
