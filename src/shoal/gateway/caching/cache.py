"""The answers that are kept, for all engines: read and written in a thread of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import msgspec
import structlog

from shoal.config import CacheScope
from shoal.errors import CapacityError
from shoal.gateway.auth.caller import CALLER
from shoal.gateway.engines import Telemetry
from shoal.request import Request, TokenChunk
from shoal.serving.response_cache import EVERYBODY, Question, Recording, packed, unpacked
from shoal.serving.response_store import AnswerStore, CacheRoom

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")


class AnswerCache:
    def __init__(self, store: AnswerStore, scope: CacheScope, telemetry: Telemetry) -> None:
        self._store, self._scope, self._telemetry = store, scope, telemetry
        self._thread = ThreadPoolExecutor(1, "response-cache")
        self._trouble = ""
        telemetry.observe_cache(store.begun.taken, store.begun.evicted)

    @property
    def lifetime(self) -> float:
        """Seconds for which an answer is kept."""
        return self._store.lifetime

    async def key(self, question: Question, engine: str) -> bytes:
        """What the answer to the caller's question is kept under. engine: see Engine.identity."""
        scope = EVERYBODY if self._scope is CacheScope.ALL else CALLER.get().id
        return await self._in_thread(question.key, engine, scope)

    async def get(self, key: bytes, oldest: float, requests: Sequence[Request]) -> tuple[list[list[TokenChunk]], float] | None:
        """The chunks of each request, and the answer's age in seconds, which is at most `oldest`."""
        return await self._in_thread(self._get, key, oldest, requests)

    async def put(self, key: bytes, recordings: Sequence[Recording]) -> None:
        if (room := await self._in_thread(self._put, key, recordings)) is not None:
            self._telemetry.observe_cache(room.taken, room.evicted)

    def close(self) -> None:
        """Once nothing uses it any more."""
        self._store.close()

    # In the thread

    async def _in_thread(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: do(*args, **kwargs))

    def _get(self, key: bytes, oldest: float, requests: Sequence[Request]) -> tuple[list[list[TokenChunk]], float] | None:
        try:
            kept = self._store.get(key, oldest)
            found = None if kept is None else (unpacked(kept.answer, requests), kept.age)
        except (CapacityError, msgspec.MsgspecError) as error:
            return self._failed(error)
        self._trouble = ""
        return found

    def _put(self, key: bytes, recordings: Sequence[Recording]) -> CacheRoom | None:
        """None: it was not kept."""
        try:
            room = self._store.put(key, packed(recordings))
        except CapacityError as error:
            return self._failed(error)
        self._trouble = ""
        return room

    def _failed(self, error: Exception) -> None:
        """Nobody's request fails because of it. Told once for each reason."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            log.warning("the response cache cannot be used now; requests are computed", reason=str(error))
