"""Files and batches at a gateway: they are at the head."""

from __future__ import annotations

from fastapi import APIRouter

from shoal.errors import KeptElsewhere

_METHODS = ["GET", "POST", "DELETE"]


def routes(where: str) -> APIRouter:
    """where: the head's own API is, for people."""
    router = APIRouter()

    @router.api_route("/v1/files", methods=_METHODS, include_in_schema=False)
    @router.api_route("/v1/files/{rest:path}", methods=_METHODS, include_in_schema=False)
    async def files() -> None:
        raise KeptElsewhere("files", where)

    @router.api_route("/v1/batches", methods=_METHODS, include_in_schema=False)
    @router.api_route("/v1/batches/{rest:path}", methods=_METHODS, include_in_schema=False)
    async def batches() -> None:
        raise KeptElsewhere("batches", where)

    return router
