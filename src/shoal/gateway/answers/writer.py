"""Writers of answers: the seam between sampled tokens and the format of an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shoal.gateway.http.faults import Fault
from shoal.request import FinishReason, Score, TokenChunk


@dataclass
class Piece:
    """News of one choice: text, maybe with the tokens that it came from, maybe the end."""

    choice: int
    text: str
    chunks: list[TokenChunk]
    finish: FinishReason | None
    upto: int
    """Tokens of the choice up to here, an end without a token counted as one: the same for the same piece, whenever it is made."""
    scores: tuple[Score, ...] = ()
    """Of the prompt's tokens, with a choice's first piece where they were asked for."""
    stop: str = ""
    """The stop string that ended the choice; empty: it ended otherwise, or has not."""


@dataclass
class Usage:
    prompt: int
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    """Of the completion."""
    waited: float = 0.0
    """Seconds until the first token, from when the request was taken on here."""
    took: float = 0.0
    """Seconds until the last one so far."""
    ended: int | None = None
    """Seconds since 1970, when all was said."""

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
        }


@dataclass(frozen=True)
class Event:
    """A server-sent event. name: its `event:` line, where it has one."""

    data: dict[str, Any] | str
    name: str = ""
    number: int | None = None
    """Its place in the stream, from 0 on, where the endpoint counts its events itself."""


class Writer(Protocol):
    """One reading of one answer. It is given every piece in order, also those that its reader has seen before."""

    def opening(self) -> Sequence[Event]:
        """What a stream begins with."""
        ...

    def piece(self, piece: Piece) -> Sequence[Event]:
        """At most one event where a reader may go on in the middle of the stream, unless events are counted."""
        ...

    def ending(self, usage: Usage) -> Sequence[Event]:
        """What a stream that came to its end ends with."""
        ...

    def failed(self, what: Fault) -> Sequence[Event]:
        """What a stream ends with that breaks off."""
        ...

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """The answer that is not streamed."""
        ...
