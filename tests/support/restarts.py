"""A client that goes on over restarts of the head."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx

from tests.support.cluster import Cluster

TOKENS = 160
BODIES: list[dict[str, Any]] = [
    {"prompt": "The capital of France is", "temperature": 0},
    {"prompt": "1, 2, 3,", "temperature": 0, "frequency_penalty": 0.4, "repetition_penalty": 1.1},
    {"prompt": "A story about the sea:", "temperature": 1, "seed": 11, "n": 2},
]


def said(made: Cluster) -> list[list[str]]:
    """What clients are told that nothing happens to: all of them at once."""

    def ask(body: dict[str, Any]) -> list[str]:
        return made.texts(tokens=TOKENS, **body)

    with ThreadPoolExecutor(len(BODIES)) as pool:
        return list(pool.map(ask, BODIES))


class Refused(Exception):
    """The head says that another one leads."""


class Client:
    """Reads a stream from several heads, one event after another."""

    def __init__(self, made: Cluster, number: int, name: str = "client") -> None:
        """name: different for clients of one cluster that ask for the same."""
        self._made, self.id = made, f"{name}-{number}"
        self._body = {**BODIES[number], "max_tokens": TOKENS, "stream": True, "stream_options": {"include_usage": True}}
        self.ids: list[str] = []
        self.texts: dict[int, str] = {}
        self.usage: dict[str, Any] = {}
        self.done = False

    def begin(self) -> None:
        """Reads a few events, and leaves the rest of them where they are."""
        self._stream = self._made.http.stream("POST", "/v1/completions", json=self._body, headers={"X-Request-Id": self.id})
        self._answer = self._stream.__enter__()
        assert self._answer.status_code == 200
        self._lines = self._answer.iter_lines()
        while len(self.ids) < 6:
            self._take(next(self._lines))

    def lose(self) -> None:
        """The connection breaks; what had come before counts."""
        self.read_until_lost()
        assert not self.done

    def read_until_lost(self) -> None:
        """Or to the end."""
        try:
            for line in self._lines:
                self._take(line)
        except (httpx.TransportError, Refused):
            pass
        self._stream.__exit__(None, None, None)

    def come_back(self) -> None:
        """Reads one more event after those that came."""
        seen = len(self.ids)
        self._stream = self._made.http.stream("GET", f"/v1/streams/{self.id}", headers={"Last-Event-ID": self.ids[-1]})
        self._answer = self._stream.__enter__()
        assert self._answer.status_code == 200, self._answer.read()
        self._lines = self._answer.iter_lines()
        while len(self.ids) <= seen:
            self._take(next(self._lines))

    def goes_to(self, made: Cluster) -> None:
        """It comes back to another head."""
        self._made = made

    def go_on(self) -> None:
        self.come_back()
        self.read_on()

    def read_on(self) -> None:
        """To the end."""
        for line in self._lines:
            self._take(line)
        self._stream.__exit__(None, None, None)

    def _take(self, line: str) -> None:
        if line.startswith("id: "):
            self.ids.append(line[4:])
        elif line == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            if "ask again, another" in event.get("error", {}).get("message", ""):
                raise Refused
            assert "error" not in event, event
            self.usage = event.get("usage") or self.usage
            for choice in event["choices"]:
                self.texts[choice["index"]] = self.texts.get(choice["index"], "") + choice["text"]
