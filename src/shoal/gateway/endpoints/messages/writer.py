"""The JSON of a message, and the events of a streamed one.

A message is a list of blocks: thoughts, texts and uses of tools. The events say how it grows: a block starts, grows by deltas,
stops. Each event has a number; the same answer always gives the same events.
https://docs.claude.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shoal.gateway.answers.conversation import call_arguments, call_id
from shoal.gateway.answers.reading import Reading
from shoal.gateway.answers.writer import Event, Piece, Usage
from shoal.gateway.engine import Engine
from shoal.gateway.http.dialect import ANTHROPIC
from shoal.gateway.http.faults import Fault
from shoal.request import FinishReason
from shoal.text.deltas import Arguments, CallBegun, ContentDelta, ReasoningDelta

if TYPE_CHECKING:
    from shoal.gateway.endpoints.messages.job import MessageJob


class MessageWriter:
    def __init__(self, engine: Engine, job: MessageJob) -> None:
        self._engine, self._job = engine, job
        self._reading = Reading(job.format, 1)
        self._number = 0
        self._blocks: list[dict[str, Any]] = []
        self._input = ""
        """Input of the call that grows, as JSON."""
        self._open = False
        """Whether the last block still grows."""
        self._reason: str | None = None
        self._stop: str | None = None
        self._cut = False
        """Whether the last block is a call that is incomplete."""

    def opening(self) -> Sequence[Event]:
        message = self._message([], Usage(self._job.prompt_tokens))
        return [self._event("message_start", message=message), self._event("ping")]

    def piece(self, piece: Piece) -> Sequence[Event]:
        out: list[Event] = []
        for delta in self._reading.deltas(piece):
            match delta:
                case ReasoningDelta(text):
                    out += self._grown("thinking", text)
                case ContentDelta(text):
                    out += self._grown("text", text)
                case CallBegun(call, name):
                    out += self._call(call, name)
                case Arguments(_, text):
                    out += self._arguments(text)
        if piece.finish is not None:
            self._cut = self._blocks[-1:] != [] and self._blocks[-1]["type"] == "tool_use" and not self._reading.called(0)
            out += self._close()
            self._reason, self._stop = self._why(piece), piece.stop or None
        return out

    def ending(self, usage: Usage) -> Sequence[Event]:
        delta = {"stop_reason": self._reason, "stop_sequence": self._stop}
        return [self._event("message_delta", delta=delta, usage=_counts(usage)), self._event("message_stop")]

    def failed(self, what: Fault) -> Sequence[Event]:
        return [Event(ANTHROPIC.body(what), "error")]

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """A call that was cut off has no input yet and is left out."""
        for piece in pieces:
            self.piece(piece)
        return self._message(self._blocks[:-1] if self._cut else self._blocks, usage)

    def _message(self, blocks: Sequence[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._job.id,
            "type": "message",
            "role": "assistant",
            "model": self._engine.name,
            "content": list(blocks),
            "stop_reason": self._reason,
            "stop_sequence": self._stop,
            "usage": {**_counts(usage), "service_tier": "standard"},
        }

    def _why(self, piece: Piece) -> str:
        if piece.finish is FinishReason.LENGTH:
            return "model_context_window_exceeded" if self._job.shortened else "max_tokens"
        if piece.stop:
            return "stop_sequence"
        return "tool_use" if self._reading.called(0) else "end_turn"

    def _event(self, type: str, **fields: Any) -> Event:
        event = Event({"type": type, **fields}, type, self._number)
        self._number += 1
        return event

    def _of_block(self, type: str, **fields: Any) -> Event:
        """An event of the last block."""
        return self._event(f"content_block_{type}", index=len(self._blocks) - 1, **fields)

    def _start(self, block: dict[str, Any]) -> list[Event]:
        closed = self._close()
        self._blocks.append(block)
        self._open = True
        return [*closed, self._of_block("start", content_block=dict(block))]

    def _grown(self, kind: str, text: str) -> list[Event]:
        """kind: of the block; its text field has the same name."""
        fresh = {"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})}
        begun = [] if self._open and self._blocks[-1]["type"] == kind else self._start(fresh)
        self._blocks[-1][kind] += text
        return [*begun, self._of_block("delta", delta={"type": f"{kind}_delta", kind: text})]

    def _call(self, call: int, name: str) -> list[Event]:
        id = call_id(self._job.id, 0, call).replace("call_", "toolu_", 1)
        begun = self._start({"type": "tool_use", "id": id, "name": name, "input": {}})
        self._input = ""
        return begun

    def _arguments(self, text: str) -> list[Event]:
        self._input += text
        return [self._of_block("delta", delta={"type": "input_json_delta", "partial_json": text})]

    def _close(self) -> list[Event]:
        """Stops the block that grows, if there is one."""
        if not self._open:
            return []
        self._open = False
        block = self._blocks[-1]
        if block["type"] == "tool_use" and not self._cut:
            block["input"] = call_arguments(self._input) or {}
        if block["type"] != "thinking":
            return [self._of_block("stop")]
        block["signature"] = _signature(block["thinking"])
        return [self._of_block("delta", delta={"type": "signature_delta", "signature": block["signature"]}), self._of_block("stop")]


def _signature(thought: str) -> str:
    """A signature for a thought, which clients send back with it. It proves nothing: shoal accepts thoughts whoever wrote them."""
    return base64.b64encode(hashlib.sha256(thought.encode()).digest()).decode()


def _counts(usage: Usage) -> dict[str, Any]:
    """Anthropic counts cached tokens separately from the others."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        **usage.marks,
    }
