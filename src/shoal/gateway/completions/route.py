"""The endpoint."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from shoal.gateway.completions.answer import CompletionAnswer
from shoal.gateway.completions.job import completion_job
from shoal.gateway.completions.wire import CompletionRequest
from shoal.gateway.contract import contract
from shoal.gateway.job import CHOSEN
from shoal.gateway.service import Service


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", **contract(CompletionRequest, CompletionAnswer, 404, 409, 499, streams=True, headers=CHOSEN))
    async def completions(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await service.respond(request, "completions", CompletionRequest, completion_job)

    return router
