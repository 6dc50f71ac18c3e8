"""From drawn tokens to OpenAI's answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from shoal.gateway.engine import Engine, Stream
from shoal.gateway.translate import Job
from shoal.request import FinishReason, TokenChunk
from shoal.text.detokenizer import TextStream


@dataclass
class Piece:
    """News of one choice: text, maybe with the tokens that it came from, maybe the end."""

    choice: int
    text: str
    chunks: list[TokenChunk]
    finish: FinishReason | None
    upto: int
    """Tokens of the choice up to here, an end without a token counted as one: the same for the same piece, whenever it is made."""


@dataclass
class _Choice:
    text: TextStream
    chunks: int = 0
    held: list[TokenChunk] = field(default_factory=list[TokenChunk])
    """Tokens whose text is not out yet."""


@dataclass
class Usage:
    prompt: int
    completion: int = 0
    cached: int = 0

    def wire(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class TakenOver(Exception):
    """Another reader has come: there is nobody left to read this for."""


class Answer:
    """One HTTP request under way. Its pieces gather whether or not somebody reads them, and can be read again."""

    def __init__(self, job: Job, engine: Engine, streams: Sequence[Stream], *, resumed: bool = False) -> None:
        """resumed: the streams begin with what was said before the engine was started anew."""
        self.job = job
        self.usage = Usage(job.prompt_tokens)
        self.pieces: list[Piece] = []
        """All choices' news, in the order in which they came."""
        self._engine, self._streams = engine, streams
        self._began = None if resumed else perf_counter()
        self._error: Exception | None = None
        self._reader: object = None
        self._news = asyncio.Event()
        self._left = len(streams)
        self._tasks = [asyncio.get_running_loop().create_task(self._follow(i)) for i in range(self._left)]

    def close(self) -> None:
        """Cancels what still runs."""
        for task in self._tasks:
            task.cancel()
        for stream in self._streams:
            stream.close()

    async def read(self) -> AsyncGenerator[Piece]:
        """All pieces, from the first one on. Raises what the engine raises.

        There is one reader: where another begins this one raises TakenOver.
        """
        me = self._reader = object()
        self._news.set()
        at = 0
        while True:
            if self._reader is not me:
                raise TakenOver
            if at < len(self.pieces):
                at += 1
                yield self.pieces[at - 1]
            elif self._error is not None:
                raise self._error
            elif not self._left:
                return
            else:
                self._news.clear()
                await self._news.wait()

    async def _follow(self, index: int) -> None:
        request, stream = self.job.requests[index], self._streams[index]
        counted = False
        try:
            choices = [_Choice(TextStream(self._engine.tokenizer, request.prompt, self.job.stops)) for _ in range(request.n)]
            async for chunk in stream:
                if chunk.token is None and chunk.finish is None:
                    continue  # about the prompt
                self.usage.completion += 1
                if not counted:
                    counted = True
                    self.usage.cached += chunk.cached
                piece = self._piece(choices[chunk.choice], chunk, index * request.n + chunk.choice)
                if piece.finish is not None and chunk.finish is None:
                    stream.end_choice(chunk.choice)
                if piece.text or piece.finish is not None:
                    self._came(piece)
        except Exception as error:  # noqa: BLE001 - raised again where the pieces are read
            self._error = self._error or error
            self.close()
        self._left -= 1
        self._news.set()

    def _came(self, piece: Piece) -> None:
        if self._began is not None:
            self._engine.observe_first_token(perf_counter() - self._began)
            self._began = None
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
        return Piece(index, text, chunks, finish, choice.chunks)


def _token(engine: Engine, token: int) -> tuple[str, list[int]]:
    raw = engine.tokenizer.token_bytes(token)
    return raw.decode(errors="replace"), list(raw)


def _chat_logprobs(engine: Engine, chunks: list[TokenChunk]) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    for chunk in chunks:
        if chunk.token is None:
            continue
        text, raw = _token(engine, chunk.token)
        top = [{"token": _token(engine, a.token)[0], "logprob": a.logprob, "bytes": _token(engine, a.token)[1]} for a in chunk.alternatives]
        content.append({"token": text, "logprob": chunk.logprob, "bytes": raw, "top_logprobs": top})
    return {"content": content, "refusal": None}


def _completion_logprobs(engine: Engine, chunks: list[TokenChunk], offset: int) -> dict[str, Any]:
    out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for chunk in chunks:
        if chunk.token is None:
            continue
        text = _token(engine, chunk.token)[0]
        out["tokens"].append(text)
        out["token_logprobs"].append(chunk.logprob)
        out["top_logprobs"].append({_token(engine, a.token)[0]: a.logprob for a in chunk.alternatives})
        out["text_offset"].append(offset)
        offset += len(text)
    return out


class Writer:
    """The JSON of one job's answer."""

    def __init__(self, job: Job, engine: Engine) -> None:
        self._job, self._engine = job, engine

    def _frame(self, object: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._job.id,
            "object": object,
            "created": self._job.created,
            "model": self._engine.name,
            "system_fingerprint": f"shoal-{self._engine.created}",
            "choices": choices,
        }

    def event(self, piece: Piece, offset: int) -> dict[str, Any]:
        finish = None if piece.finish is None else str(piece.finish)
        choice: dict[str, Any] = {"index": piece.choice, "logprobs": None, "finish_reason": finish}
        if self._job.chat:
            choice["delta"] = {"content": piece.text} if piece.text or finish is None else {}
            if self._job.logprobs:
                choice["logprobs"] = _chat_logprobs(self._engine, piece.chunks)
            return self._frame("chat.completion.chunk", [choice])
        choice["text"] = piece.text
        if self._job.logprobs:
            choice["logprobs"] = _completion_logprobs(self._engine, piece.chunks, offset)
        return self._frame("text_completion", [choice])

    def opening(self) -> dict[str, Any]:
        """The chunk that says who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        choices = [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(self._job.choices)]
        return self._frame("chat.completion.chunk", choices)

    def usage(self, usage: Usage) -> dict[str, Any]:
        object = "chat.completion.chunk" if self._job.chat else "text_completion"
        return {**self._frame(object, []), "usage": usage.wire()}

    def whole(self, pieces: list[Piece], usage: Usage) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for index in range(self._job.choices):
            mine = [p for p in pieces if p.choice == index]
            text = "".join(p.text for p in mine)
            chunks = [c for p in mine for c in p.chunks]
            finish = next((str(p.finish) for p in mine if p.finish is not None), None)
            choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish}
            if self._job.chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
                if self._job.logprobs:
                    choice["logprobs"] = _chat_logprobs(self._engine, chunks)
            else:
                choice["text"] = text
                if self._job.logprobs:
                    choice["logprobs"] = _completion_logprobs(self._engine, chunks, 0)
            choices.append(choice)
        object = "chat.completion" if self._job.chat else "text_completion"
        return {**self._frame(object, choices), "usage": usage.wire()}
