"""From sampled tokens to an answer's text, piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import perf_counter, time

from shoal.gateway.answers.job import Job
from shoal.gateway.answers.writer import Piece, Usage, Writer
from shoal.gateway.auth.caller import Caller
from shoal.gateway.engine import Engine, Stream, TakenOver
from shoal.request import FinishReason, Score, TokenChunk
from shoal.text.detokenizer import TextStream


@dataclass
class _Choice:
    text: TextStream
    chunks: int = 0
    held: list[TokenChunk] = field(default_factory=list[TokenChunk])
    """Tokens whose text has not been returned yet."""
    begun: bool = False
    degraded: int = 0


class Answer:
    """The answer to one HTTP request. Its pieces are collected whether or not anybody reads them, and can be read again."""

    def __init__(
        self,
        job: Job,
        engine: Engine,
        streams: Sequence[Stream],
        caller: Caller | None = None,
        *,
        resumed: bool = False,
        said: int = 0,
        ended: Callable[[Answer], Awaitable[None]] | None = None,
    ) -> None:
        """caller: its key is charged for the tokens, except the first `said` ones, which were counted before

        resumed: the streams begin with what was sampled elsewhere, or before the engine restarted
        ended: awaited when everything is sampled, or the engine failed, before readers are told
        """
        self.job, self.engine = job, engine
        self.usage = Usage(job.prompt_tokens)
        self.pieces: list[Piece] = []
        """The pieces of all choices, in order of arrival."""
        self._streams, self._caller = streams, caller or Caller()
        self._said = said
        self._began = perf_counter()
        self._told_first, self._told_end = resumed, False
        self.error: Exception | None = None
        """The engine's error, or why it was ended."""
        self._ended_by: Exception | None = None
        self.over = False
        self._reader: object = None
        self._news = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._gather(ended))

    @property
    def moved(self) -> bool:
        """Whether another gateway of this engine has taken it over."""
        return isinstance(self.error, TakenOver)

    def writer(self) -> Writer:
        """A writer for one reading."""
        return self.job.writer(self.engine)

    def close(self) -> None:
        """Cancels what is still running."""
        self._tell_end("left")
        self._task.cancel()
        for stream in self._streams:
            stream.close()

    def fail(self, error: Exception) -> None:
        """Ends what is still running with that error, for all readers."""
        self._ended_by = error
        for stream in self._streams:
            stream.close()

    async def read(self) -> AsyncGenerator[Piece]:
        """All pieces from the first one on. Raises what the engine raises.

        There is only one reader: if another begins, this one raises TakenOver.
        """
        async with aclosing(self.heard()) as heard:
            async for piece in heard:
                if piece is not None:
                    yield piece

    async def heard(self, patience: float = 0) -> AsyncGenerator[Piece | None]:
        """Like `read`, but yields None each time nothing has come for `patience` seconds; 0: never."""
        me = self._reader = object()
        self._news.set()
        at = 0
        while True:
            if self._reader is not me:
                raise TakenOver
            if at < len(self.pieces):
                at += 1
                yield self.pieces[at - 1]
            elif self.over and self.error is not None:
                raise self.error
            elif self.over:
                return
            else:
                self._news.clear()
                if not patience:
                    await self._news.wait()
                elif not await self._comes(patience):
                    yield None

    async def _comes(self, seconds: float) -> bool:
        """Waits for news; False if none came."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def _gather(self, ended: Callable[[Answer], Awaitable[None]] | None) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for i in range(len(self._streams)):
                    group.create_task(self._follow(i))
        except* Exception as errors:  # noqa: BLE001 - raised again when the pieces are read
            self.error = errors.exceptions[0]
            for stream in self._streams:
                stream.close()
        self.error = self.error or self._ended_by
        self.usage.ended = int(time())
        self._tell_end("complete" if self.error is None else "failed")
        try:
            if ended is not None and not self.moved:
                await ended(self)
        except Exception as error:  # noqa: BLE001 - likewise
            self.error = self.error or error
        self.over = True
        self._news.set()

    def _tell_end(self, outcome: str) -> None:
        """Counts the answer once, and not here if it goes on elsewhere."""
        if not self._told_end and not self.moved:
            self.engine.observe_answer(outcome, perf_counter() - self._began)
        self._told_end = True

    async def _follow(self, index: int) -> None:
        request, stream = self.job.requests[index], self._streams[index]
        counted = False
        due = 0 if request.prompt_logprobs is None else len(request.prompt)
        scores: list[Score] = []
        waiting: list[Piece] = []  # for the scores, which come later if an answer is taken up again
        decoder, job = self.engine.tokenizer, self.job
        choices = [_Choice(TextStream(decoder, request.prompt, job.stops, job.markers)) for _ in range(request.n)]
        async for chunk in stream:
            scores += chunk.scores
            if chunk.token is not None or chunk.finish is not None:
                if chunk.counts:
                    self.usage.completion += 1
                    if self.usage.completion > self._said:
                        self._caller.spend(completion=1)
                if not counted:
                    counted = True
                    self.usage.cached += chunk.cached
                piece = self._piece(choices[chunk.choice], chunk, index * request.n + chunk.choice)
                if piece.finish is not None and chunk.finish is None:
                    stream.end_choice(chunk.choice)
                if piece.text or piece.finish is not None:
                    waiting.append(piece)
            if len(scores) >= due:
                for piece in waiting:
                    self._came(piece, choices[piece.choice - index * request.n], tuple(scores))
                waiting.clear()

    def _came(self, piece: Piece, choice: _Choice, scores: tuple[Score, ...]) -> None:
        if not choice.begun:
            choice.begun, piece.scores = True, scores
        self.usage.took = perf_counter() - self._began
        if not self.pieces:
            self.usage.waited = self.usage.took
        if not self._told_first:
            self.engine.observe_first_token(self.usage.waited)
            self._told_first = True
        self.pieces.append(piece)
        self._news.set()

    def _piece(self, choice: _Choice, chunk: TokenChunk, index: int) -> Piece:
        text, finish = "", chunk.finish
        choice.chunks += 1
        if chunk.token is not None:
            choice.held.append(chunk)
            text = choice.text.push(chunk.token)
        if finish is not None and not choice.text.stopped:
            text += choice.text.finish()
        if choice.text.stopped:
            finish = FinishReason.STOP
        chunks = choice.held if text or finish is not None else []
        if chunks:
            choice.held = []
        self.usage.degraded += chunk.degraded - choice.degraded
        choice.degraded = chunk.degraded
        degraded = chunk.degraded if finish is not None else 0
        return Piece(index, text, chunks, finish, choice.chunks, stop=choice.text.stopped, degraded=degraded)
