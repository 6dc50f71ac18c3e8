"""Tokens to text as they arrive: never half a character, never any part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from typing import Protocol


class Decoder(Protocol):
    def text_bytes(self, token: int, first: bool) -> bytes: ...
    def token_bytes(self, token: int) -> bytes: ...


class _Marked:
    """A decoder that shows some special tokens."""

    def __init__(self, decoder: Decoder, markers: Collection[int]) -> None:
        self._decoder, self._markers = decoder, frozenset(markers)

    def text_bytes(self, token: int, first: bool) -> bytes:
        return self.token_bytes(token) if token in self._markers else self._decoder.text_bytes(token, first)

    def token_bytes(self, token: int) -> bytes:
        return self._decoder.token_bytes(token)


class Detokenizer:
    """Returns text as soon as its characters are complete: a token is bytes, and UTF-8 shows where a character ends."""

    def __init__(self, decoder: Decoder, context: Sequence[int] = ()) -> None:
        """context: the last tokens of the prompt, which the answer's first token continues."""
        self._decoder = decoder
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True
        for token in list(context)[-4:]:
            self.push(token)

    def push(self, token: int) -> str:
        """The text that is certain now, possibly none."""
        raw = self._decoder.text_bytes(token, self._first)
        self._first = self._first and not self._decoder.text_bytes(token, False)
        return self._utf8.decode(raw)

    def finish(self) -> str:
        """The rest, with a replacement character for bytes that never became a character."""
        return self._utf8.decode(b"", final=True)


class StopStrings:
    """Holds back text that may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self.stopped = ""
        """The stop string that was found; empty: none."""

    def push(self, text: str) -> str:
        """The text that can be returned. Once a stop string is complete, `stopped` is set, and only the text before it is returned."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [(at, stop) for at, stop in ((self._held.find(s), s) for s in self._stops) if at >= 0]
        if found:
            at, self.stopped = min(found)
            out, self._held = self._held[:at], ""
            return out
        keep = max((overlap(self._held, s) for s in self._stops), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def finish(self) -> str:
        """Text that was held back and is not a stop string."""
        out, self._held = self._held, ""
        return out


def overlap(text: str, what: str) -> int:
    """Length of the longest proper prefix of `what` with which the text ends."""
    return next((n for n in range(min(len(what) - 1, len(text)), 0, -1) if text.endswith(what[:n])), 0)


class TextStream:
    """Converts one choice's tokens to its text."""

    def __init__(self, decoder: Decoder, prompt: Sequence[int], stops: Sequence[str], markers: Collection[int] = ()) -> None:
        """markers: special tokens that count as text here, such as those that begin a tool call."""
        self._detokenizer = Detokenizer(_Marked(decoder, markers) if markers else decoder, prompt)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> str:
        """The stop string that was found; empty: none."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        return self._stops.push(self._detokenizer.push(token))

    def finish(self) -> str:
        """The rest, if the choice ended by itself."""
        text = self._stops.push(self._detokenizer.finish())
        return text + ("" if self.stopped else self._stops.finish())
