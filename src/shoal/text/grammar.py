"""Grammars that an answer must match, in llguidance's JSON form: the values of `SamplingParams.grammar`.

Making a grammar also checks it, by compiling it for a vocabulary of single bytes. That takes up to about 0.2 s for the largest,
and seconds for a schema with many parts that cannot be enforced, because its parts are then compiled one by one: do it in a
thread. Clients' input is limited in size, depth and repetition here, and in work by llguidance's own limits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, cast

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from shoal.errors import InvalidRequest
from shoal.request import GRAMMAR_FUEL, GRAMMAR_ITEMS, GRAMMAR_SYMBOLS, MAX_GRAMMAR
from shoal.text import schema as schemas
from shoal.text.formats import exact
from shoal.text.schema import TooCostly

MAX_PATTERN = 4096  # characters
MAX_REPEATED = 20_000  # characters of a pattern with its {n} written out

SPACE = r"(?: |\r?\n[ \t]{0,24})"  # on one line or indented; a small model may otherwise go on with empty lines for ever
END = 256  # the special token of the vocabulary for checking grammars
_COSTLY = ("fuel exhausted", "too large", "Current row has", "Unable to determine")  # what llguidance says of endless work
_COUNT = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_ATOM = re.compile(r"\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|\\(?:[pPxuU]\{[^}]*\}|.)", re.DOTALL)  # a class, an escape


def json_object(param: str = "response_format") -> str:
    """Any JSON object."""
    return json_schema({"type": "object"}, param=param)


def json_schema(schema: Mapping[str, Any], strict: bool = True, param: str = "response_format") -> str:
    """JSON that a schema describes. If not strict, keywords that cannot be enforced are ignored.

    Raises InvalidRequest, with `param`, for a schema that is invalid, is too large, or (strict) requires what cannot be enforced.
    """
    return _of_schema(held(schema, strict, param), strict)


def held(schema: Mapping[str, Any], strict: bool, param: str) -> Mapping[str, Any]:
    """The parts of a schema that can be enforced, in llguidance's form. Raises InvalidRequest as `json_schema` does."""

    def compile(part: Mapping[str, Any]) -> None:
        for pattern in _patterns(part):
            bounded_pattern(pattern, param)
        checked(_of_schema(part, strict), param)

    schemas.check_bounds(schema, param)
    return schemas.held(exact(schema), strict, compile, param)


def _of_schema(schema: Mapping[str, Any], strict: bool) -> str:
    text = json.dumps(schema, ensure_ascii=False)
    return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": SPACE, "lenient": not strict})


def _patterns(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        inside = cast("Mapping[str, Any]", schema)
        if isinstance(pattern := inside.get("pattern"), str):
            yield pattern
        if isinstance(named := inside.get("patternProperties"), Mapping):
            yield from cast("Mapping[str, Any]", named)
        for part in inside.values():
            yield from _patterns(part)
    elif isinstance(schema, list):
        for part in cast("list[Any]", schema):
            yield from _patterns(part)


def regex(pattern: str, param: str = "response_format") -> str:
    """Text that a regular expression matches as a whole. Raises InvalidRequest."""
    bounded_pattern(pattern, param)
    return checked(LLMatcher.grammar_from_regex(pattern), param)


def lark(source: str, param: str = "response_format") -> str:
    """Text of a grammar in llguidance's variant of Lark; it begins at the rule `start`. Raises InvalidRequest."""
    return checked(LLMatcher.grammar_from_lark(source), param)


def bounded_pattern(pattern: str, param: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise TooCostly(f"a regular expression has {len(pattern)} characters; at most {MAX_PATTERN} are supported", param)
    if (size := repeated(pattern)) > MAX_REPEATED:
        raise TooCostly(f"a regular expression repeats to {size} characters; at most {MAX_REPEATED} are supported", param)


def repeated(pattern: str) -> int:
    """How many characters and classes a regular expression has with its counted repetitions, like {3,5}, written out."""
    open_groups, size, last, at = list[int](), 0, 0, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "{" and (count := _COUNT.match(pattern, at)):
            times = max(int(count[1]), int(count[3] or 0), 1)
            size, last, at = size + last * (times - 1), last * times, count.end()
            continue
        if char == "(":
            open_groups.append(size)
            size = 0
        elif char == ")" and open_groups:
            last, size = size, open_groups.pop() + size
        elif char not in "*+?|":
            size, last = size + 1, 1
        whole = _ATOM.match(pattern, at)
        at = whole.end() if whole else at + 1
    return size + sum(open_groups)


class _Bytes(TokenizerWrapper):
    """A vocabulary of the 256 bytes and an end token, for checking grammars."""

    def __init__(self) -> None:
        self.is_tokenizer_wrapper = True
        self.eos_token_id, self.bos_token_id = END, None
        self.tokens = [*(bytes([b]) for b in range(256)), b"<end>"]
        self.special_token_ids = [END]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def _bytes() -> LLTokenizer:
    return LLTokenizer(_Bytes())


def checked(grammar: str, param: str | None) -> str:
    """Raises InvalidRequest for a grammar that is too large or does not compile."""
    if len(grammar) > MAX_GRAMMAR:
        raise TooCostly(f"the grammar has {len(grammar)} characters; at most {MAX_GRAMMAR} are supported", param)
    limits = LLParserLimits(
        initial_lexer_fuel=GRAMMAR_FUEL, max_items_in_row=GRAMMAR_ITEMS, max_grammar_size=GRAMMAR_SYMBOLS, verbose_errors=False
    )
    matcher = LLMatcher(_bytes(), grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
        matcher.consume_tokens(matcher.compute_ff_tokens())  # to the first choice
        matcher.compute_bitmask()
    if matcher.is_error():
        reason = _reason(matcher.get_error())
        raise (TooCostly if any(words in reason for words in _COSTLY) else InvalidRequest)(f"not supported: {reason}", param)
    return grammar


def _reason(message: str) -> str:
    """llguidance's message, in one line."""
    return " ".join(message.replace("<non-verbose/>", "").split())[:300]
