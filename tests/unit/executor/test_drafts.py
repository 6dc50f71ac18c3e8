"""A run over drafts samples what single steps would sample, whatever the drafts are."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.executor.base import Floats
from shoal.executor.constraint import Constraint, Grammars
from shoal.executor.sampler import Sampler
from shoal.executor.sequences import Sequences
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, Sampled, StepPlan
from shoal.text import grammar
from tests.support.letters import tokenizer
from tests.support.masks import WIDTH

params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 2.0]),
    top_k=st.sampled_from([0, 3]),
    seed=st.integers(0, 2**64 - 1),
    repetition_penalty=st.sampled_from([1.0, 1.6]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.9]),
    logprobs=st.sampled_from([None, 0, 2]),
    grammar=st.sampled_from(["", grammar.regex("[a-e]{3,9}"), grammar.regex("(ab|ba)*c")]),
)


def opened(grammars: Grammars, sampling: SamplingParams) -> Sampler:
    sampler = Sampler(grammars, WIDTH)
    sampler.open(Opened(0, sampling, [97, 98], [97]))
    return sampler


def after(path: list[int]) -> Floats:
    """Logits that depend on all tokens before, as a model's do."""
    return np.random.default_rng([7, *path]).normal(size=WIDTH).astype(np.float32) * 2


def likes(token: int) -> Floats:
    out = np.zeros(WIDTH, np.float32)
    out[token] = 9
    return out


def one_by_one(grammars: Grammars, sampling: SamplingParams, count: int) -> list[Sampled]:
    sampler, path, out = opened(grammars, sampling), [97], list[Sampled]()
    for position in range(count):
        sampled = sampler.sample(0, position, after(path))
        sampler.settle()
        assert sampled is not None
        out.append(sampled)
        if sampled.fault:
            break
        path.append(sampled.token)
    return out


@pytest.fixture(scope="module")
def patient() -> Any:
    made = Grammars(tokenizer, patience=None)
    yield made
    made.close()


@settings(max_examples=150, deadline=None)
@given(sampling=params, data=st.data())
def test_a_run_samples_what_single_steps_sample(patient: Grammars, sampling: SamplingParams, data: st.DataObject) -> None:
    right = one_by_one(patient, sampling, 12)
    tokens = [sampled.token for sampled in right]
    sampler, said = opened(patient, sampling), list[Sampled]()
    while len(said) < len(right):
        count = data.draw(st.integers(0, min(4, len(right) - len(said) - 1)))
        drafts = [data.draw(st.sampled_from([token, token, token, 97])) for token in tokens[len(said) : len(said) + count]]
        path = [97, *tokens[: len(said)]]
        logits = np.stack([after([*path, *drafts[:i]]) for i in range(count + 1)])
        new = sampler.run(0, len(said), drafts, logits)
        sampler.settle()
        agree = next((i for i, draft in enumerate(drafts) if draft != tokens[len(said) + i]), count)
        least = min(agree + 1, len(right) - len(said) - bool(right[-1].fault))  # a fault is told by a step of its own
        assert len(new) == max(least, 1)
        said += new
    assert said == right


def test_a_mask_that_is_late_ends_a_run_early(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(tokenizer, patience=0.0)
    sampler = Sampler(grammars, WIDTH)
    sampler.open(Opened(0, SamplingParams(temperature=0, grammar=grammar.regex("a*b")), [], []))
    constraint = sampler._states[0].constraint  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(constraint, Constraint)
    constraint.allowed()  # the first mask is there; the second never comes
    monkeypatch.setattr(Grammars, "advance", lambda self, sampled: [setattr(c, "_next", Future()) for c, _ in sampled])
    assert [s.token for s in sampler.run(0, 0, [97, 97], np.stack([likes(97)] * 3))] == [97]
    sampler.settle()
    assert sampler.run(0, 1, [97], np.stack([likes(97)] * 2)) == []
    grammars.close()


def test_a_fault_after_the_first_token_waits_for_the_next_step() -> None:
    sampler = Sampler()
    sampler.open(Opened(0, SamplingParams(temperature=0), [], []))
    unsound = np.full(WIDTH, np.nan, np.float32)
    assert [s.token for s in sampler.run(0, 0, [97], np.stack([likes(97), unsound]))] == [97]
    (fault,) = sampler.run(0, 1, [97], np.stack([unsound, likes(97)]))
    assert fault.fault


def applied(chunk: Chunk) -> Any:
    return Sequences(4).apply(StepPlan(0, [], [], [], [], [chunk]))


def test_the_rows_of_drafts_are_picked_with_the_one_before_them() -> None:
    batch = applied(Chunk(1, 0, [5, 6, 7, 8], [0], True, None, 2))
    assert (batch.picked.tolist(), batch.sequences) == ([1, 2, 3], (1, 1, 1))


@pytest.mark.parametrize(("sample", "drafts"), [(True, 3), (True, 4), (True, -1), (False, 1)])
def test_drafts_that_follow_nothing_are_a_protocol_error(sample: bool, drafts: int) -> None:
    with pytest.raises(RemoteProtocolError, match="follow nothing"):
        applied(Chunk(1, 0, [5, 6, 7], [0], sample, None, drafts))
