"""Marks in a text: what reads like a control token there is none.

A chat template makes one string of its own words and everybody else's. So that its own control tokens can be told from those
that a user wrote, whatever may begin one of theirs gets a mark before the template sees it: the tokeniser finds none then, and
its first step of normalisation takes the marks out again. What is left is the text as it was written, in the tokens of a text.

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
    """Made behind the first character of any control token, wherever that stands: whatever a template takes out of the middle of a text or puts
    behind it, no control token comes of the rest. Only words that are tokens and control nothing (`<think>`) have none, for templates look for them.

    control: the texts of control tokens; those of one character can have no mark inside, and have none. words: those of other added tokens.
    """

    def __init__(self, control: Iterable[str], words: Iterable[str] = ()) -> None:
        listed = {text for text in control if len(text) > 1}
        firsts = {case for text in listed for case in (text[0].lower(), text[0].upper()) if len(case) == 1}
        kept = [word for word in words if firsts.isdisjoint(word[1:])]
        ways = [f"(?=(?i:{any_of(listed)})).", *([f"(?P<word>{any_of(kept)})"] if kept else [])] if listed else []
        self._begun = re.compile("|".join([*ways, f"[{re.escape(''.join(sorted(firsts)))}]"]), re.DOTALL) if listed else None

    def within(self, text: str) -> str:
        """With a mark behind whatever may be the beginning of a control token."""
        if self._begun is None:
            return text
        return self._begun.sub(lambda found: found[0] if found.lastgroup == "word" else found[0] + MARK, text)

    def text(self, text: str) -> str:
        """All of a text that somebody wrote."""
        return self.within(escape(text))

    def value(self, value: Any) -> Any:
        """Whatever a template is given, with all texts in it marked."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            inside = {self.value(key): self.value(inner) for key, inner in cast("Mapping[Any, Any]", value).items()}
            return type(cast("dict[Any, Any]", value))(inside) if isinstance(value, dict) else inside  # some know how to write themselves
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in cast("list[Any]", value)]
        return value
