"""Costly text work lets others run, is bounded, and what is small does not wait behind it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from time import sleep
from typing import Any

import pytest

from shoal.errors import InvalidRequest, QueueFull
from shoal.gateway.http import work as work_module
from shoal.gateway.http.work import LARGE, MOST, work
from shoal.gateway.service import MAX_VALUES, json_object
from shoal.text import grammar
from shoal.text.tokenizer import Tokenizer
from tests.support import vocabularies


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.open(Path("model.gguf"), vocabularies.byte_level())


def turns_meanwhile(do: Callable[[], Any]) -> int:
    """How often another thread has its turn while this is called: never, where the call holds the interpreter's lock.

    It is taken away from nobody meanwhile; threads have turns where another gives it up.
    """
    turns, over = 0, Event()

    def count() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    counting = Thread(target=count)
    counting.start()
    try:
        while not turns:
            sleep(0.001)
        before = turns
        do()
        return turns - before
    finally:
        over.set()
        counting.join()
        sys.setswitchinterval(interval)


@pytest.mark.slow
def test_tokenisers_and_grammars_let_go_of_the_lock(tokenizer: Tokenizer):
    text = " a" * 100_000
    tokens = tokenizer.encode(text)
    backend = tokenizer._backend  # the calls alone: what Python does around them takes turns in any case
    assert turns_meanwhile(lambda: backend.encode(text, add_special_tokens=False)) == 0
    assert turns_meanwhile(lambda: backend.encode_batch_fast([text], add_special_tokens=False)) > 0
    assert turns_meanwhile(lambda: tokenizer.encode(text)) > 0
    assert turns_meanwhile(lambda: tokenizer.decode(tokens)) > 0
    assert turns_meanwhile(lambda: tokenizer.exceeds(text, 10)) > 0
    schema = {"anyOf": [{"type": "string", "pattern": f"[a-z]*x{i}(foo|bar)*[0-9]{{50}}"} for i in range(300)]}
    assert turns_meanwhile(lambda: grammar.json_schema(schema)) > 0


def test_a_text_is_the_same_tokens_and_back(tokenizer: Tokenizer):
    for text in ("", "a", " hello wörld\n\n😀", "x" * 5000):
        assert tokenizer.encode(text, bos=False) == tokenizer._backend.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(tokenizer.encode(text, bos=False)) == text


def test_what_is_small_does_not_wait_behind_what_is_large_and_only_so_much_waits():
    async def scenario() -> None:
        gate = Event()
        large = [asyncio.ensure_future(work(LARGE, gate.wait)) for _ in range(MOST)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await work(LARGE, gate.wait)
        assert await work(LARGE - 1, lambda: 5) == 5
        gate.set()
        assert await asyncio.gather(*large) == [True] * MOST
        assert await work(LARGE, lambda: 6) == 6
        assert work_module._busy == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"x": [' + b"[]," * MAX_VALUES + b"[]]}", "arrays and objects"),
        (b'{"prompt": [1, ' + b"1.5," * MAX_VALUES + b"1]}", "other than tokens"),
        (b'{"prompt": [' + b"1.5," * 5000 + b"1]}" + b" " * MAX_VALUES, "other than tokens"),
        (b'{"prompt": [[' + b"1.5," * MAX_VALUES + b"1]]}", "other than tokens"),
        (b'{"messages": [' + b"1," * MAX_VALUES + b"1]}", "other than tokens"),
        (b'{"x": {"y": {' + b",".join(b'"%d": 1' % i for i in range(MAX_VALUES)) + b"}, " + b'"z": 1}}', "other than tokens"),
        (b"{" + b",".join(b'"%d": 1' % i for i in range(MAX_VALUES + 1)) + b"}", "other than tokens"),
    ],
)
def test_a_body_of_too_many_values_is_refused(body: bytes, why: str):
    with pytest.raises(InvalidRequest, match=why):
        json_object(body)


def test_a_body_may_be_long_where_it_is_text_and_tokens():
    for body in (
        b'{"prompt": [' + b"1," * 1_000_000 + b"1]}",
        b'{"prompt": [' + b",".join([b"[" + b"1," * 9999 + b"1]"] * 64) + b"]}",
        b'{"prompt": "' + b"[]{}" * 500_000 + b'"}',
        b'{"prompt": "' + rb"[\"{\\" * 200_000 + b'", "x": [' + b"[]," * 300 + b"1]}",
    ):
        assert len(json_object(body)["prompt"]) >= 64


def test_nesting_is_counted_outside_of_strings_alone():
    json_object(b'{"x": "' + b"[" * 1000 + b'", "y": "\\\\", "z": "\\"' + b"{" * 1000 + b'"}')
    for deep in (b'{"x": ' + b"[" * 300 + b"]" * 300 + b"}", b'{"a\\\\": "", "x": ' + b"[" * 300 + b"]" * 300 + b"}"):
        with pytest.raises(InvalidRequest, match="levels of arrays and objects"):
            json_object(deep)
