"""The completions endpoint."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from shoal.gateway.answers.job import CHOSEN
from shoal.gateway.endpoints.completions.answer import CompletionAnswer
from shoal.gateway.endpoints.completions.job import completion_job
from shoal.gateway.endpoints.completions.wire import CompletionRequest
from shoal.gateway.schema.contract import contract
from shoal.gateway.service import Service


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/completions", **contract(CompletionRequest, CompletionAnswer, 404, 409, 499, 502, 504, 508, streams=True, headers=CHOSEN)
    )
    async def completions(request: Request) -> Response:
        return await service.respond(request, "completions", CompletionRequest, completion_job)

    return router
