"""The console at /console/: the files of a web page, which asks the API for what it shows. `make console` builds them."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import msgspec
from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from shoal.gateway.service import Service

FOLDER = Path(__file__).parents[2] / "console"
"""Where the files are, if they were built."""
INDEX = "index.html"
_MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HASHED = re.compile(r"assets/.+-[\w-]{8}\.\w+")
"""Names that contain a digest of the content."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_MISSING = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>shoal</title>
<h1>The console was not built</h1>
<p>This shoal runs from source. In its folder, <code>make console</code> builds the console; then start shoal again. Released wheels
contain it. Until then, <code>shoal nodes</code> shows the cluster in a terminal.</p>
"""


class ConsoleFile(msgspec.Struct, frozen=True):
    body: bytes
    media: str
    tag: str
    """Its ETag."""
    hashed: bool

    def response(self, request: Request) -> Response:
        kept = "public, max-age=31536000, immutable" if self.hashed else "no-cache"
        headers = {**HEADERS, "ETag": self.tag, "Cache-Control": kept}
        if self.tag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media, headers=headers)


def built() -> bool:
    return (FOLDER / INDEX).is_file()


def console_files() -> dict[str, ConsoleFile]:
    """By name, relative to the folder. Empty: the console was not built."""
    if not built():
        return {}
    found: dict[str, ConsoleFile] = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in _MEDIA and path.is_file():
            name, body = path.relative_to(FOLDER).as_posix(), path.read_bytes()
            found[name] = ConsoleFile(body, _MEDIA[path.suffix], f'"{sha256(body).hexdigest()[:32]}"', _HASHED.fullmatch(name) is not None)
    return found


def routes(_: Service) -> APIRouter:
    router, files = APIRouter(), console_files()

    async def page(request: Request) -> Response:
        if not files:
            return Response(_MISSING, 503, HEADERS, media_type=_MEDIA[".html"])
        return files[INDEX].response(request)

    async def file(request: Request) -> Response:
        if (found := files.get(request.path_params["name"])) is None:
            raise HTTPException(404)
        return found.response(request)

    async def below(_: Request) -> Response:
        return RedirectResponse("console/", 308)  # relative: a proxy may serve all of this below a prefix

    router.add_route("/console", below, ["GET"], include_in_schema=False)
    router.add_route("/console/", page, ["GET"], include_in_schema=False)
    router.add_route("/console/{name:path}", file, ["GET"], include_in_schema=False)
    return router
