"""The endpoints."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from shoal.gateway.contract import contract
from shoal.gateway.dialect import ANTHROPIC, REQUEST_ID, request_id
from shoal.gateway.job import CHOSEN
from shoal.gateway.messages.answer import MessageAnswer, MessageTokens
from shoal.gateway.messages.job import count, message_job
from shoal.gateway.messages.wire import CountRequest, MessagesRequest
from shoal.gateway.service import Service, json_body
from shoal.gateway.wire import parse
from shoal.gateway.work import work

_SPOKEN = (ANTHROPIC,)


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/messages",
        **contract(MessagesRequest, MessageAnswer, 404, 409, 499, streams=True, headers=CHOSEN, dialects=_SPOKEN),
    )
    async def create(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        answer = await service.respond(request, "messages", MessagesRequest, message_job)
        if (id := answer.headers.get("x-request-id")) is not None:
            answer.headers[REQUEST_ID] = id
        return answer

    @router.post("/v1/messages/count_tokens", **contract(CountRequest, MessageTokens, 404, dialects=_SPOKEN))
    async def count_tokens(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await json_body(request)

        def counted() -> int:
            parsed = parse(CountRequest, body)
            service.check_model(parsed.model)
            return count(parsed, service.engine)

        tokens = await work(request.state.size, counted)
        return JSONResponse({"input_tokens": tokens}, headers={REQUEST_ID: request_id(request.headers)})

    return router
