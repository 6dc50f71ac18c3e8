"""GET /v1/models: the models that may be asked for, and their aliases."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from shoal.errors import NotReady
from shoal.gateway.http.dialect import ANTHROPIC, VERSION, spoken, spoken_at
from shoal.gateway.schema.contract import contract
from shoal.gateway.schema.moment import moment
from shoal.gateway.schema.wire import Shape
from shoal.gateway.service import Service
from shoal.serving.aliases import standing


class ModelCard(Shape):
    id: str
    object: Literal["model"]
    created: int
    """0 for a model that is not loaded."""
    owned_by: str
    root: str
    """vLLM's field: the model that answers. Of an alias it is what the alias stands for."""
    max_model_len: int | None
    """vLLM's field: tokens of the longest prompt and answer, once known."""
    via: list[str] = Field(default_factory=list[str])
    """Ids of the servers that a request passes through, this one's first; left out where it has no upstreams. So servers that are upstreams
    of each other do not offer one another what they have from there."""


class ModelList(Shape):
    object: Literal["list"]
    data: list[ModelCard]


class ModelInfo(Shape):
    """Anthropic's. display_name: the model that answers."""

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
    first_id: str | None
    last_id: str | None
    has_more: Literal[False]


_PATH = "/v1/models"
_SPOKEN = spoken_at(_PATH)
_HEADERS = {VERSION: {"type": "string"}}


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    def listed() -> dict[str, str]:
        """Every name that may be asked for, and the model that answers."""
        engines = service.engines
        return {
            **{name: name for name in engines.names},
            **{alias: engines.resolve(alias) for alias in standing(engines.aliases, engines.names)},
        }

    def known(model: str) -> tuple[int, int | None]:
        """When it was loaded, and tokens of the longest sequence."""
        engine = next((engine for engine in service.engines.all if engine.name == model), None)
        if engine is None:
            elsewhere = [each for upstream in service.engines.upstreams for each in upstream.models if each.name == model]
            return 0, max((each.context for each in elsewhere), default=0) or None
        try:
            return engine.created, engine.longest()
        except NotReady:
            return engine.created, None

    def info(id: str, model: str) -> dict[str, Any]:
        created, tokens = known(model)
        return {
            "type": "model",
            "id": id,
            "display_name": model,
            "created_at": moment(created),
            "lifecycle": "active",
            "max_input_tokens": tokens,
            "max_tokens": tokens,
        }

    def card(id: str, model: str) -> dict[str, Any]:
        created, tokens = known(model)
        card = {"id": id, "object": "model", "created": created, "owned_by": "shoal", "root": model, "max_model_len": tokens}
        return {**card, "via": [*via]} if (via := service.engines.via(model)) else card

    def to_anthropic(request: Request) -> bool:
        return spoken(_PATH, request.headers) is ANTHROPIC

    @router.get(_PATH, **contract(None, ModelList | ModelPage, headers=_HEADERS, dialects=_SPOKEN))
    async def models(request: Request) -> dict[str, Any]:
        names = listed()
        if to_anthropic(request):
            ends = [*names] or [None]
            return {"data": [info(*each) for each in names.items()], "first_id": ends[0], "last_id": ends[-1], "has_more": False}
        return {"object": "list", "data": [card(*each) for each in names.items()]}

    @router.get("/v1/models/{name:path}", **contract(None, ModelCard | ModelInfo, 404, headers=_HEADERS, dialects=_SPOKEN))
    async def model(request: Request, name: str) -> dict[str, Any]:
        return (info if to_anthropic(request) else card)(name, service.engines.resolve(name))

    return router
