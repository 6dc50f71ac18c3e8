"""How models write their reasoning: the known formats, and the one that a chat template uses.

think      <think>…</think>        DeepSeek R1, Qwen 3, GLM 4.5, QwQ, SmolLM 3 and most others
mistral    [THINK]…[/THINK]        Magistral; special tokens
granite    <think>…</think><response>…</response>
                                   Granite 3.3
granite3.2 Here is my thought process:…Here is my response:…
cohere     <|START_THINKING|>…<|END_THINKING|><|START_RESPONSE|>…<|END_RESPONSE|>
                                   Command R7B and Command A; special tokens
harmony    <|channel|>analysis…    gpt-oss: all of an answer is in channels (see harmony.py)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shoal.text import harmony
from shoal.text.deltas import Delta, Parser, PlainParser, ReasoningDelta
from shoal.text.detokenizer import overlap
from shoal.text.enclosed import EnclosedParser


@dataclass(frozen=True)
class ReasoningFormat:
    """`begin` and `end` enclose the reasoning, with which an answer begins if it has any. `before` and `after` may enclose the
    rest of the answer."""

    name: str
    begin: str
    end: str
    channels: bool = False
    before: str = ""
    after: str = ""

    def opened(self, prompt: str) -> bool:
        """Whether a prompt ends inside reasoning that the model continues."""
        return prompt.rstrip().endswith(self.begin)


THINK = ReasoningFormat("think", "<think>", "</think>")
MISTRAL_THINK = ReasoningFormat("mistral", "[THINK]", "[/THINK]")
GRANITE = ReasoningFormat("granite", "<think>", "</think>", before="<response>", after="</response>")
GRANITE_32 = ReasoningFormat("granite3.2", "Here is my thought process:", "Here is my response:")
COHERE = ReasoningFormat("cohere", "<|START_THINKING|>", "<|END_THINKING|>", before="<|START_RESPONSE|>", after="<|END_RESPONSE|>")
CHANNELS = ReasoningFormat("harmony", harmony.CHANNEL, harmony.END, channels=True)


def detect(template: str) -> ReasoningFormat | None:
    """The format in a chat template's source; None for a model that does not reason, or whose format is unknown here."""
    if all(mark in template for mark in (harmony.CHANNEL, harmony.MESSAGE, "analysis")):
        return CHANNELS
    if COHERE.begin in template:
        return replace(COHERE, before="<|START_TEXT|>", after="<|END_TEXT|>") if "<|START_TEXT|>" in template else COHERE
    if GRANITE_32.begin in template:
        return GRANITE_32
    if GRANITE.begin in template and GRANITE.before + GRANITE.after in template:
        return GRANITE
    return next((format for format in (THINK, MISTRAL_THINK) if format.begin in template or format.end in template), None)


class ReasoningParser:
    """Separates reasoning from the answer after it, which another parser reads. White space around them is dropped.

    An answer that does not begin with reasoning has none, whatever comes later.
    """

    def __init__(self, format: ReasoningFormat, opened: bool, answer: Parser | None = None) -> None:
        """opened: the prompt already contains `begin`."""
        self._format, self._answer = format, answer or PlainParser()
        if format.before:
            self._answer = EnclosedParser(format.before, format.after, self._answer)
        self._before = True
        """Whether nothing is certain yet."""
        self.thinking = opened
        self._fresh = True
        """Whether only white space has come of the part that is being read, reasoning or answer."""
        self._held = ""

    @property
    def complete(self) -> bool:
        return self._answer.complete

    def push(self, text: str) -> list[Delta]:
        self._held += text
        if self._before and not self._begun():
            return []
        out = self._thought() if self.thinking else []
        return out if self.thinking else [*out, *self._answered()]

    def finish(self) -> list[Delta]:
        held, self._held = self._held, ""
        if self.thinking:
            said = "" if self._before and not held.strip() else held.rstrip()
            return [ReasoningDelta(said)] if said else []
        return [*(self._answer.push(held) if held and self._before else []), *self._answer.finish()]

    def _begun(self) -> bool:
        """Whether it is certain now if there is reasoning."""
        begin, held = self._format.begin, self._held.lstrip()
        if len(held) < len(begin) and begin.startswith(held):
            return False
        self._before = False
        if held.startswith(begin):
            self.thinking, self._held = True, held[len(begin) :]
        elif not self.thinking:
            self._fresh = False  # its white space belongs to the answer
        return True

    def _thought(self) -> list[Delta]:
        if self._fresh:
            self._held = self._held.lstrip()
        at = self._held.find(self._format.end)
        over = at >= 0
        upto = at if over else len(self._held) - overlap(self._held, self._format.end)
        said = self._held[:upto].rstrip()
        self._held = self._held[at + len(self._format.end) :] if over else self._held[len(said) :]
        self._fresh = over or (self._fresh and not said)
        self.thinking = not over
        return [ReasoningDelta(said)] if said else []

    def _answered(self) -> list[Delta]:
        if self._fresh:
            self._held = self._held.lstrip()
        held, self._held = self._held, ""
        self._fresh = self._fresh and not held
        return self._answer.push(held) if held else []
