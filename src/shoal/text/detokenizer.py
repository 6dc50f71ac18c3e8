"""Tokens to text as they come: never half a character, never any part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_INCOMPLETE = "�"
_PATIENCE = 8  # tokens; no character takes more bytes than four


class Decoder(Protocol):
    def decode(self, tokens: Sequence[int]) -> str: ...


class Detokenizer:
    """Emits text once the tokens after it cannot change it.

    A token is decoded with those before it, because the same token reads differently at the beginning of a text; the window
    moves up whenever the text ends in a whole character.
    """

    def __init__(self, decoder: Decoder, context: Sequence[int] = ()) -> None:
        """context: the last tokens of the prompt, which the answer's first token continues."""
        self._decoder = decoder
        self._tokens = list(context)[-4:]
        self._done = len(self._tokens)  # tokens whose text is out
        self._out = decoder.decode(self._tokens)

    def push(self, token: int) -> str:
        """The text that is certain now, maybe none."""
        self._tokens.append(token)
        text = self._decoder.decode(self._tokens)
        if text.endswith(_INCOMPLETE) and len(self._tokens) - self._done <= _PATIENCE:
            return ""
        return self._advance(text)

    def finish(self) -> str:
        """What is left, with a replacement character for bytes that never became one."""
        return self._advance(self._decoder.decode(self._tokens))

    def _advance(self, text: str) -> str:
        new = text[len(self._out) :] if text.startswith(self._out) else ""
        self._tokens = self._tokens[-6:] if not text.endswith(_INCOMPLETE) else self._tokens
        self._done = len(self._tokens)
        self._out = self._decoder.decode(self._tokens)
        return new


class StopStrings:
    """Holds back what may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What may go out. Once a stop string is complete `stopped` is set, and only what came before it goes out."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(s) for s in self._stops) if at >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = max((self._overlap(s) for s in self._stops), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def finish(self) -> str:
        """What was held back and turned out to be text."""
        out, self._held = self._held, ""
        return out

    def _overlap(self, stop: str) -> int:
        """The longest beginning of the stop string that the held text ends in."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0


class TextStream:
    """One choice's tokens to its text."""

    def __init__(self, decoder: Decoder, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(decoder, prompt)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    def push(self, token: int) -> str:
        return self._stops.push(self._detokenizer.push(token))

    def finish(self) -> str:
        """The rest, when the choice ended by itself."""
        text = self._stops.push(self._detokenizer.finish())
        return text + ("" if self.stopped else self._stops.finish())
