"""The endpoints of batches."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from fastapi import APIRouter, Request

from shoal.errors import Conflict, InvalidRequest, NotReady, UnknownObject
from shoal.gateway.auth.caller import CALLER
from shoal.gateway.endpoints.batches.answer import BatchAnswer, BatchList
from shoal.gateway.endpoints.batches.state import BatchStatus
from shoal.gateway.endpoints.batches.store import BatchStore
from shoal.gateway.endpoints.batches.wire import BatchRequest
from shoal.gateway.endpoints.files.store import PURPOSE, FileStore
from shoal.gateway.engines import Engines
from shoal.gateway.schema.contract import contract
from shoal.gateway.schema.page import Paging, listed
from shoal.gateway.schema.wire import parse
from shoal.gateway.service import json_body

_PAGING = Paging(default=20, most=100)


def routes(batches: BatchStore, files: FileStore, engines: Engines, endpoints: Collection[str]) -> APIRouter:
    """endpoints: those that the requests of a batch may use."""
    router = APIRouter()

    def make(who: str, body: BatchRequest) -> dict[str, Any]:
        if body.endpoint not in endpoints:
            raise InvalidRequest(f"a batch's endpoint must be {' or '.join(sorted(endpoints))}", "endpoint")
        try:
            file = files.find(who, body.input_file_id)
        except UnknownObject as error:
            raise InvalidRequest(str(error), "input_file_id") from None
        if file.purpose != PURPOSE:
            raise InvalidRequest(f"{file.id} has the purpose '{file.purpose}'; a batch reads one with '{PURPOSE}'", "input_file_id")
        return batches.create(who, _models(engines), body.endpoint, file.id, body.metadata).wire()

    def cancel(who: str, id: str) -> dict[str, Any]:
        batch = batches.find(who, id)
        if batch.status in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
            return batch.wire()
        try:
            return batches.move(id, BatchStatus.CANCELLING).wire()
        except Conflict:
            if (batch := batches.get(id)).status in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):  # another request was quicker
                return batch.wire()
            raise Conflict(f"{id} is {batch.status}, and can no longer be cancelled", "batch_id") from None

    @router.post("/v1/batches", **contract(BatchRequest, BatchAnswer))
    async def create(request: Request) -> dict[str, Any]:
        body = parse(BatchRequest, await json_body(request))
        return await asyncio.to_thread(make, CALLER.get().id, body)

    @router.get("/v1/batches", **contract(None, BatchList, 400, query=_PAGING.schemas))
    async def many(request: Request) -> dict[str, Any]:
        page = _PAGING.page(request.query_params.items())
        found, more = await asyncio.to_thread(batches.page, CALLER.get().id, page)
        return listed([batch.wire() for batch in found], more)

    @router.get("/v1/batches/{id}", **contract(None, BatchAnswer, 404))
    async def one(request: Request, id: str) -> dict[str, Any]:
        return (await asyncio.to_thread(batches.find, CALLER.get().id, id)).wire()

    @router.post("/v1/batches/{id}/cancel", **contract(None, BatchAnswer, 404, 409))
    async def end(request: Request, id: str) -> dict[str, Any]:
        return await asyncio.to_thread(cancel, CALLER.get().id, id)

    return router


def _models(engines: Engines) -> list[str]:
    """Those that a batch may ask, the default first. Raises NotReady."""
    if not engines.names:
        raise NotReady("no model is loaded")
    return [*engines.names]
