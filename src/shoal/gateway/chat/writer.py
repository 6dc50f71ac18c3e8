"""The JSON of a chat answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.gateway.engine import Engine
from shoal.gateway.writer import Event, Piece, Usage
from shoal.request import TokenChunk


class ChatWriter:
    def __init__(self, engine: Engine, id: str, created: int, choices: int, logprobs: bool, include_usage: bool) -> None:
        self._engine, self._id, self._created = engine, id, created
        self._choices, self._logprobs, self._include_usage = choices, logprobs, include_usage

    def _frame(self, object: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": object,
            "created": self._created,
            "model": self._engine.name,
            "system_fingerprint": f"shoal-{self._engine.created}",
            "choices": choices,
        }

    def opening(self) -> Sequence[Event]:
        """The chunk that says who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        choices = [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(self._choices)]
        return [Event(self._frame("chat.completion.chunk", choices))]

    def piece(self, piece: Piece) -> Sequence[Event]:
        finish = None if piece.finish is None else str(piece.finish)
        delta = {"content": piece.text} if piece.text or finish is None else {}
        logprobs = self._scored(piece.chunks) if self._logprobs else None
        choice = {"index": piece.choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return [Event(self._frame("chat.completion.chunk", [choice]))]

    def ending(self, usage: Usage) -> Sequence[Event]:
        told = [Event({**self._frame("chat.completion.chunk", []), "usage": usage.wire()})] if self._include_usage else []
        return [*told, Event("[DONE]")]

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for index in range(self._choices):
            mine = [p for p in pieces if p.choice == index]
            message = {"role": "assistant", "content": "".join(p.text for p in mine), "refusal": None}
            logprobs = self._scored([c for p in mine for c in p.chunks]) if self._logprobs else None
            finish = next((str(p.finish) for p in mine if p.finish is not None), None)
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
        return {**self._frame("chat.completion", choices), "usage": usage.wire()}

    def _scored(self, chunks: Sequence[TokenChunk]) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        for chunk in chunks:
            if chunk.token is not None:
                top = [self._token(a.token, a.logprob) for a in chunk.alternatives]
                content.append({**self._token(chunk.token, chunk.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        raw = self._engine.tokenizer.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}
