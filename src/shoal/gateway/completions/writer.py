"""The JSON of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.gateway.engine import Engine
from shoal.gateway.faults import Fault
from shoal.gateway.writer import Event, Piece, Usage
from shoal.request import TokenChunk


class CompletionWriter:
    def __init__(self, engine: Engine, id: str, created: int, choices: int, logprobs: bool, include_usage: bool) -> None:
        self._engine, self._id, self._created = engine, id, created
        self._choices, self._logprobs, self._include_usage = choices, logprobs, include_usage
        self._offsets = [0] * choices

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._engine.name,
            "system_fingerprint": f"shoal-{self._engine.created}",
            "choices": choices,
        }

    def opening(self) -> Sequence[Event]:
        return ()

    def piece(self, piece: Piece) -> Sequence[Event]:
        offset = self._offsets[piece.choice]
        self._offsets[piece.choice] += len(piece.text)
        choice = self._choice(piece.choice, piece.text, piece.chunks, offset, None if piece.finish is None else str(piece.finish))
        return [Event(self._frame([choice]))]

    def ending(self, usage: Usage) -> Sequence[Event]:
        return [*([Event({**self._frame([]), "usage": usage.wire()})] if self._include_usage else []), Event("[DONE]")]

    def failed(self, what: Fault) -> Sequence[Event]:
        return [Event(what.body)]

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for index in range(self._choices):
            mine = [p for p in pieces if p.choice == index]
            finish = next((str(p.finish) for p in mine if p.finish is not None), None)
            choices.append(self._choice(index, "".join(p.text for p in mine), [c for p in mine for c in p.chunks], 0, finish))
        return {**self._frame(choices), "usage": usage.wire()}

    def _choice(self, index: int, text: str, chunks: Sequence[TokenChunk], offset: int, finish: str | None) -> dict[str, Any]:
        logprobs = self._scored(chunks, offset) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _scored(self, chunks: Sequence[TokenChunk], offset: int) -> dict[str, Any]:
        out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for chunk in chunks:
            if chunk.token is None:
                continue
            text = self._text(chunk.token)
            out["tokens"].append(text)
            out["token_logprobs"].append(chunk.logprob)
            out["top_logprobs"].append({self._text(a.token): a.logprob for a in chunk.alternatives})
            out["text_offset"].append(offset)
            offset += len(text)
        return out

    def _text(self, token: int) -> str:
        return self._engine.tokenizer.token_bytes(token).decode(errors="replace")
