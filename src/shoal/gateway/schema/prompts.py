"""Texts or tokens, one or many, as completions and embeddings accept them."""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import Field

from shoal.errors import InvalidRequest
from shoal.gateway.engine import Engine

_First = Field(fail_fast=True)
Prompts = Annotated[
    str | Annotated[list[str], _First] | Annotated[list[int], _First] | Annotated[list[Annotated[list[int], _First]], _First],
    Field(union_mode="left_to_right"),
]
"""For a long list of mixed kinds the first fault is enough: an error for each of its parts would take long to build."""


def _listed(given: Prompts) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [cast("list[int]", given)]
    return cast("list[str | list[int]]", given)


def tokenised(given: Prompts, engine: Engine, param: str, most: int, control: bool) -> list[list[int]]:
    """The tokens of each. param: the field that they came in. control: recognise control tokens in texts. Raises
    InvalidRequest, NotReady."""
    listed = _listed(given)
    if not 1 <= len(listed) <= most:
        raise InvalidRequest(f"{param} must be one text or a list of 1 to {most}, not of {len(listed)}", param)
    longest = engine.longest()
    if any(isinstance(p, str) and engine.tokenizer.exceeds(p, longest) for p in listed):  # before all of it is tokenised
        raise InvalidRequest(f"a text of {param} has more than {longest} tokens, the most that fit", param, "context_length_exceeded")
    prompts = [engine.tokenizer.encode(p, control=control) if isinstance(p, str) else p for p in listed]
    if any(not 0 <= token < engine.vocabulary for tokens in prompts for token in tokens):
        raise InvalidRequest(f"{param} has a token outside the vocabulary of {engine.vocabulary}", param)
    return prompts


def texts(given: Prompts, engine: Engine) -> tuple[str, ...]:
    """The text of each."""
    return tuple(p if isinstance(p, str) else engine.tokenizer.decode(p) for p in _listed(given))
