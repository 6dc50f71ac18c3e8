"""Converts a grammar of plain text to a grammar of the same text inside a JSON string.

A custom tool takes text, and models write calls as JSON, where a line end is \\n and a quote \\". So every place in the grammar
where one character may stand becomes that character as JSON writes it, and a separate lexeme: llguidance's lexer does not
backtrack, and could not tell from a backslash alone whether a word continues or a line ends. Terminals and regular expressions
become rules of such lexemes.

Characters that JSON can only write by number (U+0000 and the like) are left out.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

_ESCAPED = {'"': r"\"", "\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\b": r"\b", "\f": r"\f"}
_PLAIN = r'[^"\\\x00-\x1f]'
_IGNORED = "ignored_by_all"
_CODES = (*range(0x20, 0x250), *range(0x250, 0xD800, 0x97), *range(0xE000, 0x110000, 0x97))
_COMMON_CHARS = "".join(char for char in map(chr, _CODES) if char not in _ESCAPED)
"""Plain characters of all kinds: a large class contains at least one of these."""
_NUMBERED = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)
_TOKEN = re.compile(
    r"""(?P<comment>(?://|\#)[^\n]*)
      |(?P<import>%import[ \t]+common\.(?P<one>[A-Z_]+)(?:[ \t]*->[ \t]*(?P<alias>[A-Z_]+))?)
      |(?P<imports>%import[ \t]+common[ \t]*\((?P<many>[A-Z_, \t]+)\))
      |(?P<ignore>%ignore\b)
      |(?P<directive>%\w*)
      |(?P<string>"(?:\\.|[^"\\\n])*"i?)
      |(?P<regex>/(?![/*])(?:\\.|\[(?:\\.|[^\]\\])*\]|[^/\\\[])+/[a-z]*)
      |(?P<alternative>->[ \t]*\w+)
      |(?P<head>[!?]{0,2}(?P<defined>\w+)(?:\.-?\d+)?[ \t]*:)
      |(?P<name>\w+)
      |(?P<times>~[ \t]*[0-9]+)
      |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_ATOM = re.compile(
    r"""(?P<class>\[\^?\]?(?:\\.|[^\]\\])*\])
      |(?P<group>\((?:\?:|\?.{0,2})?)
      |(?P<escape>\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[pP](?:\{[^}]*\}|[A-Z])|.))
      |(?P<repeat>(?:[*+?]|\{[0-9]+,?[0-9]*\})\??)
      |(?P<operator>[)|])
      |(?P<dot>\.)
      |(?P<char>.)""",
    re.VERBOSE | re.DOTALL,
)
_COMMON = {
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[0-9a-fA-F]",
    "INT": "[0-9]+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"(?:[0-9]+\.[0-9]*|\.[0-9]+)",
    "FLOAT": r"(?:[0-9]+[eE][+-]?[0-9]+|(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)",
    "NUMBER": r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?",
    "SIGNED_NUMBER": r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?",
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\.)*"',
    "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]",
    "LETTER": "[A-Za-z]",
    "WORD": "[A-Za-z]+",
    "CNAME": "[_A-Za-z][_A-Za-z0-9]*",
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
}
"""Lark's common.lark, as regular expressions."""


def inside_json(source: str) -> str:
    """The grammar of the text between the quotes. Raises ValueError, which says what is not supported."""
    return _Rewriter().all(source)


class _Rewriter:
    def __init__(self) -> None:
        self._in_rule = False
        """Whether the following tokens belong to a rule, and not to a terminal: only in rules may anything be ignored in between."""

    def all(self, source: str) -> str:
        tokens = list(_tokens(source))
        ignoring = any(token.lastgroup == "ignore" for token in tokens)
        rules: list[str] = []
        ignored: list[list[str]] = []
        out = rules
        for token in tokens:
            kind, text = token.lastgroup, token[0]
            if kind == "ignore":
                out = list[str]()
                ignored.append(out)
            elif kind in ("string", "regex") or (kind == "name" and _is_terminal(text)):
                written = _terminal(text) if kind == "name" else _string(text) if kind == "string" else _regex(text)
                out.append(f"({written} {_IGNORED})" if out is rules and ignoring and self._in_rule else written)
            else:
                if kind in ("head", "import", "imports"):
                    out = rules
                    rules.append("\n")
                out.append(self._other(token, text))
        if ignored:
            rules.append(f"\n{_IGNORED}: ({' | '.join(' '.join(''.join(each).split()) for each in ignored)})*")
        return "".join(rules)

    def _other(self, token: re.Match[str], text: str) -> str:
        match token.lastgroup:
            case "import":
                return _common(token["one"], token["alias"] or token["one"])
            case "imports":
                return "\n".join(_common(name.strip(), name.strip()) for name in token["many"].split(","))
            case "directive":
                raise ValueError(f"{text} is not supported; %ignore and %import common.NAME are")
            case "head":
                name = token["defined"]
                self._in_rule = not _is_terminal(name)
                return f"{name if self._in_rule else _terminal(name)}:"
            case "comment" | "alternative":
                return ""
            case _:
                return text


def _tokens(source: str) -> Iterator[re.Match[str]]:
    """Raises ValueError."""
    for token in _TOKEN.finditer(source):
        if token.lastgroup == "other" and token[0] in "&~":
            raise ValueError(f"'{token[0]}' is not supported")
        if token.lastgroup == "other" and token[0] in '/"':
            raise ValueError(f"the token that begins with {source[token.start() : token.start() + 40]} has no end")
        yield token


def _is_terminal(name: str) -> bool:
    return name.upper() == name and any(char.isalpha() for char in name)


def _terminal(name: str) -> str:
    """The name of the rule for a terminal."""
    return f"terminal_{name.lower()}"


def _regex(literal: str) -> str:
    body, _, flags = literal[1:].rpartition("/")
    if unknown := set(flags) - set("imsu"):
        raise ValueError(f"the flag '{min(unknown)}' of a regular expression is not supported")
    return inside_json_regex(body.replace("\\/", "/"), "i" in flags, "s" in flags)


def inside_json_regex(pattern: str, any_case: bool = False, any_line: bool = False) -> str:
    """A regular expression as part of a rule. any_line: a dot also matches the end of a line. Raises ValueError."""
    return f"({' '.join(_atoms(pattern, any_case, any_line))})"


def _atoms(pattern: str, any_case: bool, any_line: bool) -> Iterator[str]:
    for atom in _ATOM.finditer(pattern):
        text = atom[0]
        match atom.lastgroup:
            case "group":
                if text not in ("(", "(?:"):
                    raise ValueError(f"'{text}' in a regular expression is not supported")
                yield "("
            case "repeat":
                yield text[0] if text[0] in "*+?" else text.rstrip("?")
            case "operator":
                yield text
            case "dot":
                yield _set(r"[\s\S]" if any_line else r"[^\n]", any_case)
            case "class":
                if re.search(r"(?<!\\)\[|&&|--|~~|\|\|", text[1:]):
                    raise ValueError(f"the class '{text[:40]}' of a regular expression is not supported")
                yield _set(text, any_case)
            case "escape" if text[1] in "dDwWsS":
                yield _set(f"[{text}]", any_case)
            case "escape" if text[1] in "pP" and len(text) > 2:
                yield _property(text)
            case "escape":
                yield _char(_unescaped(text), any_case)
            case _ if text in "^$":
                raise ValueError(f"'{text}' in a regular expression is not supported: the whole text is always matched")
            case _ if text in "[\\":
                raise ValueError(f"'{text}' in a regular expression has no end")
            case _:
                yield _char(text, any_case)


def _unescaped(text: str) -> str:
    """Raises ValueError."""
    named = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
    if len(text) > 2:
        return chr(int(text[2:], 16))
    if text[1] not in named and text[1].isalnum():
        raise ValueError(f"'{text}' in a regular expression is not supported")
    return named.get(text[1], text[1])


def _char(char: str, any_case: bool = False) -> str:
    if char not in _ESCAPED and char < " ":
        raise ValueError(f"the control character U+{ord(char):04X} is not supported")
    if "\ud800" <= char <= "\udfff":
        raise ValueError(f"the surrogate U+{ord(char):04X} is not a character")
    both = sorted({each for each in (char, char.lower(), char.upper()) if len(each) == 1}) if any_case else [char]
    written = [json.dumps(_ESCAPED.get(each, each), ensure_ascii=False) for each in both]
    return written[0] if len(written) == 1 else f"({' | '.join(written)})"


@lru_cache(maxsize=256)
def _set(text: str, any_case: bool) -> str:
    """A class: one of its plain characters, or one of the others as JSON writes it."""
    try:
        member = re.compile(text, re.IGNORECASE if any_case else 0)
    except re.error as error:
        raise ValueError(f"the class '{text[:40]}' of a regular expression: {error}") from None
    others = [json.dumps(written) for char, written in _ESCAPED.items() if member.fullmatch(char)]
    plain = [_lexeme(f"[{text}&&{_PLAIN}]") + ("i" if any_case else "")] if _has_plain(member, text) else []
    if not plain and not others:
        raise ValueError(f"the class '{text[:40]}' of a regular expression is not supported: it has no plain character")
    return f"({' | '.join([*plain, *others])})"


def _property(text: str) -> str:
    """Characters of a category or script, like \\p{Lu}: no script contains any of those that JSON escapes."""
    name, within = text[2:].strip("{}"), text[1] == "p"
    others = [json.dumps(written) for char, written in _ESCAPED.items() if unicodedata.category(char).startswith(name) == within]
    return f"({' | '.join([_lexeme(f'[{text}&&{_PLAIN}]'), *others])})"


def _lexeme(pattern: str) -> str:
    """A regular expression in Lark's notation: on one line, with no unescaped slash."""
    bare = {"/": r"\/", "\n": r"\n"}
    return "/" + re.sub(r"\\[^\n]|[/\n]", lambda found: bare.get(found[0], found[0]), pattern) + "/"


def _has_plain(member: re.Pattern[str], text: str) -> bool:
    """Whether a class contains any plain character: it tries those that the class names, which may be its only ones, and the
    common ones."""
    named = _NUMBERED.sub(lambda found: chr(int(found[found.lastindex], 16)) if found.lastindex else found[0], text)
    return member.search("".join(char for char in named if char >= " " and char not in _ESCAPED) + _COMMON_CHARS) is not None


def _string(literal: str) -> str:
    """llguidance reads strings as JSON, with \\x41 as an addition."""
    any_case = literal.endswith("i")
    written = re.sub(r"\\(?:x([0-9a-fA-F]{2})|.)", lambda found: f"\\u00{found[1]}" if found[1] else found[0], literal.removesuffix("i"))
    try:
        text = str(json.loads(written, strict=False))
    except ValueError as error:
        raise ValueError(f"{literal[:40]} is not a string: {error}") from None
    return f"({' '.join(_char(char, any_case) for char in text)})" if text else '""'


def _common(name: str, alias: str) -> str:
    if name not in _COMMON:
        raise ValueError(f"common.{name} is not supported; {', '.join(_COMMON)} are")
    return f"{_terminal(alias)}: {inside_json_regex(_COMMON[name])}"
