"""The JSON of Ollama's answers: one object, or one per line while streaming. The last one has the reason for the end and the times.

https://docs.ollama.com/api. A tool call is sent when it is complete: its arguments are an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shoal.gateway.answers.conversation import call_arguments, call_id
from shoal.gateway.answers.reading import Reading
from shoal.gateway.answers.writer import Event, Piece, Usage
from shoal.gateway.engine import Engine
from shoal.gateway.http.dialect import OLLAMA
from shoal.gateway.http.faults import Fault
from shoal.gateway.schema.moment import moment
from shoal.gateway.schema.scores import scores
from shoal.request import FinishReason
from shoal.text.deltas import Arguments, CallBegun, ContentDelta, ReasoningDelta

if TYPE_CHECKING:
    from shoal.gateway.endpoints.ollama.job import OllamaJob


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


class OllamaWriter:
    def __init__(self, engine: Engine, job: OllamaJob) -> None:
        self._engine, self._job = engine, job
        self._reading = Reading(job.format, 1)
        self._tokens: list[int] = []
        self._function: dict[str, Any] | None = None
        """The call that grows; its arguments are still text."""
        self._finish: FinishReason | None = None
        self._ended = False
        """Whether it ended by itself, not by a stop string."""

    def opening(self) -> Sequence[Event]:
        return ()

    def piece(self, piece: Piece) -> Sequence[Event]:
        told = self._told([piece])
        return [Event({**self._frame(), **self._said(told), "done": False})] if told else []

    def waiting(self) -> Event:
        """What a stream sends after some time without news: clients would not accept an empty line."""
        return Event({**self._frame(), **self._said({}), "done": False})

    def ending(self, usage: Usage) -> Sequence[Event]:
        return [Event({**self._frame(), **self._said({}), **self._end(usage)})]

    def failed(self, what: Fault) -> Sequence[Event]:
        return [Event(OLLAMA.body(what))]

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        return {**self._frame(), **self._said(self._told(pieces)), **self._end(usage)}

    def _frame(self) -> dict[str, Any]:
        return {"model": self._job.model, "created_at": moment(self._job.created)}

    def _told(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What is new with these pieces; empty: nothing."""
        thought, said, calls = "", "", list[dict[str, Any]]()
        for piece in pieces:
            for delta in self._reading.deltas(piece):
                match delta:
                    case ReasoningDelta(text):
                        thought += text
                    case ContentDelta(text):
                        said += text
                    case CallBegun(call, name):
                        calls += self._called()
                        self._function = {"index": call, "name": name, "arguments": ""}
                    case Arguments(_, text) if self._function is not None:
                        self._function["arguments"] += text
                    case _:
                        pass
            if piece.finish is not None:
                self._finish, self._ended = piece.finish, piece.finish is FinishReason.STOP and not piece.stop
                calls += self._called() if self._reading.called(0) else []
            self._tokens += [chunk.token for chunk in piece.chunks if chunk.token is not None]
        scored = [chunk for piece in pieces for chunk in piece.chunks] if self._job.logprobs else []
        logprobs = scores(scored, self._engine.tokenizer)
        told = {"thinking": thought, "content": said, "tool_calls": calls, "logprobs": logprobs}
        return {name: what for name, what in told.items() if what}

    def _called(self) -> list[dict[str, Any]]:
        """The call that is complete, if there is one."""
        function, self._function = self._function, None
        if function is None:
            return []
        id = call_id(self._job.id, 0, function["index"])
        return [{"id": id, "function": {**function, "arguments": call_arguments(function["arguments"]) or {}}}]

    def _said(self, told: dict[str, Any]) -> dict[str, Any]:
        """In the shape of the endpoint."""
        logprobs = {name: told[name] for name in ("logprobs",) if name in told}
        thought = {name: told[name] for name in ("thinking",) if name in told}
        if not self._job.chat:
            return {"response": told.get("content", ""), **thought, **logprobs}
        calls = {name: told[name] for name in ("tool_calls",) if name in told}
        return {"message": {"role": "assistant", "content": told.get("content", ""), **thought, **calls}, **logprobs}

    def _end(self, usage: Usage) -> dict[str, Any]:
        end = {
            "done": True,
            "done_reason": "length" if self._finish is FinishReason.LENGTH else "stop",
            "total_duration": nanoseconds(usage.took),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt,
            "prompt_eval_duration": nanoseconds(usage.waited),
            "eval_count": usage.completion,
            "eval_duration": nanoseconds(usage.took - usage.waited),
            **usage.marks,
        }
        return {**end, "context": self._context()} if self._job.context else end

    def _context(self) -> list[int]:
        """All tokens, including the one that ended the answer if it has a text."""
        end = self._engine.tokenizer.special.get(self._engine.tokenizer.named.get("eos_token", ""))
        return [*self._job.requests[0].prompt, *self._tokens, *([end] if self._ended and end is not None else [])]
