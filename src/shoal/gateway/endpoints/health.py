"""Whether the models are served, and the metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from shoal.gateway.http.dialect import OPENAI
from shoal.gateway.schema.contract import REFUSALS, contract
from shoal.gateway.schema.wire import Shape
from shoal.gateway.service import Service


class Live(Shape):
    live: bool


class ModelState(Shape):
    name: str
    ready: bool
    reason: str


class UpstreamState(Shape):
    url: str
    ready: bool
    reason: str
    models: list[str]


class Ready(Shape):
    ready: bool
    reason: str
    models: list[ModelState]
    """All that may be asked for, the default first."""
    upstreams: list[UpstreamState] = Field(default_factory=list[UpstreamState])
    """Other servers that answer for some of them; left out where there are none."""


class Health(Live, Ready):
    pass


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    def told(reason: str) -> dict[str, Any]:
        models = [{"name": name, "ready": not why, "reason": why} for name, why in service.engines.states.items()]
        told: dict[str, Any] = {"ready": not reason, "reason": reason, "models": models}
        if upstreams := service.engines.upstreams:
            told["upstreams"] = [
                {"url": each.url, "ready": not each.state, "reason": each.state, "models": [model.name for model in each.models]}
                for each in upstreams
            ]
        return told

    @router.get("/health", **contract(None, Health))
    async def health() -> dict[str, Any]:
        return {"live": True, **told(service.state())}

    @router.get("/health/live", **contract(None, Live))
    async def live() -> dict[str, Any]:
        return {"live": True}

    @router.get(
        "/health/ready",
        responses={
            200: {"model": Ready, "description": "Requests are taken"},
            404: {"model": OPENAI.error, "description": REFUSALS[404]},
            503: {"model": Ready, "description": "They are not"},
        },
        response_model=None,
    )
    async def ready(model: str | None = None) -> Response:
        """model: the only one that counts; without it, all that the server was started with."""
        reason = service.state(model)
        return JSONResponse(told(reason), 503 if reason else 200)

    @router.get("/metrics", **contract(None, None, media="text/plain"))
    async def metrics() -> Response:
        return Response(await service.engines.scrape(), media_type="text/plain; version=0.0.4")

    return router
