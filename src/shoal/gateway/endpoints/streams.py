"""GET /v1/streams/ID: resumes an answer for a client that named it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from shoal.gateway.answers.events import position
from shoal.gateway.schema.contract import EVENTS, contract
from shoal.gateway.service import Service, Streaming


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/streams/{id}", **contract(None, None, 400, 404, 503, media=EVENTS, headers={"Last-Event-ID": {"type": "string"}}))
    async def stream(request: Request, id: str, after: str | None = None) -> Response:
        answer = await service.answers.find(id)
        since = position(request.headers.get("last-event-id", after), answer.job.choices)
        service.answers.enter(answer)
        return Streaming(service.answers, answer, since)

    return router
