"""A mask that is late puts its own draw off and holds up no other."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Event
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from shoal.executor import constraint
from shoal.executor import sampler as sampler_module
from shoal.executor.constraint import Constraint, GrammarFailed, Grammars
from shoal.executor.sampler import Sampler
from shoal.request import SamplingParams
from shoal.scheduler.plan import Opened
from shoal.text import grammar
from tests.support.letters import tokenizer
from tests.support.masks import WIDTH, mask, row


def test_a_late_mask_puts_its_draw_off_and_no_other():
    opened = Event()
    grammars = Grammars(lambda: opened.wait(30) and tokenizer(), patience=0.0)  # pyright: ignore[reportArgumentType]
    sampler = Sampler(grammars, WIDTH)
    sampler.open(Opened(0, SamplingParams(grammar=grammar.regex("a")), [], []))
    sampler.open(Opened(1, SamplingParams(), [], []))
    assert sampler.sample(0, 0, row(0)) is None
    assert sampler.sample(1, 0, row(0)) is not None
    opened.set()
    grammars.patience = None
    later = grammars.constrain(grammar.regex("a"), [], WIDTH)
    assert mask(later) == {97}  # opened after it, in the same thread
    sampled = sampler.sample(0, 0, row(0))
    assert sampled is not None
    assert sampled.token == 97
    grammars.close()


def test_the_draws_of_a_step_wait_for_late_masks_no_longer_than_one(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []

    class Late(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            assert timeout is not None
            waits.append(timeout)
            raise TimeoutError

    monkeypatch.setattr(sampler_module, "monotonic", lambda: sum(waits))
    monkeypatch.setattr(Grammars, "constrain", lambda *_: Constraint(Late(), WIDTH))
    grammars = Grammars(tokenizer, patience=1.0)
    sampler = Sampler(grammars, WIDTH)
    for i in range(32):
        sampler.open(Opened(i, SamplingParams(grammar=grammar.regex("a")), [], []))
    for step in (1, 2):
        assert [sampler.sample(i, 0, row(0)) for i in range(32)] == [None] * 32
        sampler.settle()
        assert sum(waits) == step
    grammars.close()


def test_a_sequence_that_cannot_be_opened_ends_alone(grammars: Grammars):
    """Its tokens, and the next one, may be handed over before anybody knows: where a process takes over from another one."""
    held, beside = grammars.constrain(grammar.regex("ab"), [ord("x")], WIDTH), grammars.constrain(grammar.regex("ab"), [], WIDTH)
    grammars.advance([(held, ord("b")), (beside, ord("a"))])
    with pytest.raises(GrammarFailed):
        held.allowed()
    assert mask(beside) == {ord("b")}


def test_a_panic_of_the_library_ends_one_sequence(grammars: Grammars, monkeypatch: pytest.MonkeyPatch):
    class Panic(BaseException):
        """As pyo3 makes one."""

    follow, places = constraint._follow, [grammars.constrain(grammar.regex("ab"), [], WIDTH) for _ in range(2)]

    def panics(matcher: LLMatcher, tokens: list[int], width: int) -> Any:
        if tokens == [ord("x")]:
            raise Panic
        return follow(matcher, tokens, width)

    monkeypatch.setattr(constraint, "_follow", panics)
    grammars.advance([(places[0], ord("x")), (places[1], ord("a"))])
    with pytest.raises(Panic):
        places[0].allowed(30)
    known = places[1].allowed(30)
    assert known is not None and set(known.tokens.tolist()) == {ord("b")}


def test_a_mask_that_never_comes_ends_its_sequence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constraint, "_MOST", -1.0)
    begun, never = Event(), Event()
    monkeypatch.setattr(Grammars, "_compile", lambda *_: begun.set() or never.wait(30))
    grammars = Grammars(tokenizer)
    held = grammars.constrain(grammar.regex("a"), [], WIDTH)
    begun.wait(30)
    with pytest.raises(GrammarFailed, match="too long"):
        held.allowed(0.0)
    never.set()
    grammars.close()


def test_a_tokenizer_that_is_read_for_long_is_no_grammar_s_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constraint, "_MOST", -1.0)
    begun, read = Event(), Event()

    def slow() -> LLTokenizer:
        begun.set()
        read.wait(30)
        return tokenizer()

    grammars = Grammars(slow)
    held = grammars.constrain(grammar.regex("a"), [], WIDTH)
    begun.wait(30)
    assert held.allowed(0.0) is None
    read.set()
    assert mask(held) == {97}
    grammars.close()


def test_a_grammar_that_waits_in_line_does_not_pay_for_those_before_it(monkeypatch: pytest.MonkeyPatch):
    now, begun, opened, compile = [0.0], Event(), Event(), Grammars._compile

    def slow(self: Grammars, grammar: str) -> LLMatcher:
        begun.set()
        opened.wait(30)
        return compile(self, grammar)

    monkeypatch.setattr(constraint, "monotonic", lambda: now[0])
    monkeypatch.setattr(Grammars, "_compile", slow)
    grammars = Grammars(tokenizer)
    first, second = (grammars.constrain(grammar.regex(text), [], WIDTH) for text in "ab")
    begun.wait(30)
    now[0] = 60.0
    assert second.allowed(0.0) is None
    with pytest.raises(GrammarFailed, match="too long"):
        first.allowed(0.0)
    opened.set()
    assert mask(second) == {98}
    grammars.close()
