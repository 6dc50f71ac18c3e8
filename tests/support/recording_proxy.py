"""An HTTP proxy that writes down what it is asked, and carries plain requests to one server."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from tests.support.threaded import served_by

VARIABLES = tuple(name for lower in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy") for name in (lower, lower.upper()))


class RecordingProxy:
    """asked: method and target of every request, as they came. target: (host, port) that plain requests go to, whatever they name."""

    def __init__(self, target: tuple[str, int] | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.target = target
        self.url = ""

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that is to use it for everything."""
        return {**dict.fromkeys(VARIABLES, self.url), "no_proxy": "", "NO_PROXY": ""}

    @contextlib.contextmanager
    def running(self) -> Iterator[RecordingProxy]:
        with served_by(_handler(self)) as self.url:
            yield self


def _handler(proxy: RecordingProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        def do_CONNECT(self) -> None:
            proxy.asked.append((self.command, self.path))
            self.send_error(502)

        def _carry(self) -> None:
            proxy.asked.append((self.command, self.path))
            if proxy.target is None:
                self.send_error(502)
                return
            parts = urlsplit(self.path)
            there = http.client.HTTPConnection(*proxy.target)
            headers = {key: value for key, value in self.headers.items() if not key.lower().startswith("proxy-")}
            there.request(self.command, parts.path + (f"?{parts.query}" if parts.query else ""), headers=headers)
            answer = there.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(key, value)
            self.send_header("Content-Length", answer.headers["Content-Length"] or str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            there.close()

        do_GET = do_HEAD = do_POST = _carry

    return Handler
