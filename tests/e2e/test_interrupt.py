"""Ctrl-C: while a model is fetched, and under an open stream."""

from __future__ import annotations

import http.server
import json
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.support.cluster import Process, served, until


class Silent(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(30)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None: ...


def test_ctrl_c_while_fetching_ends_up(tmp_path: Path) -> None:
    hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    hub.daemon_threads = True
    asked = threading.Event()
    hub.process_request = lambda *a, real=hub.process_request: (asked.set(), real(*a))[1]  # pyright: ignore[reportAttributeAccessIssue]
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    process = Process(tmp_path / "up.log", "up", "--model", "hf:a/b", "--port", "0", HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}")
    try:
        assert asked.wait(20)
        process.signal(signal.SIGINT)
        until(lambda: process.popen.poll() is not None, process.describe, 10)
        assert "Traceback" not in process.said
    finally:
        process.end()
        hub.shutdown()
        hub.server_close()


@pytest.mark.real
def test_ctrl_c_under_an_open_stream_ends_it_with_an_error_event(tmp_path: Path) -> None:
    with served(tmp_path, 1, "--grace", "0") as made:
        body = {"prompt": "A story", "max_tokens": 4000, "temperature": 1, "stream": True}
        with made.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            made.head.signal(signal.SIGINT)
            last = list(lines)[-1]
        assert "error" in json.loads(last.removeprefix("data: "))
        made.head.wait()
        assert "Traceback" not in made.head.said, made.head.said
