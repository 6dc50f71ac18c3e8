"""Requests to an OpenAI-compatible server: which server, with what key, and its streamed answer."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Protocol

import httpx2

from shoal.errors import ClusterError, ConfigError, InvalidRequest, ShoalError

_ENDPOINT = re.compile(r"/v1(/(chat/completions|completions|responses|models))?/*$")


def base_url(text: str) -> str:
    """The user's text for the server, with or without /v1, as `http://HOST:PORT`; '' stays ''. Raises ConfigError."""
    text = text.strip()
    if not text:
        return ""
    plain = _ENDPOINT.sub("", text if "://" in text else f"http://{text}").rstrip("/")
    try:
        url = httpx2.URL(plain)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"--url {text} is not an address ({error}); write one like http://127.0.0.1:8000") from error
    if url.scheme not in ("http", "https") or not url.host or re.search(r"\s", plain):
        raise ConfigError(f"--url {text} is not the address of an API; write one like http://127.0.0.1:8000")
    return plain


def _checked(key: str) -> str:
    """Raises ConfigError for a key that no header can carry."""
    key = key.strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise ConfigError("--api-key has spaces or other characters that are not in a key; copy it again")
    return key


@dataclass(frozen=True)
class ChatOptions:
    """The server to ask, and the sampling of an answer.

    url '': start a cluster on this machine. model '': the server's model. max_tokens 0: as many as fit.
    """

    url: str = ""
    key: str = ""
    model: str = ""
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", base_url(self.url))
        object.__setattr__(self, "key", _checked(self.key))

    @property
    def body(self) -> dict[str, Any]:
        """A request body without its messages."""
        chosen = {"model": self.model or None, "max_tokens": self.max_tokens or None, "seed": self.seed}
        asked = {"temperature": self.temperature, "stream": True, "stream_options": {"include_usage": True}}
        return {**asked, **{name: value for name, value in chosen.items() if value is not None}}

    @asynccontextmanager
    async def _client(self) -> AsyncGenerator[httpx2.AsyncClient]:
        """Raises ClusterError if the server does not answer."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            async with httpx2.AsyncClient(timeout=httpx2.Timeout(10.0, read=None), headers=headers, trust_env=False) as http:
                yield http
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            why = str(error) or type(error).__name__
            raise ClusterError(f"{self.url} does not answer: {why}; is `shoal up` or `shoal serve` running there?") from error

    async def found(self) -> ChatOptions:
        """The options with the server's model if none was named. Raises ClusterError; InvalidRequest if the server refuses access."""
        async with self._client() as http:
            answer = await http.get(f"{self.url}/v1/models", timeout=10.0)
        if answer.status_code in (401, 403):
            raise self._refusal(answer.status_code, answer.content)
        try:
            return self if self.model else replace(self, model=str(answer.json()["data"][0]["id"]))
        except (ValueError, LookupError, TypeError):  # a server without that list may still answer requests
            return self

    async def stream(self, messages: list[dict[str, str]]) -> AsyncIterator[dict[str, Any]]:
        """The events of an answer. Leaving early ends the answer at the server. Raises ClusterError, InvalidRequest."""
        body = {"messages": messages, **self.body}
        async with self._client() as http, http.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise self._refusal(response.status_code, await response.aread())
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise ClusterError(
                    f"the server at {self.url} is not an OpenAI-compatible API; give the address of one with --url, like http://127.0.0.1:8000"
                )
            async for line in response.aiter_lines():
                if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
                    yield _event(data)

    def _refusal(self, status: int, raw: bytes) -> ShoalError:
        message = _message(raw)
        if status == 401:
            given = "knows no such key" if self.key else "asks for a key"
            return InvalidRequest(f"{self.url} {given}; give one of its own with --api-key or SHOAL_API_KEY")
        if status == 404 and not message:
            return InvalidRequest(
                f"the server at {self.url} has no /v1/chat/completions; give the address of an OpenAI-compatible API with --url"
            )
        message = message or f"{self.url} answered {status}"
        return InvalidRequest(message) if status in (400, 403, 404, 413, 422) else ClusterError(message)


def _message(raw: bytes) -> str:
    """The message in an error object; '' for anything else."""
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return ""


def _event(data: str) -> dict[str, Any]:
    try:
        event: dict[str, Any] = json.loads(data)
        error = event.get("error")
    except (ValueError, AttributeError) as bad:
        raise ClusterError("the server sent an event that is not a JSON object") from bad
    if error:
        raise ClusterError(str(error.get("message", error) if isinstance(error, dict) else error))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return event


@dataclass
class Told:
    """An answer with its counts and times. Times are in seconds since the request."""

    text: str = ""
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0
    finish: str = ""

    @property
    def tokens_per_second(self) -> float:
        """After the first token."""
        return (self.tokens - 1) / (self.seconds - self.first) if self.tokens > 1 and self.seconds > self.first else 0.0

    @property
    def figures(self) -> str:
        """For people."""
        if not self.tokens:
            return "no tokens"
        rate = f", {self.tokens_per_second:.0f} tokens/s" if self.tokens_per_second else ""
        first = f"{self.first * 1e3:.0f} ms" if self.first < 1 else f"{self.first:.1f} s"
        return f"{self.tokens} token{'s' if self.tokens > 1 else ''}{rate}, the first after {first}"


class Paper(Protocol):
    """Where an answer is written as it arrives."""

    def thought(self, text: str) -> None: ...
    def said(self, text: str) -> None: ...
    def end(self) -> None: ...


async def tell(asking: ChatOptions, messages: list[dict[str, str]], paper: Paper, told: Told) -> None:
    """Writes an answer; `told` grows with it, so that an interrupted answer is kept as far as it came.

    Raises ClusterError, InvalidRequest.
    """
    began, parts = perf_counter(), 0
    try:
        async for event in asking.stream(messages):
            if usage := event.get("usage"):
                told.tokens = int(usage["completion_tokens"])
            for choice in event.get("choices") or ():
                thought, text = _texts(choice.get("delta") or {})
                told.finish = choice.get("finish_reason") or told.finish
                if thought or text:
                    told.first, parts = told.first or perf_counter() - began, parts + 1
                    paper.thought(thought)
                    paper.said(text)
                    told.text += text
    finally:
        told.seconds, told.tokens = perf_counter() - began, told.tokens or parts
        paper.end()
    if not told.finish:
        raise ClusterError("the answer broke off: the server ended the connection")


def _texts(delta: dict[str, Any]) -> tuple[str, str]:
    """The reasoning text and the answer text in a delta."""
    return delta.get("reasoning_content") or delta.get("reasoning") or "", delta.get("content") or delta.get("refusal") or ""
