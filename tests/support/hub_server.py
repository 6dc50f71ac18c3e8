"""A local server that speaks as much of the hub's API as shoal asks for, and a second one that large files are redirected to, as the hub does."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.threaded import served_by


class Hub:
    """`commits`: files by commit, oldest first; `main` is the newest. `asked`: method, path and range of every request."""

    def __init__(self, name: str, *commits: dict[str, bytes]) -> None:
        self.name = name
        self.commits = {hashlib.sha1(str(i).encode()).hexdigest(): files for i, files in enumerate(commits)}
        self.asked: list[tuple[str, str, str | None]] = []
        self.status: int | None = None
        """Answer everything with this."""
        self.cut: dict[str, int] = {}
        """Break the connection after so many bytes of a file, once."""
        self.spoilt: dict[str, bytes] = {}
        """Content to send in place of a file's, as often as it is asked for."""
        self.large = 8192
        """Bytes from which on a file is a large one, with a hash and in another place."""
        self.ranges = True
        """The place of large files sends parts of them."""
        self.gated = False
        self.token: str | None = None
        """The only one that is let in, where something is gated or private."""
        self.private = False
        self.found: list[dict[str, Any]] = []
        """What a search finds."""
        self.given: list[tuple[str, str | None]] = []
        """Authorization headers: who got them ('hub' or 'cdn'), and what."""
        self.url = self.cdn = ""

    @property
    def main(self) -> str:
        return list(self.commits)[-1]

    def commit(self, revision: str) -> str | None:
        return self.main if revision == "main" else revision if revision in self.commits else None

    def fetched(self) -> set[str]:
        """Files whose content was asked for."""
        return {path.rsplit("/", 1)[-1] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path}

    @contextmanager
    def running(self) -> Iterator[Hub]:
        with served_by(_handler(self, _large)) as self.cdn, served_by(_handler(self, _api)) as self.url:
            yield self


@lru_cache(64)
def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@lru_cache(64)
def sha256(content: bytes) -> str:
    """Known from before of a file that is asked for again: it may be a large one."""
    return hashlib.sha256(content).hexdigest()


@lru_cache(64)
def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def _handler(hub: Hub, answer: Any) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range")))
            hub.given.append(("hub" if answer is _api else "cdn", self.headers.get("Authorization")))
            if hub.status is not None:
                return self.say(hub.status)
            return answer(hub, self, path)

        def say(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", headers.get("Content_Length", str(len(body))))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def content(self, file: str, content: bytes, ranges: bool, **headers: str) -> None:
            """All of it, or the part that was asked for."""
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            begin, end = 0, len(content)
            if asked and ranges:
                begin, end = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
                headers["Content_Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            body = hub.spoilt.get(file, content)[begin:end]
            if self.command == "GET" and (cut := hub.cut.get(file)) is not None and begin <= cut < end:
                del hub.cut[file]
                return self._break_off(body, cut - begin)
            return self.say(206 if asked and ranges else 200, body, **headers)

        def _break_off(self, body: bytes, cut: int) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.close_connection = True

    return Handler


def _api(hub: Hub, request: Any, path: str) -> None:
    if path == "/api/models":
        return _search(hub, request)
    if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path):
        return _describe(hub, request, match[1], match[2], match[3] or "main")
    if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
        return _resolve(hub, request, match[1], match[2], match[3])
    return request.say(404)


def _search(hub: Hub, request: Any) -> None:
    query = parse_qs(urlsplit(request.path).query)
    words = query.get("search", [""])[0].lower().split()
    found = [info for info in hub.found if all(word in info["id"].lower() for word in words)]
    found.sort(key=lambda info: -info["downloads"])
    request.say(200, json.dumps(found[: int(query["limit"][0])]).encode(), Content_Type="application/json")


def _known(hub: Hub, request: Any, name: str, revision: str) -> str | None:
    if name != hub.name or (hub.private and not _let_in(hub, request)):
        # Whoever sent no token is not told whether a repository is private or is not there.
        request.say(
            404 if request.headers.get("Authorization") else 401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found"
        )
        return None
    if (commit := hub.commit(revision)) is None:
        request.say(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
    return commit


def _let_in(hub: Hub, request: Any) -> bool:
    return hub.token is not None and request.headers.get("Authorization") == f"Bearer {hub.token}"


def _describe(hub: Hub, request: Any, name: str, kind: str | None, revision: str) -> None:
    if (commit := _known(hub, request, name, revision)) is None:
        return
    files = hub.commits[commit]
    blobs = "blobs=" in request.path
    content: Any = {
        "id": name,
        "sha": commit,
        "siblings": [{"rfilename": f, **(_stored(hub, c) if blobs else {})} for f, c in files.items()],
        "tags": [],
        "downloads": 0,
        "private": hub.private,
        "gated": "manual" if hub.gated else False,
    }
    if kind == "tree":
        content = [{"type": "file", "path": f, "size": len(c), "oid": git_hash(c)} for f, c in files.items()]
    request.say(200, json.dumps(content).encode(), Content_Type="application/json")


def _stored(hub: Hub, content: bytes) -> dict[str, Any]:
    """What the hub says of a file where it is asked for more than names."""
    size = len(content)
    if size < hub.large:
        return {"size": size, "blobId": git_hash(content)}
    return {"size": size, "blobId": "0" * 40, "lfs": {"size": size, "sha256": sha256(content), "pointerSize": 1}}


def _resolve(hub: Hub, request: Any, name: str, revision: str, file: str) -> None:
    if (commit := _known(hub, request, name, revision)) is None:
        return None
    if hub.gated and not _let_in(hub, request):
        status = 403 if request.headers.get("Authorization") else 401
        return request.say(status, X_Error_Code="GatedRepo", X_Error_Message=f"Access to model {name} is restricted.")
    content = hub.commits[commit].get(file)
    if content is None:
        return request.say(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
    if len(content) < hub.large:
        return request.content(file, content, True, ETag=f'"{git_hash(content)}"', X_Repo_Commit=commit, Accept_Ranges="bytes")
    return request.say(
        302,
        Location=f"{hub.cdn}/resolve/{commit}/{quote(file)}?Signature=x",
        X_Linked_ETag=f'"{sha256(content)}"',
        X_Linked_Size=str(len(content)),
        X_Repo_Commit=commit,
    )


def _large(hub: Hub, request: Any, path: str) -> None:
    """Where large files are: no tokens, but a signature."""
    match = re.fullmatch(r"/resolve/([^/]+)/(.+)", path)
    if match is None or "Signature=x" not in request.path:
        return request.say(403)
    content = hub.commits[match[1]][match[2]]
    return request.content(match[2].rsplit("/", 1)[-1], content, hub.ranges, ETag=f'"{_md5(content)}"')
