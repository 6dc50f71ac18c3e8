"""An engine in front of an engine: answers that it gave before are given again, without asking it.

An answer is found by all that it depends on (`Question.key`), and kept when all of it has ended by itself. Two equal requests at
once are both computed. An answer that is given again is known only here: no other gateway finds it, and it ends with this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import msgspec
import structlog

from shoal.config import CacheScope
from shoal.errors import CapacityError, NotCached
from shoal.facts import ModelFacts
from shoal.gateway.auth.caller import CALLER
from shoal.gateway.auth.key import KeyId
from shoal.gateway.caching.streams import Recorded, Replay
from shoal.gateway.engine import ChatTokenizer, Engine, Resumed, Stream
from shoal.gateway.http.reuse import REUSE, Reuse
from shoal.observed.trace_span import TraceSpan
from shoal.request import Request, TokenChunk
from shoal.serving.response_cache import EVERYBODY, Recording, packed, unpacked
from shoal.serving.response_store import AnswerStore, CacheRoom

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")


class CachingEngine:
    """A gateway.engine.Engine."""

    def __init__(self, engine: Engine, store: AnswerStore, scope: CacheScope) -> None:
        self._engine, self._store, self._scope = engine, store, scope
        self._thread = ThreadPoolExecutor(1, "response-cache")
        self._given: set[str] = set()
        """Answers that the other engine does not know."""
        self._trouble = ""
        engine.observe_cache(store.begun.taken, store.begun.evicted)

    async def begin(self, answer: str, note: bytes, requests: Sequence[Request], named: bool) -> Sequence[Stream]:
        """Also raises NotCached."""
        reuse = REUSE.get()
        if reuse is None:
            return await self._engine.begin(answer, note, requests, named)
        question, control = reuse.question, reuse.control
        if question is None or not question.repeatable:
            if control.only_if_cached:
                raise NotCached("only answers with temperature 0 or a seed are kept")
            return await self._engine.begin(answer, note, requests, named)
        key = await self._in_thread(question.key, self._engine.identity, self._of())
        if control.reads and (found := await self._in_thread(self._get, key, control.oldest(self._store.lifetime), requests)) is not None:
            chunks, reuse.age = found
            self._given.add(answer)
            self._engine.observe_reuse(True)
            return [Replay(own) for own in chunks]
        if control.only_if_cached:
            self._missed(reuse)
            raise NotCached("this one is not kept, or no longer")
        streams = await self._engine.begin(answer, note, requests, named)
        self._missed(reuse)
        return streams if control.no_store else self._recorded(key, requests, streams)

    def forget(self, answer: str) -> None:
        if answer in self._given:
            self._given.remove(answer)
        else:
            self._engine.forget(answer)

    def _of(self) -> str:
        """Whose answers the caller may get."""
        return EVERYBODY if self._scope is CacheScope.ALL else CALLER.get().id

    def _missed(self, reuse: Reuse) -> None:
        reuse.missed = True
        self._engine.observe_reuse(False)

    def _recorded(self, key: bytes, requests: Sequence[Request], streams: Sequence[Stream]) -> list[Recorded]:
        async def over() -> None:
            """One of them is over."""
            if all(one.over and one.recording.whole for one in recorded):
                room = await self._in_thread(self._put, key, [one.recording for one in recorded])
                if room is not None:
                    self._engine.observe_cache(room.taken, room.evicted)

        recorded = [Recorded(stream, request, over) for request, stream in zip(requests, streams, strict=True)]
        return recorded

    # In the thread

    async def _in_thread(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: do(*args, **kwargs))

    def _get(self, key: bytes, oldest: float, requests: Sequence[Request]) -> tuple[list[list[TokenChunk]], float] | None:
        """The chunks of each request, and the answer's age in seconds."""
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

    # As the other engine

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def identity(self) -> str:
        return self._engine.identity

    @property
    def created(self) -> int:
        return self._engine.created

    @property
    def facts(self) -> ModelFacts:
        return self._engine.facts

    @property
    def tokenizer(self) -> ChatTokenizer:
        return self._engine.tokenizer

    @property
    def vocabulary(self) -> int:
        return self._engine.vocabulary

    @property
    def state(self) -> str:
        return self._engine.state

    def longest(self) -> int:
        return self._engine.longest()

    @property
    def resume(self) -> float:
        return self._engine.resume

    def resumed(self) -> Sequence[Resumed]:
        return self._engine.resumed()

    async def find(self, answer: str, owner: KeyId) -> Resumed | None:
        return await self._engine.find(answer, owner)

    def observe_first_token(self, seconds: float) -> None:
        self._engine.observe_first_token(seconds)

    def observe_answer(self, outcome: str, seconds: float) -> None:
        self._engine.observe_answer(outcome, seconds)

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        self._engine.observe_request(endpoint, outcome, prompt_tokens)

    def observe_reuse(self, hit: bool) -> None:
        self._engine.observe_reuse(hit)

    def observe_cache(self, taken: int, evicted: int) -> None:
        self._engine.observe_cache(taken, evicted)

    def traced(self, spans: Sequence[TraceSpan]) -> None:
        self._engine.traced(spans)

    async def scrape(self) -> bytes:
        return await self._engine.scrape()
