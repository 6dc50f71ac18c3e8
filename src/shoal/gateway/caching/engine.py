"""An engine in front of an engine: answers that it gave before are given again, without asking it.

An answer is found by all that it depends on (`Question.key`), and kept when all of it has ended by itself. Two equal requests at
once are both computed. An answer that is given again is known only here: no other gateway finds it, and it ends with this process.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal.errors import NotCached
from shoal.facts import ModelFacts
from shoal.gateway.auth.key import KeyId
from shoal.gateway.caching.cache import AnswerCache
from shoal.gateway.caching.streams import Recorded, Replay
from shoal.gateway.engine import ChatTokenizer, Engine, Resumed, Stream
from shoal.gateway.http.reuse import REUSE, Reuse
from shoal.request import Request


class CachingEngine:
    """A gateway.engine.Engine."""

    def __init__(self, engine: Engine, cache: AnswerCache) -> None:
        self._engine, self._cache = engine, cache
        self._given: set[str] = set()
        """Answers that the other engine does not know."""

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
        key = await self._cache.key(question, self._engine.identity)
        if control.reads and (found := await self._cache.get(key, control.oldest(self._cache.lifetime), requests)) is not None:
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

    def _missed(self, reuse: Reuse) -> None:
        reuse.missed = True
        self._engine.observe_reuse(False)

    def _recorded(self, key: bytes, requests: Sequence[Request], streams: Sequence[Stream]) -> list[Recorded]:
        async def over() -> None:
            """One of them is over."""
            if all(one.over and one.recording.whole for one in recorded):
                await self._cache.put(key, [one.recording for one in recorded])

        recorded = [Recorded(stream, request, over) for request, stream in zip(requests, streams, strict=True)]
        return recorded

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
