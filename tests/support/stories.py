"""Streams of a cluster that a client reads, leaves or resets."""

from __future__ import annotations

import json
import socket
import struct
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from tests.support.cluster import Cluster

STORY = {"prompt": "A very long story about the sea:", "max_tokens": 400, "temperature": 1}


def open_story(made: Cluster, stream: bool, n: int = 1) -> socket.socket:
    """A client's bare connection, its request sent."""
    body = json.dumps({**STORY, "stream": stream, "n": n}).encode()
    client = socket.create_connection(("127.0.0.1", made.port))
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return client


def reset(client: socket.socket) -> None:
    """Goes away at once, as a process that is killed does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def lines_of(made: Cluster, tokens: int, seen: threading.Event) -> list[str]:
    """A stream's events; `seen` is set after the first."""
    body = {"prompt": "A story:", "max_tokens": tokens, "temperature": 0, "stream": True}
    events: list[str] = []
    with made.http.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                seen.set()
    return events


def streaming(made: Cluster, pool: ThreadPoolExecutor, tokens: int) -> Future[list[str]]:
    """A stream that has begun."""
    stream = pool.submit(lines_of, made, tokens, seen := threading.Event())
    assert seen.wait(30)
    return stream
