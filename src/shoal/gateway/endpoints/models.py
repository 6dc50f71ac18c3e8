"""GET /v1/models: the model that is served."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request

from shoal.errors import NotReady
from shoal.gateway.http.dialect import ANTHROPIC, VERSION, spoken, spoken_at
from shoal.gateway.schema.contract import contract
from shoal.gateway.schema.moment import moment
from shoal.gateway.schema.wire import Shape
from shoal.gateway.service import Service


class ModelCard(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    """vLLM's field: tokens of the longest prompt and answer, once known."""


class ModelList(Shape):
    object: Literal["list"]
    data: list[ModelCard]


class ModelInfo(Shape):
    """Anthropic's."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: int | None
    max_tokens: int | None


class ModelPage(Shape):
    """Anthropic's."""

    data: list[ModelInfo]
    first_id: str
    last_id: str
    has_more: Literal[False]


_PATH = "/v1/models"
_SPOKEN = spoken_at(_PATH)
_HEADERS = {VERSION: {"type": "string"}}


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    def longest() -> int | None:
        try:
            return service.engine.longest()
        except NotReady:
            return None

    def info() -> dict[str, Any]:
        engine, tokens = service.engine, longest()
        named = {"id": engine.name, "display_name": engine.name}
        return {
            "type": "model",
            **named,
            "created_at": moment(engine.created),
            "lifecycle": "active",
            "max_input_tokens": tokens,
            "max_tokens": tokens,
        }

    def card() -> dict[str, Any]:
        engine = service.engine
        return {"id": engine.name, "object": "model", "created": engine.created, "owned_by": "shoal", "max_model_len": longest()}

    def to_anthropic(request: Request) -> bool:
        return spoken(_PATH, request.headers) is ANTHROPIC

    @router.get(_PATH, **contract(None, ModelList | ModelPage, headers=_HEADERS, dialects=_SPOKEN))
    async def models(request: Request) -> dict[str, Any]:
        name = service.engine.name
        if to_anthropic(request):
            return {"data": [info()], "first_id": name, "last_id": name, "has_more": False}
        return {"object": "list", "data": [card()]}

    @router.get("/v1/models/{name:path}", **contract(None, ModelCard | ModelInfo, 404, headers=_HEADERS, dialects=_SPOKEN))
    async def model(request: Request, name: str) -> dict[str, Any]:
        service.check_model(name)
        return info() if to_anthropic(request) else card()

    return router
