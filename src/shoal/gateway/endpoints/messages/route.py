"""The endpoints of messages."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from shoal.gateway.answers.job import CHOSEN
from shoal.gateway.endpoints.messages.answer import MessageAnswer, MessageTokens
from shoal.gateway.endpoints.messages.job import count, message_job
from shoal.gateway.endpoints.messages.wire import CountRequest, MessagesRequest
from shoal.gateway.http.dialect import ANTHROPIC, REQUEST_ID, request_id
from shoal.gateway.http.work import work
from shoal.gateway.schema.contract import contract
from shoal.gateway.schema.wire import parse
from shoal.gateway.service import Service, json_body

_SPOKEN = (ANTHROPIC,)


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/messages",
        **contract(MessagesRequest, MessageAnswer, 404, 409, 499, 502, 504, 508, streams=True, headers=CHOSEN, dialects=_SPOKEN),
    )
    async def create(request: Request) -> Response:
        answer = await service.respond(request, "messages", MessagesRequest, message_job)
        if (id := answer.headers.get("x-request-id")) is not None:
            answer.headers[REQUEST_ID] = id
        return answer

    @router.post("/v1/messages/count_tokens", **contract(CountRequest, MessageTokens, 404, dialects=_SPOKEN))
    async def count_tokens(request: Request) -> Response:
        body = await json_body(request)
        engine = await service.engine(body)
        tokens = await work(request.state.size, lambda: count(parse(CountRequest, body), engine))
        return JSONResponse({"input_tokens": tokens}, headers={REQUEST_ID: request_id(request.headers)})

    return router
