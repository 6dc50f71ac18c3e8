"""The JSON of a response, and the events of a streamed one.

A response is a list of output items: reasoning and messages, each with one part, and function calls. The events say how it
grows: an item is added, its text or arguments grow by deltas, it is done. Each event has a number; the same answer always gives
the same events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shoal.gateway.answers.conversation import call_id
from shoal.gateway.answers.custom import Input
from shoal.gateway.answers.reading import Reading
from shoal.gateway.answers.writer import Event, Piece, Usage
from shoal.gateway.endpoints.responses.items import (
    custom_tool_call,
    function_call,
    item_id,
    message,
    output_text,
    reasoning,
    reasoning_text,
)
from shoal.gateway.engine import Engine
from shoal.gateway.http.faults import Fault
from shoal.gateway.schema.scores import scores
from shoal.request import FinishReason, TokenChunk
from shoal.text.deltas import Arguments, CallBegun, ContentDelta, ReasoningDelta

if TYPE_CHECKING:
    from shoal.gateway.endpoints.responses.job import ResponseJob


class ResponseWriter:
    def __init__(self, engine: Engine, job: ResponseJob) -> None:
        self._engine, self._job = engine, job
        self._reading = Reading(job.format, 1)
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._input: Input | None = None
        """Reader of the last item, if it is a call of a custom tool."""
        self._open = False
        """Whether the last item of the output is still growing."""
        self._chunks: list[TokenChunk] = []
        """Tokens whose text is not sent yet."""
        self._finish: FinishReason | None = None
        self._sampled = 0
        """Tokens so far."""

    def opening(self) -> Sequence[Event]:
        return [self._event(f"response.{what}", response=self.response("in_progress")) for what in ("created", "in_progress")]

    def piece(self, piece: Piece) -> Sequence[Event]:
        self._chunks += piece.chunks
        self._sampled += sum(chunk.token is not None for chunk in piece.chunks)
        out: list[Event] = []
        for delta in self._reading.deltas(piece):
            match delta:
                case ReasoningDelta(text):
                    out += self._thought(text)
                case ContentDelta(text):
                    out += self._content(text)
                case CallBegun(call, name):
                    out += self._call(call, name)
                case Arguments(_, text):
                    out += self._arguments(text)
        if piece.finish is not None:
            self._finish = piece.finish
            if not self._output:
                out += self._message()
            out += self._close("incomplete" if piece.finish is FinishReason.LENGTH else "completed")
        return out

    def ending(self, usage: Usage) -> Sequence[Event]:
        response = self._ended(usage)
        return [self._event(f"response.{response['status']}", response=response)]

    def failed(self, what: Fault) -> Sequence[Event]:
        error = self._event("error", code=what.code, message=what.message, param=what.param)
        return [error, self._event("response.failed", response=self.failure(what))]

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        for piece in pieces:
            self.piece(piece)
        return self._ended(usage)

    def response(self, status: str) -> dict[str, Any]:
        """The response so far."""
        return {
            "id": self._job.id,
            "object": "response",
            "created_at": self._job.created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._engine.name,
            "output": list(self._output),
            "usage": usage_of(Usage(self._job.prompt_tokens, self._sampled)),
            "service_tier": self._job.service_tier,
            **self._job.asked,
        }

    def failure(self, what: Fault) -> dict[str, Any]:
        """A failed response, with what it had so far."""
        code = "rate_limit_exceeded" if what.status == 429 else "server_error"
        return {**self.response("failed"), "error": {"code": code, "message": what.message}}

    def _ended(self, usage: Usage) -> dict[str, Any]:
        usage = self._reading.usage(usage)
        cut = self._finish is FinishReason.LENGTH
        end = {"incomplete_details": {"reason": "max_output_tokens"}} if cut else {"completed_at": usage.ended}
        return {**self.response("incomplete" if cut else "completed"), **end, "usage": usage_of(usage)}

    def _event(self, type: str, **fields: Any) -> Event:
        event = Event({"type": type, "sequence_number": self._number, **fields}, type, self._number)
        self._number += 1
        return event

    def _of_item(self, type: str, **fields: Any) -> Event:
        """An event of the last item."""
        at = len(self._output) - 1
        return self._event(f"response.{type}", output_index=at, item_id=self._output[at]["id"], **fields)

    def _add(self, item: dict[str, Any]) -> list[Event]:
        done = self._close("completed")
        self._output.append(item)
        self._open = True
        return [*done, self._event("response.output_item.added", output_index=len(self._output) - 1, item=dict(item))]

    def _part(self, item: dict[str, Any], part: dict[str, Any]) -> list[Event]:
        """Begins an item of one part, which is still empty."""
        added = self._add({**item, "content": []})
        self._output[-1]["content"] = [dict(part)]
        return [*added, self._of_item("content_part.added", content_index=0, part=part)]

    def _message(self) -> list[Event]:
        return self._part(message(item_id("msg", self._job.id, len(self._output)), "assistant", [], "in_progress"), output_text(""))

    def _grows(self, kind: str) -> bool:
        """Whether the item that grows is of this kind."""
        return self._open and self._output[-1]["type"] == kind

    def _thought(self, text: str) -> list[Event]:
        self._chunks.clear()
        id = item_id("rs", self._job.id, len(self._output))
        begun = [] if self._grows("reasoning") else self._part(reasoning(id, "", "in_progress"), reasoning_text(""))
        self._output[-1]["content"][0]["text"] += text
        return [*begun, self._of_item("reasoning_text.delta", content_index=0, delta=text)]

    def _content(self, text: str) -> list[Event]:
        begun = [] if self._grows("message") else self._message()
        part = self._output[-1]["content"][0]
        logprobs = self._scored()
        part["text"] += text
        part["logprobs"] += logprobs
        return [*begun, self._of_item("output_text.delta", content_index=0, delta=text, logprobs=logprobs)]

    def _call(self, call: int, name: str) -> list[Event]:
        self._chunks.clear()
        at = len(self._output)
        self._input = Input() if name in self._job.custom else None
        if self._input is not None:
            id = item_id("ctc", self._job.id, at)
            return self._add(custom_tool_call(id, call_id(self._job.id, 0, call), name, "", "in_progress"))
        id = item_id("fc", self._job.id, at)
        return self._add(function_call(id, call_id(self._job.id, 0, call), name, "", "in_progress"))

    def _arguments(self, text: str) -> list[Event]:
        self._chunks.clear()
        if self._input is not None:
            said = self._input.push(text)
            self._output[-1]["input"] += said
            return [self._of_item("custom_tool_call_input.delta", delta=said)] if said else []
        self._output[-1]["arguments"] += text
        return [self._of_item("function_call_arguments.delta", delta=text)]

    def _close(self, status: str) -> list[Event]:
        """Ends the item that grows, if there is one."""
        if not self._open:
            return []
        self._open = False
        item = self._output[-1] = {**self._output[-1], "status": status}
        if item["type"] == "custom_tool_call":
            told = [self._of_item("custom_tool_call_input.done", input=item["input"])]
        elif item["type"] == "function_call":
            told = [self._of_item("function_call_arguments.done", name=item["name"], arguments=item["arguments"])]
        else:
            (part,) = item["content"]
            fields = {name: part[name] for name in ("text", "logprobs") if name in part}
            told = [self._of_item(f"{part['type']}.done", content_index=0, **fields)]
            told.append(self._of_item("content_part.done", content_index=0, part=part))
        return [*told, self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)]

    def _scored(self) -> list[dict[str, Any]]:
        chunks, self._chunks = self._chunks, []
        return scores(chunks, self._engine.tokenizer) if self._job.logprobs else []


def usage_of(usage: Usage) -> dict[str, Any]:
    """In the form of responses; for a running one, the usage so far."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
        **usage.marks,
    }
