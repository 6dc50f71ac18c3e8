"""Walks through grammars: what they let through, and some text that they do."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from shoal.text import grammar
from shoal.text.answer_format import AnswerFormat
from shoal.text.answer_grammar import answer_grammar, held_tools
from shoal.text.tools import ToolFormat, ToolFunction

END = 256
"""The token that ends a text in the vocabulary of single bytes; the others are the bytes."""


def tokenizer() -> LLTokenizer:
    return grammar._bytes()


def calls(format: ToolFormat, tools: Sequence[ToolFunction], choice: str = "auto", parallel: bool = True, **options: Any) -> str:
    """The grammar of answers of a model that does not reason."""
    names = tuple(tool.name for tool in tools) if format.loose and "answer" not in options else ()
    return answer_grammar(AnswerFormat(format, names=names), held_tools(tools), choice, parallel, **options)


def accepts(made: str, text: str) -> bool:
    """Whether a text, all of it, is what a grammar describes."""
    matcher = LLMatcher(tokenizer(), made, log_level=0)
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def said(made: str, rng: Random, most: int = 3000) -> str:
    """Some text that a grammar describes, byte by byte at random; what closes is preferred after a while."""
    matcher = LLMatcher(tokenizer(), made, log_level=0)
    out = bytearray()
    for at in range(most):
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = [int(token) for token in np.flatnonzero(bits)]
        assert allowed, f"nothing may follow {out!r}"
        closing = [token for token in allowed if token == END or (at > 200 and token in b'"]}')]
        token = rng.choice(closing if closing and (at > 200 or rng.random() < 0.5) else allowed)
        if token == END:
            return out.decode()
        assert matcher.consume_token(token), matcher.get_error()
        out.append(token)
    raise AssertionError(f"no end in {most} bytes: {out[:300]!r}")
