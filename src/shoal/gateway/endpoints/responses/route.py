"""The endpoints of responses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from shoal.errors import InvalidRequest, UnknownAnswer
from shoal.gateway.answers.job import CHOSEN
from shoal.gateway.auth.caller import CALLER
from shoal.gateway.endpoints.responses.answer import CompactedAnswer, DeletedResponse, InputItems, InputTokens, ResponseAnswer
from shoal.gateway.endpoints.responses.compaction import compaction_job
from shoal.gateway.endpoints.responses.job import ResponseJob, check_include, response_job
from shoal.gateway.endpoints.responses.store import Responses
from shoal.gateway.endpoints.responses.wire import CompactRequest, ResponseRequest
from shoal.gateway.http.work import work
from shoal.gateway.schema.contract import contract
from shoal.gateway.schema.wire import parse
from shoal.gateway.service import Service, Streaming, json_body


def page(items: Sequence[dict[str, Any]], limit: int, order: str, after: str | None) -> dict[str, Any]:
    """A page of a list, in the form of OpenAI's API. Raises InvalidRequest."""
    ordered = list(items) if order == "asc" else list(items)[::-1]
    if after is not None:
        at = next((i for i, item in enumerate(ordered) if item["id"] == after), None)
        if at is None:
            raise InvalidRequest(f"there is no item '{after}' in this list", "after")
        ordered = ordered[at + 1 :]
    data = ordered[:limit]
    ids = [item["id"] for item in data] or [None]
    return {"object": "list", "data": data, "first_id": ids[0], "last_id": ids[-1], "has_more": len(ordered) > limit}


def routes(service: Service, store: Responses) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/responses", **contract(ResponseRequest, ResponseAnswer, 404, 409, 499, 502, 504, 508, streams=True, headers=CHOSEN))
    async def create(request: Request) -> Response:
        prepare = partial(response_job, store=store)
        return await service.respond(request, "responses", ResponseRequest, prepare)

    @router.post("/v1/responses/compact", **contract(CompactRequest, CompactedAnswer, 404, 409, 499, 504, headers=CHOSEN))
    async def compact(request: Request) -> Response:
        return await service.respond(request, "responses", CompactRequest, partial(compaction_job, store=store))

    @router.post("/v1/responses/input_tokens", **contract(ResponseRequest, InputTokens, 404))
    async def count(request: Request) -> dict[str, Any]:
        body = await json_body(request)
        engine = await service.engine(body)
        job = await work(request.state.size, lambda: response_job(parse(ResponseRequest, body), engine, None, store))
        return {"object": "response.input_tokens", "input_tokens": job.prompt_tokens}

    @router.get("/v1/responses/{id}", **contract(None, ResponseAnswer, 400, 404, streams=True))
    async def retrieve(
        request: Request,
        id: str,
        stream: bool = False,
        starting_after: Annotated[int | None, Query(ge=0)] = None,
        include: Annotated[list[str] | None, Query()] = None,
    ) -> Response:
        check_include(include)
        if not stream:
            kept = await asyncio.to_thread(store.get, id, CALLER.get().id, id in service.answers)
            return JSONResponse(kept.response)
        answer = await service.answers.find(id)
        if not isinstance(answer.job, ResponseJob):
            raise UnknownAnswer(id)
        service.answers.enter(answer)
        return Streaming(service.answers, answer, None if starting_after is None else [starting_after])

    @router.delete("/v1/responses/{id}", **contract(None, DeletedResponse, 404))
    async def delete(request: Request, id: str) -> dict[str, Any]:
        await asyncio.to_thread(store.delete, id, CALLER.get().id)
        return {"id": id, "object": "response", "deleted": True}

    @router.post("/v1/responses/{id}/cancel", **contract(None, ResponseAnswer, 400, 404))
    async def cancel(request: Request, id: str) -> Response:
        await asyncio.to_thread(store.get, id, CALLER.get().id)
        raise InvalidRequest("only background responses can be cancelled, and there are none here; close the connection instead", "id")

    @router.get("/v1/responses/{id}/input_items", **contract(None, InputItems, 400, 404))
    async def input_items(
        request: Request,
        id: str,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
        include: Annotated[list[str] | None, Query()] = None,
    ) -> dict[str, Any]:
        check_include(include)
        kept = await asyncio.to_thread(store.get, id, CALLER.get().id)
        return page(kept.input, limit, order, after)

    return router
