"""Requests that keep a cluster busy, and the timelines of what came of them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from shoal.cli.asking import ChatOptions
from shoal.cli.operator_client import OperatorClient
from shoal.errors import ClusterError, ConfigError, InvalidRequest
from shoal.observed.cluster import ClusterView
from shoal.observed.requests import Timeline

_WORDS = 64  # of a prompt
TOKENS = 64
"""Of each answer."""


@dataclass(frozen=True)
class Watched:
    """before, view: the cluster at the beginning, and at the end."""

    before: ClusterView
    view: ClusterView
    timelines: list[Timeline]


class ProfilingLoad:
    def __init__(self, http: httpx2.AsyncClient, operator: OperatorClient, asking: ChatOptions) -> None:
        self._http, self._operator, self._asking = http, operator, asking
        self._timelines: dict[str, Timeline] = {}

    async def run(self, seconds: float, streams: int) -> Watched:
        """Raises ConfigError if nobody answers there, InvalidRequest, ClusterError."""
        try:
            await self._operator.cluster()  # says what is wrong with the address before anything is computed
        except ClusterError as error:
            raise ConfigError(str(error)) from error
        await self._complete(4)
        before = await self._operator.cluster()
        work = [asyncio.ensure_future(self._stream()) for _ in range(streams)]
        try:
            done, _ = await asyncio.wait(work, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        for request in await self._operator.requests():
            if request.began >= before.at and request.id not in self._timelines:
                await self._keep(request.id)
        return Watched(before, await self._operator.cluster(), [*self._timelines.values()])

    async def _stream(self) -> None:
        """One request after the other. Each timeline is fetched as soon as it is complete: a head keeps only the latest steps."""
        while True:
            await self._keep(await self._complete(TOKENS))

    async def _keep(self, id: str) -> None:
        self._timelines[id] = await self._operator.timeline(id)

    async def _complete(self, tokens: int) -> str:
        """Its id. No two prompts begin alike, so that none is found in the cache."""
        prompt = f"{secrets.token_hex(8)} " + "word " * _WORDS
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        if self._asking.model:
            body["model"] = self._asking.model
        answer = await self._http.post(f"{self._asking.url}/v1/completions", json=body)
        self._check(answer)
        return str(answer.json()["id"])

    def _check(self, answer: httpx2.Response) -> None:
        url, status = self._asking.url, answer.status_code
        if status == 200:
            return
        try:
            message = str(answer.json()["error"]["message"])
        except (ValueError, LookupError, TypeError):
            message = f"{url} answered {status}"
        raise InvalidRequest(message) if 400 <= status < 500 and status != 429 else ClusterError(message)


@asynccontextmanager
async def profiling_load(asking: ChatOptions) -> AsyncGenerator[ProfilingLoad]:
    """Raises ConfigError if nobody answers there."""
    headers = {"Authorization": f"Bearer {asking.key}"} if asking.key else {}
    pool = httpx2.Limits(max_connections=None)
    try:
        async with (
            httpx2.AsyncClient(timeout=httpx2.Timeout(10.0, read=None), limits=pool, headers=headers, trust_env=False) as http,
            OperatorClient(asking) as operator,
        ):
            yield ProfilingLoad(http, operator, asking)
    except httpx2.HTTPError as error:
        why = str(error) or type(error).__name__
        raise ConfigError(f"{asking.url} does not answer: {why}; is `shoal up` or `shoal serve` running there?") from error
