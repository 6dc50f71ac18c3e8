"""The JSON of a chat answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shoal.gateway.answers.conversation import call_id
from shoal.gateway.answers.custom import Input
from shoal.gateway.answers.reading import Reading
from shoal.gateway.answers.writer import Event, Piece, Usage
from shoal.gateway.engine import Engine
from shoal.gateway.http.faults import Fault
from shoal.gateway.schema.scores import scores
from shoal.request import TokenChunk
from shoal.text.deltas import Arguments, CallBegun, ContentDelta, Delta, ReasoningDelta

if TYPE_CHECKING:
    from shoal.gateway.endpoints.chat.job import ChatJob


class ChatWriter:
    def __init__(self, engine: Engine, job: ChatJob) -> None:
        self._engine, self._job = engine, job
        self._reading = Reading(job.format, job.choices)
        self._inputs: dict[tuple[int, int], Input] = {}
        """Readers of calls of custom tools, by choice and number."""

    def _frame(self, object: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._job.id,
            "object": object,
            "created": self._job.created,
            "model": self._engine.name,
            "service_tier": self._job.service_tier,
            "system_fingerprint": f"shoal-{self._engine.created}",
            "choices": choices,
        }

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> Event:
        told = {"usage": None if usage is None else usage.wire()} if self._job.include_usage else {}
        return Event({**self._frame("chat.completion.chunk", choices), **told})

    def opening(self) -> Sequence[Event]:
        """The chunk that names the role. If there may be reasoning or calls, it is not known yet whether there is content."""
        delta = {"role": "assistant", "content": "" if self._reading.plain else None, "refusal": None}
        return [self._chunk([_choice(i, delta=delta) for i in range(self._job.choices)])]

    def piece(self, piece: Piece) -> Sequence[Event]:
        delta = self._delta(piece)
        logprobs = self._scored(piece.chunks) if self._job.logprobs else None
        if not delta and logprobs is None and piece.finish is None:
            return []
        choice = _choice(piece.choice, delta=delta, logprobs=logprobs, finish_reason=self._reading.finish(piece))
        return [self._chunk([{**choice, **({"degraded_tokens": piece.degraded} if piece.degraded else {})}])]

    def ending(self, usage: Usage) -> Sequence[Event]:
        return [*([self._chunk([], self._reading.usage(usage))] if self._job.include_usage else []), Event("[DONE]")]

    def failed(self, what: Fault) -> Sequence[Event]:
        return [Event(what.body)]

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for index in range(self._job.choices):
            mine = [p for p in pieces if p.choice == index]
            message = self._message(mine)
            logprobs = self._scored([c for p in mine for c in p.chunks]) if self._job.logprobs else None
            reason = next((self._reading.finish(p) for p in mine if p.finish is not None), None)
            choices.append(_choice(index, message=message, logprobs=logprobs, finish_reason=reason))
        return {**self._frame("chat.completion", choices), "usage": self._reading.usage(usage).wire()}

    def _calls(self, choice: int, news: Sequence[Delta]) -> dict[int, dict[str, Any]]:
        """The news of each call, by its number."""
        calls: dict[int, dict[str, Any]] = {}
        for new in news:
            if isinstance(new, CallBegun) and new.name in self._job.custom:
                self._inputs[choice, new.call] = Input()
                custom = {"name": new.name, "input": ""}
                calls[new.call] = {"id": call_id(self._job.id, choice, new.call), "type": "custom", "custom": custom}
            elif isinstance(new, CallBegun):
                function = {"name": new.name, "arguments": ""}
                calls[new.call] = {"id": call_id(self._job.id, choice, new.call), "type": "function", "function": function}
            elif isinstance(new, Arguments) and (input := self._inputs.get((choice, new.call))) is not None:
                calls.setdefault(new.call, {"custom": {"input": ""}})["custom"]["input"] += input.push(new.text)
            elif isinstance(new, Arguments):
                calls.setdefault(new.call, {"function": {"arguments": ""}})["function"]["arguments"] += new.text
        return calls

    def _delta(self, piece: Piece) -> dict[str, Any]:
        news = self._reading.deltas(piece)
        thought, said = _joined(news, ReasoningDelta), _joined(news, ContentDelta)
        calls = [{"index": at, **call} for at, call in self._calls(piece.choice, news).items()]
        told = {"reasoning_content": thought, "content": said, "tool_calls": calls}
        return {name: what for name, what in told.items() if what}

    def _message(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """pieces: all of one choice."""
        news = [new for piece in pieces for new in self._reading.deltas(piece)]
        thought, said = _joined(news, ReasoningDelta), _joined(news, ContentDelta)
        calls = list(self._calls(pieces[0].choice, news).values()) if pieces else []
        message = {"role": "assistant", "content": said or None if calls else said, "refusal": None}
        return {**message, **({"reasoning_content": thought} if thought else {}), **({"tool_calls": calls} if calls else {})}

    def _scored(self, chunks: Sequence[TokenChunk]) -> dict[str, Any]:
        return {"content": scores(chunks, self._engine.tokenizer), "refusal": None}


def _joined(news: Sequence[Delta], kind: type[ReasoningDelta] | type[ContentDelta]) -> str:
    return "".join(new.text for new in news if isinstance(new, kind))


def _choice(
    index: int, *, logprobs: dict[str, Any] | None = None, finish_reason: str | None = None, **what: dict[str, Any]
) -> dict[str, Any]:
    return {"index": index, **what, "logprobs": logprobs, "finish_reason": finish_reason}
