"""Marks in a text: what reads like a control token there is none.

A chat template makes one string of its own words and everybody else's. So that its own control tokens can be told from those
that a user wrote, each of theirs gets a mark inside before the template sees it: the tokeniser does not find it then, and
its first step of normalisation takes the mark out again. What is left is the text as it was written, in the tokens of a text.

The mark is made of two noncharacters, which Unicode keeps for such uses. A text that holds the first of them itself comes
through unchanged too: there it gets another one behind it, which is taken out last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, cast

from tokenizers import normalizers

_FIRST = "\U0010ffff"
MARK, ESCAPED = _FIRST + "\U0010fffe", _FIRST + "\U000fffff"


def escape(text: str) -> str:
    """A text as the tokeniser takes it, with nothing marked."""
    return text.replace(_FIRST, ESCAPED)


def plain(text: str) -> str:
    """A marked text as it was written."""
    return text.replace(MARK, "").replace(ESCAPED, _FIRST)


def steps() -> list[normalizers.Replace]:
    """`plain`, as the first steps of a normaliser."""
    return [normalizers.Replace(MARK, ""), normalizers.Replace(ESCAPED, _FIRST)]


def any_of(texts: Iterable[str]) -> str:
    """An expression for any of some texts, the longest that fits. What they begin with alike is written once, so that each place in a text is
    looked at once and not for each of them."""
    listed = sorted(set(texts))
    if len(listed) == 1:
        return re.escape(listed[0])
    least, most = listed[0], listed[-1]
    begin = least[: next((at for at, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))]
    rests = [text[len(begin) :] for text in listed]
    parts = [any_of(group) for _, group in groupby(filter(None, rests), key=lambda rest: rest[0])]
    return f"{re.escape(begin)}(?:{'|'.join(parts)}){'?' if '' in rests else ''}"


class Marks:
    """control: the texts of control tokens; those of one character can have no mark inside, and have none."""

    def __init__(self, control: Iterable[str]) -> None:
        listed = {text for text in control if len(text) > 1}
        self._found = re.compile(any_of(listed)) if listed else None
        self._beginnings = {text[:n] for text in listed for n in range(1, len(text))}
        self._longest = max(map(len, listed), default=0)

    def within(self, text: str) -> str:
        """With a mark in each control token's text."""
        if self._found is None:
            return text
        return self._found.sub(lambda found: found[0][0] + MARK + found[0][1:], text)

    def text(self, text: str) -> str:
        """All of a text that somebody wrote. What it ends in may be the beginning of a control token's text: that is marked too, lest
        a template puts the rest behind it."""
        marked = self.within(escape(text))
        end = len(marked.rstrip())
        for at in range(max(0, end - self._longest), end):
            if marked[at:end] in self._beginnings:
                return marked[: at + 1] + MARK + marked[at + 1 :]
        return marked

    def value(self, value: Any) -> Any:
        """Whatever a template is given, with all texts in it marked."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(inner) for key, inner in cast("Mapping[Any, Any]", value).items()}
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in cast("list[Any]", value)]
        return value
