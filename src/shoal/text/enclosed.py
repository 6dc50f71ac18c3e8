"""The marks that some models put around the answer proper: `<response>…</response>`."""

from __future__ import annotations

from shoal.text.deltas import Delta, Parser
from shoal.text.detokenizer import overlap


class EnclosedParser:
    """Removes the marks around an answer, which another parser reads. An answer that does not begin with `begin` has neither;
    `end` with more text after it is text.
    """

    def __init__(self, begin: str, end: str, answer: Parser) -> None:
        self._begin, self._end, self._answer = begin, end, answer
        self._enclosed: bool | None = None
        """None: not certain yet."""
        self._held = ""

    thinking = False

    @property
    def complete(self) -> bool:
        return self._answer.complete

    def push(self, text: str) -> list[Delta]:
        self._held += text
        if self._enclosed is None:
            held = self._held.lstrip()
            if self._begin.startswith(held) and held != self._begin:
                return []
            self._enclosed = held.startswith(self._begin)
            self._held = held.removeprefix(self._begin) if self._enclosed else self._held
        upto = self._ending() if self._enclosed else len(self._held)
        said, self._held = self._held[:upto], self._held[upto:]
        return self._answer.push(said) if said else []

    def _ending(self) -> int:
        """Where the text that may be the end begins."""
        at = self._held.rfind(self._end)
        if at >= 0 and not self._held[at + len(self._end) :].strip():
            return at
        return len(self._held) - overlap(self._held, self._end)

    def finish(self) -> list[Delta]:
        held, self._held = self._held, ""
        if self._enclosed:
            held = held.rstrip().removesuffix(self._end) if held.rstrip().endswith(self._end) else held
        return [*(self._answer.push(held) if held else []), *self._answer.finish()]
