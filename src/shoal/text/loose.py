"""Calls by models that omit their format's marker: an answer that is `{"name": "f", "arguments": {}}`, bare or in a code block.

Small models of the Qwen family do that, above all those for code; also with double braces, as some of their templates show
them. Whatever begins like a call of one of the tools is one, so that its arguments are held to their schema.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_FENCES = ("```json", "```", "")
_HEAD = [
    r"\{",
    r"\{?",
    r"\s*",
    *'"name":',
    r"\s*",
    '"',
    "([A-Za-z0-9_-]{1,64})",
    '"',
    ",",
    r"\s*",
    *'"arguments":',
    r"\s*",
]


def _atoms(fence: str) -> list[str]:
    return [r"\s*", *([*fence, r"\s*"] if fence else []), *_HEAD]


def _beginning(atoms: list[str]) -> str:
    """A regular expression for any prefix of a text."""
    out = ""
    for atom in reversed(atoms):
        out = f"(?:{atom}{out})?"
    return out


_WHOLE = re.compile("|".join("".join(_atoms(fence)) + r"(?=\{)" for fence in _FENCES))
_BEGUN = re.compile("|".join(_beginning(_atoms(fence)) for fence in _FENCES))


def begins(text: str, names: Collection[str]) -> tuple[str, int] | None:
    """If an answer begins with a call of one of the tools: its name, and where its arguments begin. None if it does not, or not yet."""
    found = _WHOLE.match(text)
    name = next((group for group in found.groups() if group), "") if found is not None else ""
    return (name, found.end()) if found is not None and name in names else None


def may_begin(text: str) -> bool:
    """Whether more text may turn it into a call."""
    return _BEGUN.fullmatch(text) is not None


def head(name: str) -> str:
    """The text before the arguments of a call of this tool, as a regular expression of llguidance."""
    return rf'[ \n]{{0,2}}(```(json)?\n?)?\{{\{{?\s{{0,4}}"name": ?"{re.escape(name)}",\s{{0,6}}"arguments": ?'


def called(names: Collection[str]) -> str:
    """Text that begins with a call of one of the tools, up to its name."""
    return rf'\s*(```(json)?\s*)?\{{\{{?\s*"name":\s*"({"|".join(map(re.escape, names))})"'


TAIL = r"\s{0,4}\}\}?(\s{0,2}```)?"
