"""Marks in a text: they keep text that reads like a control token from becoming one.

A chat template joins its own words and everybody else's into one string. To tell the template's control tokens from those that
a user wrote, whatever may begin a control token gets a mark before the template sees it. The tokeniser then does not find the
token, and its first normalisation step removes the marks. The result is the text as it was written, in ordinary text tokens.

The mark consists of two noncharacters, which Unicode reserves for such uses. A text that itself contains the first of them also
comes through unchanged: it gets another one after it, which is removed last.
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
    """A text in the form that the tokeniser takes, with nothing marked."""
    return text.replace(_FIRST, ESCAPED)


def plain(text: str) -> str:
    """Removes the marks from a text."""
    return text.replace(MARK, "").replace(ESCAPED, _FIRST)


def steps() -> list[normalizers.Replace]:
    """`plain`, as the first steps of a normaliser."""
    return [normalizers.Replace(MARK, ""), normalizers.Replace(ESCAPED, _FIRST)]


def any_of(texts: Iterable[str]) -> str:
    """An expression for any of some texts, the longest that matches. Common prefixes are written once, so that each place in a
    text is looked at once and not for each of them."""
    listed = sorted(set(texts))
    if len(listed) == 1:
        return re.escape(listed[0])
    least, most = listed[0], listed[-1]
    begin = least[: next((at for at, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))]
    rests = [text[len(begin) :] for text in listed]
    parts = [any_of(group) for _, group in groupby(filter(None, rests), key=lambda rest: rest[0])]
    return f"{re.escape(begin)}(?:{'|'.join(parts)}){'?' if '' in rests else ''}"


class Marks:
    """A mark goes after the first character of any control token, wherever it is: whatever a template cuts from a text or
    appends to it, the rest never becomes a control token. Only words that are tokens without control (`<think>`) get no mark,
    because templates search for them.

    control: the texts of control tokens; those of one character have no inside and get no mark. words: those of other added tokens.
    """

    def __init__(self, control: Iterable[str], words: Iterable[str] = ()) -> None:
        listed = {text for text in control if len(text) > 1}
        firsts = {case for text in listed for case in (text[0].lower(), text[0].upper()) if len(case) == 1}
        kept = [word for word in words if firsts.isdisjoint(word[1:])]
        ways = [f"(?=(?i:{any_of(listed)})).", *([f"(?P<word>{any_of(kept)})"] if kept else [])] if listed else []
        self._begun = re.compile("|".join([*ways, f"[{re.escape(''.join(sorted(firsts)))}]"]), re.DOTALL) if listed else None

    def within(self, text: str) -> str:
        """The text with a mark after anything that may be the beginning of a control token."""
        if self._begun is None:
            return text
        return self._begun.sub(lambda found: found[0] if found.lastgroup == "word" else found[0] + MARK, text)

    def text(self, text: str) -> str:
        """Marks all of a text that somebody wrote."""
        return self.within(escape(text))

    def value(self, value: Any) -> Any:
        """Any template input, with all texts in it marked."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            inside = {self.value(key): self.value(inner) for key, inner in cast("Mapping[Any, Any]", value).items()}
            return type(cast("dict[Any, Any]", value))(inside) if isinstance(value, dict) else inside  # some know how to write themselves
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in cast("list[Any]", value)]
        return value
