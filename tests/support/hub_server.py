"""A local server that speaks as much of the hub's API as huggingface_hub asks for when it fetches a snapshot."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

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
        self.large = 8192
        """Bytes from which on a file has a hash."""
        self.url = ""

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
        with served_by(_handler(self)) as self.url:
            yield self


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _say(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range")))
            if hub.status is not None:
                return self._say(hub.status)
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path):
                return self._describe(match[1], match[2], match[3] or "main")
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self._file(match[1], match[2], match[3])
            return self._say(404)

        def _known(self, name: str, revision: str) -> str | None:
            commit = hub.commit(revision) if name == hub.name else None
            if commit is None:
                self._say(404, X_Error_Code="RevisionNotFound" if name == hub.name else "RepoNotFound")
            return commit

        def _describe(self, name: str, kind: str | None, revision: str) -> None:
            if (commit := self._known(name, revision)) is None:
                return
            files = hub.commits[commit]
            content: Any = {
                "id": name,
                "sha": commit,
                "siblings": [{"rfilename": f, **self._stored(c)} for f, c in files.items()],
                "tags": [],
                "downloads": 0,
                "private": False,
            }
            if kind == "tree":
                content = [{"type": "file", "path": f, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for f, c in files.items()]
            self._say(200, json.dumps(content).encode(), Content_Type="application/json")

        def _stored(self, content: bytes) -> dict[str, Any]:
            """What the hub says of large files where it is asked for more than names."""
            if "blobs=" not in self.path or len(content) < hub.large:
                return {}
            size, sha256 = len(content), hashlib.sha256(content).hexdigest()
            return {"size": size, "blobId": "0" * 40, "lfs": {"size": size, "sha256": sha256, "pointerSize": 1}}

        def _file(self, name: str, revision: str, file: str) -> None:
            if (commit := self._known(name, revision)) is None:
                return None
            content = hub.commits[commit].get(file)
            if content is None:
                return self._say(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            headers = {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X_Repo_Commit": commit,
                "Accept_Ranges": "bytes",
            }
            begin = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")) else 0
            if begin:
                headers["Content_Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            if self.command == "GET" and (cut := hub.cut.pop(file, None)) is not None:
                return self._break_off(content, cut, headers)
            return self._say(206 if begin else 200, content[begin:], **headers)

        def _break_off(self, content: bytes, cut: int, headers: dict[str, str]) -> None:
            self.send_response(200)
            for key, value in {**headers, "Content_Length": str(len(content))}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content[:cut])
            self.wfile.flush()
            self.close_connection = True

    return Handler
