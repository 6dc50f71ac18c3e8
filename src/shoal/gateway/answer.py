"""From drawn tokens to OpenAI's answers: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from shoal.errors import ShoalError
from shoal.gateway.engine import Engine, Stream
from shoal.gateway.faults import fault
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


@dataclass
class _Choice:
    text: TextStream
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


class Answer:
    """One HTTP request under way. Submits on creation, so that a refusal is known before anything is answered."""

    def __init__(self, job: Job, engine: Engine) -> None:
        self.job = job
        self.usage = Usage(job.prompt_tokens)
        self._engine = engine
        self._began = perf_counter()
        self._streams: list[Stream] = []
        try:
            for request in job.requests:
                self._streams.append(engine.submit(request))
        except ShoalError:
            self.close()
            raise

    def close(self) -> None:
        """Cancels what still runs."""
        for stream in self._streams:
            stream.close()

    async def pieces(self) -> AsyncIterator[Piece]:
        """All choices' news, in the order in which they come. Raises what the engine raises."""
        merged: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        tasks = [asyncio.get_running_loop().create_task(self._follow(i, merged)) for i in range(len(self._streams))]
        left, first = len(tasks), True
        try:
            while left:
                item = await merged.get()
                if item is None:
                    left -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    if first:
                        first = False
                        self._engine.observe_first_token(perf_counter() - self._began)
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.close()

    async def _follow(self, index: int, merged: asyncio.Queue[Piece | Exception | None]) -> None:
        request, stream = self.job.requests[index], self._streams[index]
        counted = False
        try:
            choices = [_Choice(TextStream(self._engine.tokenizer, request.prompt, self.job.stops)) for _ in range(request.n)]
            async for chunk in stream:
                self.usage.completion += 1
                if not counted:
                    counted = True
                    self.usage.cached += chunk.cached
                piece = self._piece(choices[chunk.choice], chunk, index * request.n + chunk.choice)
                if piece.finish is not None and chunk.finish is None:
                    stream.end_choice(chunk.choice)
                if piece.text or piece.finish is not None:
                    merged.put_nowait(piece)
        except Exception as error:  # noqa: BLE001 - raised again where the pieces are read
            merged.put_nowait(error)
        merged.put_nowait(None)

    def _piece(self, choice: _Choice, chunk: TokenChunk, index: int) -> Piece:
        text, finish = "", chunk.finish
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
        return Piece(index, text, chunks, finish)


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

    def __init__(self, job: Job, engine: Engine, created: int) -> None:
        self._job, self._engine, self._created = job, engine, created

    def _frame(self, object: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._job.id,
            "object": object,
            "created": self._created,
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
        total = sum(request.n for request in self._job.requests)
        delta = {"role": "assistant", "content": "", "refusal": None}
        choices = [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(total)]
        return self._frame("chat.completion.chunk", choices)

    def usage(self, usage: Usage) -> dict[str, Any]:
        object = "chat.completion.chunk" if self._job.chat else "text_completion"
        return {**self._frame(object, []), "usage": usage.wire()}

    def whole(self, pieces: list[Piece], usage: Usage) -> dict[str, Any]:
        total = sum(request.n for request in self._job.requests)
        choices: list[dict[str, Any]] = []
        for index in range(total):
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


def _sse(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def events(answer: Answer, writer: Writer) -> AsyncIterator[bytes]:
    """Server-sent events. An error after the first byte is an event too, and no [DONE] follows it."""
    offsets: dict[int, int] = {}
    pieces: Any = answer.pieces()
    try:
        if answer.job.chat:
            yield _sse(writer.opening())
        async for piece in pieces:
            yield _sse(writer.event(piece, offsets.get(piece.choice, 0)))
            offsets[piece.choice] = offsets.get(piece.choice, 0) + len(piece.text)
        if answer.job.include_usage:
            yield _sse(writer.usage(answer.usage))
        yield b"data: [DONE]\n\n"
    except ShoalError as error:
        yield _sse(fault(error).body)
    finally:
        with suppress(RuntimeError):
            await pieces.aclose()
        answer.close()
