"""gpt-oss's output format: an answer is messages, each in a channel (OpenAI, harmony response format).

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…

The prompt ends in `<|start|>assistant`. `analysis` is reasoning; `final` is content, and so is `commentary` without a
recipient. A message to `functions.NAME` is a call, after which the model ends; its recipient is named before or after its
channel.
"""

from __future__ import annotations

import re
from typing import Literal

from shoal.text.arguments import JsonArguments
from shoal.text.deltas import Arguments, CallBegun, ContentDelta, Delta, ReasoningDelta
from shoal.text.detokenizer import overlap

CHANNEL, MESSAGE, START, END, CONSTRAIN = "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"
CALL, RETURN = "<|call|>", "<|return|>"  # end an answer
MARKS = (CHANNEL, MESSAGE, START, END, CONSTRAIN)
_ENDS = (END, START, CHANNEL, CALL, RETURN)
_TO = re.compile(r"to=functions\.([A-Za-z0-9_-]{1,64})")
_IN = re.compile(r"<\|channel\|>\s*(\w+)")
_BEGINS = (START, CHANNEL, "assistant", "to=")
_LONGEST = 256  # characters of a header


class HarmonyParser:
    """Parses one choice. Text that does not begin with a header is content to the end."""

    def __init__(self, calls: bool) -> None:
        """calls: whether there may be any; otherwise a message to a function is content."""
        self._calls = calls
        self._held = ""
        self._where: Literal["header", "analysis", "content", "call"] = "header"
        self._plain = False
        self._said = set[str]()
        """Channels that have had text; their next text begins a new paragraph."""
        self._begun = 0
        self._value = JsonArguments()

    @property
    def thinking(self) -> bool:
        return self._where == "analysis"

    @property
    def complete(self) -> bool:
        return self._begun > 0 and self._value.over

    def push(self, text: str) -> list[Delta]:
        self._held += text
        out: list[Delta] = []
        while self._header() if self._where == "header" else self._message(out):
            pass
        return out

    def finish(self) -> list[Delta]:
        held, self._held = self._held, ""
        if self._where != "header":
            return self._told(held)
        return [ContentDelta(held)] if held.strip() and not any(mark in held for mark in MARKS) and not self._said else []

    def _header(self) -> bool:
        """Whether a message has begun."""
        head, found, rest = self._held.partition(MESSAGE)
        bare = head.lstrip()
        if not any(bare.startswith(begin) or begin.startswith(bare) for begin in _BEGINS) or len(head) > _LONGEST:
            self._plain, self._where = True, "content"
            return True
        if not found:
            return False
        channel, to = _IN.search(head), _TO.search(head)
        if to is not None and self._calls:
            self._where, self._value = "call", JsonArguments()
            self._held, self._name = rest, to[1]
            self._begun += 1
            self._named = False
        else:
            self._where = "analysis" if channel is not None and channel[1] == "analysis" else "content"
            self._held = ("\n\n" if self._where in self._said else "") + rest
        return True

    def _message(self, out: list[Delta]) -> bool:
        """Whether the message has ended."""
        ends = [] if self._plain else [at for at in (self._held.find(end) for end in _ENDS) if at >= 0]
        keep = 0 if self._plain else max(overlap(self._held, end) for end in _ENDS)
        upto = min(ends, default=len(self._held) - keep)
        out += self._told(self._held[:upto])
        self._held = self._held[upto:]
        if not ends:
            return False
        if self._where != "call":
            self._said.add(self._where)
        self._where, self._held = "header", self._held.removeprefix(END)
        return True

    def _told(self, text: str) -> list[Delta]:
        if self._where == "call":
            begun = [] if self._named else [CallBegun(self._begun - 1, self._name)]
            self._named = True
            read = "" if self._value.over else self._value.push(text)[0]
            return [*begun, *([Arguments(self._begun - 1, read)] if read else [])]
        if not text:
            return []
        return [ReasoningDelta(text) if self._where == "analysis" else ContentDelta(text)]
