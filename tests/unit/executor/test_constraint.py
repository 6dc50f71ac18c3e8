"""The last stage holds answers to grammars: nothing else comes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from shoal.errors import UserError
from shoal.executor import constraint
from shoal.executor.constraint import GrammarFailed, Grammars
from shoal.executor.sampler import Sampler
from shoal.request import SamplingParams
from shoal.scheduler.plan import Opened
from shoal.text import grammar
from tests.support.letters import END, tokenizer
from tests.support.masks import WIDTH, mask, row

SCHEMA = grammar.json_schema({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 5}}})


class Answer:
    """One sequence under a grammar, drawn from random logits of its position."""

    def __init__(self, grammars: Grammars, params: SamplingParams, generated: tuple[int, ...] = ()) -> None:
        self.tokens = list(generated)
        self.sampler = Sampler(grammars, WIDTH)
        self.sampler.open(Opened(0, params, [], list(generated)))

    def more(self, tokens: int) -> Answer:
        for _ in range(tokens):
            sampled = self.sampler.sample(0, len(self.tokens), row(len(self.tokens)))
            assert sampled is not None and not sampled.fault
            self.sampler.settle()
            self.tokens.append(sampled.token)
            if sampled.token == END:
                break
        return self


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "cut", [{}, {"top_k": 1}, {"top_p": 0.1}, {"min_p": 0.5}, {"repetition_penalty": 1.5}, {"logit_bias": {65: 100.0}}]
)
def test_every_cut_comes_after_the_mask(grammars: Grammars, temperature: float, cut: dict[str, Any]):
    made = grammar.regex("[0-9]{3}(x|yz)")
    said = Answer(grammars, SamplingParams(temperature=temperature, grammar=made, **cut)).more(20).tokens
    assert said[-1] == END
    assert bytes(said[:-1]).decode() in {f"{n:03}{end}" for n in range(1000) for end in ("x", "yz")}


def test_the_end_is_drawn_where_nothing_else_can_follow(grammars: Grammars):
    assert Answer(grammars, SamplingParams(grammar=grammar.regex("ab"))).more(9).tokens == [*b"ab", END]


def test_all_tokens_that_end_a_text_may_where_the_grammar_is_satisfied():
    class Two(grammar._Bytes):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = [*self.tokens, b"<stop>"]
            self.special_token_ids = [END, END + 1]

    grammars = Grammars(lambda: LLTokenizer(Two(), eos_token=[END, END + 1]), patience=None)
    may = [mask(grammars.constrain(grammar.regex("a?"), tokens, WIDTH)) for tokens in ([], [97])]
    assert may == [{97, END, END + 1}, {END, END + 1}]
    grammars.close()


def test_what_is_no_token_never_comes(grammars: Grammars):
    """A model may have more logits than its tokenizer tokens."""
    everything = mask(grammars.constrain(grammar.regex("(?s:.*)"), [], WIDTH))
    assert END in everything
    assert everything.isdisjoint(range(END + 1, WIDTH))


def test_fewer_logits_than_tokens(grammars: Grammars):
    assert mask(grammars.constrain(grammar.regex("[a-z]*"), [], 100), 100) == {97, 98, 99}
    with pytest.raises(GrammarFailed, match="no token"):
        grammars.constrain(grammar.regex("z"), [], 100).allowed()


def test_log_probabilities_stay_the_models_own(grammars: Grammars):
    sampler = Sampler(grammars, WIDTH)
    sampler.open(Opened(0, SamplingParams(temperature=0.0, logprobs=2, grammar=grammar.regex("a")), [], []))
    logits = row(1)
    sampled = sampler.sample(0, 0, logits)
    right = logits - np.log(np.exp(logits).sum())
    assert sampled is not None
    assert sampled.token == 97
    assert sampled.logprob == pytest.approx(right[97], abs=1e-4)
    assert [a.token for a in sampled.alternatives] == np.argsort(-logits)[:2].tolist()
    assert np.array_equal(logits, row(1))


@settings(max_examples=40)
@given(st.integers(0, 30), st.integers(0, 2**32), st.sampled_from([SCHEMA, grammar.regex("(ab|[c-k]{2,9}!)*")]))
def test_a_place_is_found_again_from_the_tokens(at: int, seed: int, made: str):
    grammars = Grammars(tokenizer, patience=None)
    params = SamplingParams(grammar=made, seed=seed, temperature=2.0)
    whole = Answer(grammars, params).more(40).tokens
    again = Answer(grammars, params, tuple(whole[:at])).more(40 - at).tokens if END not in whole[:at] else whole
    assert again[: len(whole)] == whole
    grammars.close()


def test_sequences_of_one_grammar_do_not_meet(grammars: Grammars):
    first, second = (grammars.constrain(grammar.regex("ab"), [], WIDTH) for _ in range(2))
    assert mask(first) == {97}
    grammars.advance([(first, 97)])
    assert (mask(first), mask(second), len(grammars)) == ({98}, {97}, 1)


def test_compiled_grammars_are_kept_up_to_a_number(grammars: Grammars, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constraint, "_KEPT", 2)
    for text in ("a", "b", "c", "b"):
        assert mask(grammars.constrain(grammar.regex(text), [], WIDTH)) == {ord(text)}
    assert len(grammars) == 2


def test_the_vocabulary_is_made_when_the_first_grammar_comes_and_once():
    made: list[LLTokenizer] = []
    grammars = Grammars(lambda: made.append(tokenizer()) or made[0], patience=None)
    Answer(grammars, SamplingParams()).more(3)
    assert made == []
    for text in "ab":
        grammars.constrain(grammar.regex(text), [], WIDTH).allowed()
    assert len(made) == 1
    grammars.close()


# What cannot be


def fault(grammars: Grammars | None, made: str, generated: tuple[int, ...] = ()) -> str:
    sampler = Sampler(grammars, WIDTH)
    sampler.open(Opened(0, SamplingParams(grammar=made), [], list(generated)))
    sampled = sampler.sample(0, 0, row(0))
    assert sampled is not None
    return sampled.fault


def test_a_grammar_that_does_not_compile_ends_its_sequence_alone(grammars: Grammars):
    assert "unknown name" in fault(grammars, LLMatcher.grammar_from_lark("start: nothing"))
    assert fault(grammars, "not even JSON {")
    assert fault(grammars, grammar.regex("a")) == ""


def test_a_text_that_is_not_of_the_grammar_is_a_fault(grammars: Grammars):
    assert fault(grammars, grammar.regex("a"), (98,))


def test_a_grammar_that_costs_too_much_on_the_way_is_a_fault(grammars: Grammars):
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}, "additionalProperties": False}
    made = LLMatcher.grammar_from_json_schema(wide)
    assert fault(grammars, made) == ""
    assert "items" in fault(grammars, made, tuple(b"{"))


def test_a_node_without_the_tokenizer_says_so():
    def missing() -> LLTokenizer:
        raise UserError("/models/x: no tokenizer.json")

    grammars = Grammars(missing, patience=None)
    assert "no tokenizer.json" in fault(grammars, grammar.regex("a"))
    assert "no tokenizer" in fault(None, grammar.regex("a"))
    grammars.close()
