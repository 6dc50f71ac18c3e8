"""Greedy answers to a chat over HTTP, left alone or with a node killed in the midst of the stream."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

from tests.support.cluster import Cluster

Messages = list[dict[str, str]]


def _body(messages: Messages, tokens: int, **fields: Any) -> dict[str, Any]:
    return {"messages": messages, "max_tokens": tokens, "temperature": 0, **fields}


def answer(made: Cluster, messages: Messages, tokens: int) -> str:
    got = made.http.post("/v1/chat/completions", json=_body(messages, tokens))
    assert got.status_code == 200, got.text
    return got.json()["choices"][0]["message"]["content"]


def pieces(made: Cluster, messages: Messages, tokens: int) -> Iterator[str]:
    """Of an answer, as a stream hears it."""
    with made.http.stream("POST", "/v1/chat/completions", json=_body(messages, tokens, stream=True)) as stream:
        assert stream.status_code == 200, stream.read()
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                yield event["choices"][0]["delta"].get("content") or ""


def disturbed(made: Cluster, name: str, messages: Messages, tokens: int) -> str:
    """The answer as a stream hears it; the node of that name is killed after the fifth piece of text."""
    (node,) = (node for node in made.living if name in node.arguments)
    said: list[str] = []
    for piece in pieces(made, messages, tokens):
        said.append(piece)
        if sum(map(bool, said)) == 5 and node.popen.poll() is None:
            assert not made.head.popen.poll() and made.metric("sequences_running") == 1
            node.signal(signal.SIGKILL)
            node.wait()
    return "".join(said)
