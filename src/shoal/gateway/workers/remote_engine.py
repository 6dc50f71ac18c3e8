"""A model that the head runs, as a worker's engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from shoal.errors import NotReady
from shoal.gateway.auth.key import KeyId
from shoal.gateway.engine import ChatTokenizer
from shoal.gateway.workers import messages
from shoal.gateway.workers.head_link import HeadLink, RemoteStream
from shoal.gateway.workers.messages import Attached, ServedModel
from shoal.request import Request
from shoal.text.tokenizer_parts import TokenizerFiles


class RemoteResumed:
    """A gateway.engine.Resumed."""

    def __init__(self, attached: Attached, streams: list[RemoteStream]) -> None:
        self.id, self.note, self.requests, self.said, self.streams = attached.id, attached.note, attached.requests, attached.said, streams


class RemoteEngine:
    """A gateway.engine.Engine."""

    def __init__(
        self,
        link: HeadLink,
        served: ServedModel,
        files: Callable[[], Awaitable[TokenizerFiles]],
        opened: Callable[[TokenizerFiles], ChatTokenizer],
        attached: Sequence[Attached] = (),
    ) -> None:
        """files: what the tokenizer is opened from, where the head's own files cannot be read. opened: the tokenizer. attached: answers
        that move here."""
        self.name, self.created, self.vocabulary = served.name, served.created, served.vocabulary
        self.identity, self.facts, self.resume = served.identity, served.facts, served.resume
        self.status = served.status
        self._link, self._fetch, self._open = link, files, opened
        self._files = TokenizerFiles(Path(served.model), Path(served.template) if served.template else None) if served.model else None
        self._tokenizer: ChatTokenizer | None = None
        self._fetching, self._opening = asyncio.Lock(), threading.Lock()
        self._resumed = [self._attached(each) for each in attached]

    @property
    def tokenizer(self) -> ChatTokenizer:
        """Opened when it is first needed, which takes up to seconds: `prepare` does it in a thread. Raises what opening it raises, and
        NotReady if its files have to be fetched first."""
        if self._tokenizer is None:
            if self._files is None:
                raise NotReady(f"the tokenizer of '{self.name}' has not been fetched yet")
            with self._opening:
                self._tokenizer = self._tokenizer or self._open(self._files)
        return self._tokenizer

    @property
    def resumes(self) -> bool:
        """Whether there are answers to take up."""
        return bool(self._resumed)

    async def prepare(self) -> None:
        """Returns when its tokenizer is open. Raises what fetching and opening it raise."""
        if self._tokenizer is None:
            async with self._fetching:
                self._files = self._files or await self._fetch()
            await asyncio.to_thread(lambda: self.tokenizer)

    @property
    def state(self) -> str:
        return self.status.state

    def longest(self) -> int:
        if self.status.why is not None:
            raise self.status.why.error
        return self.status.longest

    async def begin(self, answer: str, note: bytes, requests: Sequence[Request], named: bool) -> list[RemoteStream]:
        number = self._link.number()
        streams = [RemoteStream(request, self._link) for request in requests]
        try:
            asked = messages.Begin(number, self.name, answer, note, list(requests), named)
            await self._link.ask(asked, lambda _: self._link.listen(streams))
        except asyncio.CancelledError:
            self._link.say(messages.Cancel(number, answer))
            for stream in streams:
                self._link.release(stream)
            raise
        return streams

    def forget(self, answer: str) -> None:
        self._link.say(messages.Forget(answer))

    def resumed(self) -> list[RemoteResumed]:
        resumed, self._resumed = self._resumed, []
        return resumed

    async def find(self, answer: str, owner: KeyId) -> RemoteResumed | None:
        asked = messages.Find(self._link.number(), self.name, answer, owner)
        try:
            found = await self._link.ask(asked, lambda found: found.answer and self._attached(found.answer))
            if found is not None:
                await self.prepare()
            return found
        except BaseException:
            self._link.say(messages.GiveBack(answer))
            raise

    def _attached(self, attached: Attached) -> RemoteResumed:
        streams = [RemoteStream(request, self._link) for request in attached.requests]
        self._link.listen(streams)
        return RemoteResumed(attached, streams)

    def observe_first_token(self, seconds: float) -> None:
        self._observed("first_token", seconds)

    def observe_answer(self, outcome: str, seconds: float) -> None:
        self._observed("answer", outcome, seconds)

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        self._observed("request", endpoint, outcome, prompt_tokens)

    def observe_reuse(self, hit: bool) -> None:
        self._observed("reuse", hit)

    def _observed(self, what: str, *values: str | float | bool) -> None:
        self._link.say(messages.Observed(self.name, what, values))
