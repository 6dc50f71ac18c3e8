"""The chat endpoint."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from shoal.gateway.answers.job import CHOSEN
from shoal.gateway.endpoints.chat.answer import ChatAnswer
from shoal.gateway.endpoints.chat.job import chat_job
from shoal.gateway.endpoints.chat.wire import ChatRequest
from shoal.gateway.schema.contract import contract
from shoal.gateway.service import Service


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", **contract(ChatRequest, ChatAnswer, 404, 409, 499, 502, 504, 508, streams=True, headers=CHOSEN))
    async def chat(request: Request) -> Response:
        return await service.respond(request, "chat", ChatRequest, chat_job)

    return router
