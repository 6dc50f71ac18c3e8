"""The endpoints."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.requests import ClientDisconnect

from shoal.gateway.caller import CALLER
from shoal.gateway.contract import BYTES, FORM, contract
from shoal.gateway.files.answer import DeletedFile, FileAnswer, FileList
from shoal.gateway.files.store import FileStore
from shoal.gateway.files.wire import Upload
from shoal.gateway.page import Paging, listed

_PAGING = Paging(default=10000, most=10000, order=True, beside=("purpose",))


def routes(files: FileStore) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/files", **contract(Upload, FileAnswer, 499, sent=FORM))
    async def upload(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        try:
            file = await files.receive(CALLER.get().id, request.headers.get("content-type", ""), request.stream())
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; nginx's code for a client that closed the request
        return JSONResponse(file.wire())

    @router.get("/v1/files", **contract(None, FileList, 400, query=_PAGING.schemas))
    async def many(request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        page = _PAGING.page(request.query_params.items())
        found, more = await asyncio.to_thread(files.page, CALLER.get().id, page, request.query_params.get("purpose", ""))
        return listed([file.wire() for file in found], more)

    @router.get("/v1/files/{id}", **contract(None, FileAnswer, 404))
    async def one(request: Request, id: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return (await asyncio.to_thread(files.find, CALLER.get().id, id)).wire()

    @router.get("/v1/files/{id}/content", **contract(None, None, 404, media=BYTES))
    async def content(request: Request, id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        file = await asyncio.to_thread(files.find, CALLER.get().id, id)
        return FileResponse(files.path(file.id), media_type="application/octet-stream")

    @router.delete("/v1/files/{id}", **contract(None, DeletedFile, 404, 409))
    async def delete(request: Request, id: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        await asyncio.to_thread(files.delete, CALLER.get().id, id)
        return {"id": id, "object": "file", "deleted": True}

    return router
