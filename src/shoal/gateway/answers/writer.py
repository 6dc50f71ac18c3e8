"""Writers of answers: the interface between sampled tokens and an endpoint's format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shoal.gateway.http.faults import Fault
from shoal.request import FinishReason, Score, TokenChunk


@dataclass
class Piece:
    """News of one choice: text, possibly with the tokens that it came from, possibly the end."""

    choice: int
    text: str
    chunks: list[TokenChunk]
    finish: FinishReason | None
    upto: int
    """Tokens of the choice up to here; an end without a token counts as one. A piece has the same number whenever it is produced."""
    scores: tuple[Score, ...] = ()
    """Of the prompt's tokens, with a choice's first piece if they were requested."""
    stop: str = ""
    """The stop string that ended the choice; empty if it ended otherwise, or has not ended."""
    degraded: int = 0
    """With the end: see TokenChunk."""


@dataclass
class Usage:
    prompt: int
    completion: int = 0
    cached: int = 0
    degraded: int = 0
    """Tokens that were computed without an expert."""
    reasoning: int = 0
    """Tokens of the completion."""
    waited: float = 0.0
    """Seconds from acceptance of the request here to the first token."""
    took: float = 0.0
    """Seconds to the latest token."""
    ended: int | None = None
    """When everything was sampled, in seconds since 1970."""

    def wire(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
            **self.marks,
        }

    @property
    def marks(self) -> dict[str, int]:
        """What no API has a field for, where there is something to say."""
        return {"degraded_tokens": self.degraded} if self.degraded else {}


@dataclass(frozen=True)
class Event:
    """A server-sent event. name: its `event:` line, if it has one."""

    data: dict[str, Any] | str
    name: str = ""
    number: int | None = None
    """Its place in the stream, from 0 on, if the endpoint numbers its events itself."""


class Writer(Protocol):
    """One reading of one answer. It is given every piece in order, including those that its reader has seen before."""

    def opening(self) -> Sequence[Event]:
        """The beginning of a stream."""
        ...

    def piece(self, piece: Piece) -> Sequence[Event]:
        """At most one event if a reader may resume in the middle of the stream, unless events are numbered."""
        ...

    def ending(self, usage: Usage) -> Sequence[Event]:
        """The end of a complete stream."""
        ...

    def failed(self, what: Fault) -> Sequence[Event]:
        """The end of a stream that breaks off."""
        ...

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """The answer without streaming."""
        ...
