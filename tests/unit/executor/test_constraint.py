"""The last stage holds answers to grammars: nothing else comes, whatever befalls the stages, and no grammar holds up another's step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from random import Random
from threading import Event
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend

from shoal.errors import UserError
from shoal.executor import constraint
from shoal.executor import sampler as sampler_module
from shoal.executor.constraint import Constraint, GrammarFailed, Grammars
from shoal.executor.sampler import Sampler
from shoal.executor.shard import Shard
from shoal.native import BLOCK_TOKENS
from shoal.request import FinishReason, Request, RequestId, SamplingParams
from shoal.scheduler.limits import Limits
from shoal.scheduler.plan import Opened, StepPlan, StepResult
from shoal.scheduler.scheduler import Scheduler
from shoal.testing import toy
from shoal.text import grammar
from shoal.text.tokenizer import Tokenizer
from tests.support import vocabularies
from tests.support.letters import END, tokenizer

WIDTH = 260  # more logits than tokens
SCHEMA = grammar.json_schema({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 5}}})


@pytest.fixture
def grammars() -> Iterator[Grammars]:
    made = Grammars(tokenizer, patience=None)
    yield made
    made.close()


def row(seed: int, width: int = WIDTH) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, width).astype(np.float32)


def mask(place: Constraint, width: int = WIDTH) -> set[int]:
    """Which tokens may come."""
    allowed = place.allowed()
    assert allowed is not None
    listed = set(allowed.tokens.tolist())
    return set(range(width)) - listed if allowed.but else listed


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


@settings(max_examples=40, deadline=None)
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


# A mask that is late


def test_a_late_mask_puts_its_draw_off_and_no_other():
    opened = Event()
    grammars = Grammars(lambda: opened.wait(30) and tokenizer(), patience=0.0)  # type: ignore[arg-type,return-value]
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


# Through stages that are lost

LETTERS = json.dumps({"grammars": [{"lark_grammar": "start: /(ab|[g-m]{3}k)+x/"}]})


class Line:
    """A scheduler before toy stages of one layer each, with real shards. The last stage may be lost."""

    def __init__(self, stages: int, blocks: int = 16) -> None:
        self.scheduler = Scheduler(Limits(blocks, BLOCK_TOKENS, 4096, 8, 64, 99, stages))
        self.blocks, self._all = blocks, stages
        self._grammars = toy.grammars()
        self._shards = [self._fresh() for _ in range(stages)]
        self.said: dict[str, list[int]] = {}
        self.ends: dict[str, FinishReason] = {}
        self._enter([range(0)] * stages)

    def _fresh(self) -> Shard:
        return Shard(toy.make_layers, bf16=True, grammars=self._grammars)

    def _enter(self, keep: list[range]) -> None:
        self._stages = []
        for at, (shard, kept) in enumerate(zip(self._shards, keep, strict=True)):
            shard.load(range(at, at + 1), toy.ToyWeights(self._all))
            self._stages.append(shard.enter(range(at, at + 1), kept, self.blocks))

    def lose_the_last(self) -> None:
        self._shards[-1] = self._fresh()
        self._enter([*(range(at, at + 1) for at in range(self._all - 1)), range(0)])
        self.scheduler.rewind()
        for plan in self.scheduler.refill([(0, self._all)], None, set()):
            self._run(plan)

    def _run(self, plan: StepPlan) -> StepResult:
        hidden, sampled = None, []
        for stage in self._stages:
            output = stage.run(plan, hidden)
            hidden, sampled = output.hidden, output.sampled
        return StepResult(plan.step, sampled, [])

    def step(self, late: bool = False) -> bool:
        """late: no mask came in time. Whether there was something to run."""
        plan = self.scheduler.schedule()
        self.scheduler.check()
        if plan is None:
            return False
        with mock.patch.object(Sampler, "sample", return_value=None) if late else nullcontext():
            result = self._run(plan)
        for chunk in self.scheduler.apply(result):
            if chunk.token is not None:
                self.said.setdefault(chunk.request, []).append(chunk.token)
            if chunk.finish is not None:
                self.ends[chunk.request] = chunk.finish
        self.scheduler.check()
        return True

    def drain(self) -> None:
        while self.step():
            pass
        assert (self.scheduler.running, self.scheduler.waiting) == (0, 0)
        self._grammars.close()


def requests(count: int, tokens: int = 40) -> list[Request]:
    params = [SamplingParams(grammar=LETTERS if i % 2 == 0 else "", seed=i, temperature=(0.0, 1.5)[i % 3 > 0]) for i in range(count)]
    return [Request(RequestId(f"r{i}"), [5 + i, *range(9)] * (1 + 3 * i), tokens, p, 1, frozenset({toy.END})) for i, p in enumerate(params)]


def whole(line: Line, asked: list[Request]) -> tuple[dict[str, list[int]], dict[str, FinishReason]]:
    for request in asked:
        line.scheduler.add(request)
    line.drain()
    return line.said, line.ends


def test_a_grammar_holds_over_one_stage_and_over_several():
    asked = requests(4)
    for stages in (1, 2):
        said, ends = whole(Line(stages), asked)
        for request in asked:
            assert said[request.id] == toy.expected(request, stages)[0]
            text = "".join(chr(97 + token) for token in said[request.id])
            if request.sampling.grammar:
                assert text.endswith("x") == (ends[request.id] is FinishReason.STOP)


def test_the_cut_at_max_tokens_is_told():
    asked = requests(1, tokens=2)
    assert whole(Line(1), asked)[1] == {"r0": FinishReason.LENGTH}


def test_preemption_leaves_grammars_where_they_are():
    asked = requests(5, tokens=70)
    line = Line(2, blocks=8)
    said, _ = whole(line, asked)
    assert line.scheduler.counters.preemptions
    assert said == {request.id: toy.expected(request, 2)[0] for request in asked}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_is_lost_or_late_the_answer_is_the_same(seed: int):
    rng, asked = Random(seed), requests(4, tokens=24)
    line = Line(2, blocks=rng.choice((5, 16)))
    for request in asked:
        line.scheduler.add(request)
    for _ in range(200):
        if rng.random() < 0.1:
            line.lose_the_last()
        if not line.step(late=rng.random() < 0.4):
            break
    line.drain()
    assert line.said == {request.id: toy.expected(request, 2)[0] for request in asked}


# Tokenizers of models


def spelled(llguidance: LLTokenizer, tokenizer: Tokenizer, pattern: str, text: str) -> bool:
    """Whether a text may be said under a pattern in this vocabulary's tokens, and none of its masks has a token of other bytes."""
    grammars = Grammars(lambda: llguidance, patience=None)
    place, at, raw = grammars.constrain(grammar.regex(pattern), [], tokenizer.size + 9), 0, text.encode()
    while at < len(raw):
        may = {token: tokenizer.token_bytes(token) for token in mask(place, tokenizer.size + 9)}
        fitting = [token for token, said in may.items() if token not in tokenizer.stop_tokens and said and raw[at:].startswith(said)]
        if not fitting:
            return False
        best = max(fitting, key=lambda token: len(may[token]))
        grammars.advance([(place, best)])
        at += len(may[best])
    ends = mask(place, tokenizer.size + 9)
    grammars.close()
    return tokenizer.stop_tokens <= ends and max(ends) < tokenizer.size


@pytest.mark.parametrize(
    "meta",
    [vocabularies.byte_level(), vocabularies.sentencepiece(), vocabularies.sentencepiece(add_space_prefix=False)],
    ids=["byte-level", "sentencepiece", "sentencepiece without a first space"],
)
@pytest.mark.parametrize("text", ["hello", " hello", "日本 é\n{}", "aaa  aaa", "ÿþ"])
def test_text_is_spelled_in_the_tokens_of_every_kind_of_vocabulary(meta: dict[str, Any], text: str):
    made = Tokenizer.open(Path("x.gguf"), meta)
    seen = made.for_grammars(made.size + 9)
    pattern = "".join(f"\\x{{{ord(c):x}}}" for c in text)
    assert spelled(seen, made, pattern, text)
    assert spelled(seen, made, "(?s:.*)", text)
    assert not spelled(seen, made, f"z{pattern}", text)


def test_a_directorys_tokenizer(tmp_path: Path):
    gguf = Tokenizer.open(Path("x.gguf"), vocabularies.byte_level())
    Backend.from_str(gguf._backend.to_str()).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    made = Tokenizer.open(tmp_path)
    assert spelled(made.for_grammars(made.size + 9), made, "hello w[a-z]+", "hello wide")


def test_special_tokens_have_names():
    assert Tokenizer.open(Path("x.gguf"), vocabularies.byte_level()).special == {"<|im_start|>": 266, "<|im_end|>": 267}
