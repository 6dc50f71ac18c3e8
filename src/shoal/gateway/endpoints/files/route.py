"""The endpoints of files."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from shoal.gateway.auth.caller import CALLER
from shoal.gateway.endpoints.files.answer import DeletedFile, FileAnswer, FileList
from shoal.gateway.endpoints.files.store import FileStore
from shoal.gateway.endpoints.files.wire import Upload
from shoal.gateway.http.dialect import OPENAI
from shoal.gateway.http.faults import Fault
from shoal.gateway.schema.contract import BYTES, FORM, contract
from shoal.gateway.schema.page import Paging, listed


class _Content(FileResponse):
    """Refuses invalid ranges, or ranges beyond the file's end, in this API's words."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal: Fault | None = None

        async def watched(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                range = Headers(scope=scope).get("range", "")[:64]
                what = "lies beyond the file's end" if message["status"] == 416 else "is no range of bytes"
                refusal = Fault(message["status"], f"'{range}' {what}", "invalid_request_error", "Range")
                answer = OPENAI.response(refusal)
                answer.headers.update({k: v for k, v in Headers(raw=message["headers"]).items() if k == "content-range"})
                await answer(scope, receive, send)
            elif refusal is None:
                await send(message)

        await super().__call__(scope, receive, watched)


_RANGE = {"Range": {"type": "string", "pattern": "^bytes=[0-9]{1,9}-[0-9]{0,9}$"}}
_PART: dict[int | str, dict[str, Any]] = {
    206: {
        "description": "The part that was asked for",
        "content": {media: {"schema": {"type": "string"}} for media in (BYTES, "multipart/byteranges")},
    }
}
_PAGING = Paging(default=10000, most=10000, order=True, beside=("purpose",))


def routes(files: FileStore) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/files", **contract(Upload, FileAnswer, 499, sent=FORM))
    async def upload(request: Request) -> Response:
        try:
            file = await files.receive(CALLER.get().id, request.headers.get("content-type", ""), request.stream())
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; nginx's code for a client that closed the request
        return JSONResponse(file.wire())

    @router.get("/v1/files", **contract(None, FileList, 400, query=_PAGING.schemas))
    async def many(request: Request) -> dict[str, Any]:
        page = _PAGING.page(request.query_params.items())
        found, more = await asyncio.to_thread(files.page, CALLER.get().id, page, request.query_params.get("purpose", ""))
        return listed([file.wire() for file in found], more)

    @router.get("/v1/files/{id}", **contract(None, FileAnswer, 404))
    async def one(request: Request, id: str) -> dict[str, Any]:
        return (await asyncio.to_thread(files.find, CALLER.get().id, id)).wire()

    @router.get("/v1/files/{id}/content", responses=_PART, **contract(None, None, 400, 404, 416, media=BYTES, headers=_RANGE))
    async def content(request: Request, id: str) -> Response:
        file = await asyncio.to_thread(files.find, CALLER.get().id, id)
        return _Content(files.path(file.id), media_type="application/octet-stream")

    @router.delete("/v1/files/{id}", **contract(None, DeletedFile, 404, 409))
    async def delete(request: Request, id: str) -> dict[str, Any]:
        await asyncio.to_thread(files.delete, CALLER.get().id, id)
        return {"id": id, "object": "file", "deleted": True}

    return router
