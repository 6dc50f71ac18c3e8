"""A draw depends on (seed, position) and the logits alone, and follows the distribution that was asked for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.errors import InvalidRequest, RemoteProtocolError
from shoal.executor.sampler import Sampler, distribution, uniform
from shoal.executor.sequences import Sequences
from shoal.native import BLOCK_TOKENS
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, Sampled, StepPlan

Floats = NDArray[np.float32]


def logits(*values: float) -> Floats:
    return np.array(values, np.float32)


def spread(size: int = 1000, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def sampler(params: SamplingParams, prompt: tuple[int, ...] = (), generated: tuple[int, ...] = ()) -> Sampler:
    out = Sampler()
    out.open(Opened(1, params, list(prompt), list(generated)))
    return out


def sample(
    params: SamplingParams, row: Floats, position: int = 0, prompt: tuple[int, ...] = (), generated: tuple[int, ...] = ()
) -> Sampled:
    return drawn(sampler(params, prompt, generated), position, row)


def drawn(sampler: Sampler, position: int, row: Floats) -> Sampled:
    """What it draws for sequence 1, which nothing puts off."""
    sampled = sampler.sample(1, position, row)
    assert sampled is not None
    return sampled


def greedy(**fields: object) -> SamplingParams:
    return SamplingParams(temperature=0, **fields)  # pyright: ignore[reportArgumentType]


def test_uniform_lies_in_its_range_and_is_even():
    draws = np.array([uniform(seed, p) for seed in range(20) for p in range(500)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] / len(draws) - 0.1).max() < 0.02


def test_uniform_is_pinned():
    """A stream that is resumed on another version draws what it would have drawn."""
    assert [uniform(0, 0), uniform(7, 11)] == [0.5079605879681605, 0.6806956012301171]
    assert len({uniform(s, p) for s in range(50) for p in range(50)}) == 2500


def test_temperature_zero_takes_the_likeliest():
    assert sample(greedy(), logits(1, 5, 3)).token == 1


def test_the_first_of_equals_is_taken():
    assert sample(greedy(), logits(2, 5, 5)).token == 1


@given(st.integers(0, 2**64 - 1), st.integers(0, 9999))
def test_a_draw_depends_on_seed_and_position_alone(seed: int, position: int):
    params, row = SamplingParams(seed=seed), spread(100)
    resumed = sampler(params)
    resumed.sample(1, position + 1, row)
    assert resumed.sample(1, position, row) == sample(params, row, position)


def test_draws_follow_the_distribution():
    row, params = logits(0, 1, 2), SamplingParams(seed=3)
    drawn = np.bincount([sample(params, row, p).token for p in range(4000)], minlength=3) / 4000
    assert np.abs(drawn - distribution(row, params)).max() < 0.03


def test_a_high_temperature_flattens():
    row = logits(0, 4)
    assert distribution(row, SamplingParams(temperature=4))[1] < distribution(row, SamplingParams())[1]


@pytest.mark.parametrize("k", [1, 2, 10, 1000, 5000])
def test_top_k_keeps_k(k: int):
    assert np.count_nonzero(distribution(spread(), SamplingParams(top_k=k))) == min(k, 1000)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.99999])
@pytest.mark.parametrize("size", [3, 700, 6000])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, size: int):
    row = spread(size) / 10
    whole = np.sort(distribution(row, SamplingParams()))[::-1]
    kept = np.count_nonzero(distribution(row, SamplingParams(top_p=p)))
    assert whole[:kept].sum() >= p - 1e-6
    assert whole[: kept - 1].sum() < p + 1e-6


def test_min_p_cuts_what_is_far_below_the_best():
    kept = distribution(np.log(logits(8, 4, 1)), SamplingParams(min_p=0.3)) > 0
    assert kept.tolist() == [True, True, False]


@given(st.integers(0, 30), st.floats(0.01, 1), st.floats(0, 1), st.floats(0.01, 5), st.integers(0, 999))
def test_some_token_is_always_left(k: int, p: float, least: float, temperature: float, position: int):
    params, row = SamplingParams(temperature, k, p, least), spread(40, position)
    probabilities = distribution(row, params)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities[sample(params, row, position).token] > 0


def test_the_repetition_penalty_covers_prompt_and_answer():
    params = greedy(repetition_penalty=2)
    assert sample(params, logits(3, 2, -1), prompt=(0,)).token == 1
    assert sample(params, logits(-1.5, -1, -9), generated=(1,)).token == 0


def test_presence_and_frequency_cover_the_answer_alone():
    assert sample(greedy(presence_penalty=1.5), logits(3, 2), prompt=(0,)).token == 0
    assert sample(greedy(presence_penalty=1.5), logits(3, 2), generated=(0,)).token == 1
    assert sample(greedy(frequency_penalty=0.4), logits(3, 2), generated=(0, 0)).token == 0
    assert sample(greedy(frequency_penalty=0.4), logits(3, 2), generated=(0, 0, 0)).token == 1


def test_what_is_drawn_counts_for_the_next_draw():
    s, row = sampler(greedy(frequency_penalty=2)), logits(3, 2, 0.5)
    said = [drawn(s, p, row).token for p in range(4)]
    assert said[:2] == [0, 1]
    rebuilt = sampler(greedy(frequency_penalty=2), generated=(0, 1))
    assert [drawn(rebuilt, p, row).token for p in (2, 3)] == said[2:]


def test_bias_lifts_and_bans():
    assert sample(greedy(logit_bias={2: 100}), logits(3, 2, 0)).token == 2
    assert sample(greedy(logit_bias={0: -100}), logits(3, 2, 0)).token == 1


def test_logits_are_left_as_they_were():
    row = spread(50)
    before = row.copy()
    sample(SamplingParams(top_k=3, top_p=0.5, logit_bias={1: 2}, presence_penalty=1), row, generated=(4,))
    assert np.array_equal(row, before)


def test_log_probabilities_are_the_models_own():
    row = logits(0, 1, 2, 3)
    out = sample(greedy(logprobs=2, logit_bias={0: 100}), row)
    right = row - np.log(np.exp(row).sum())
    assert out.logprob == pytest.approx(right[0], abs=1e-5)
    assert [a.token for a in out.alternatives] == [3, 2]
    assert [a.logprob for a in out.alternatives] == pytest.approx([right[3], right[2]], abs=1e-5)


def test_log_probabilities_without_alternatives():
    out = sample(greedy(logprobs=0), logits(0, 1))
    assert (out.token, out.alternatives) == (1, ())
    assert out.logprob is not None


@pytest.mark.parametrize("params", [SamplingParams(), greedy(), greedy(frequency_penalty=1.0), SamplingParams(logprobs=2)])
@pytest.mark.parametrize("bad", [(0, np.nan, 1), (0, np.inf, 1), (-np.inf, -np.inf, -np.inf)])
def test_what_is_no_number_is_a_fault_and_not_the_requests(params: SamplingParams, bad: tuple[float, ...]):
    sampled = sample(params, logits(*bad), generated=(0,))
    assert "not a number" in sampled.fault
    assert sampled.ours


@pytest.mark.parametrize(
    "wrong", [Opened(1, SamplingParams(logit_bias={7: 1.0}), [], []), Opened(1, greedy(repetition_penalty=2.0), [7], [])]
)
def test_whatever_goes_wrong_is_a_fault_of_the_one_sequence(wrong: Opened):
    both = Sampler()
    both.open(wrong)
    both.open(Opened(2, greedy(), [], []))
    first, second, unknown = (both.sample(sequence, 0, logits(1, 5, 3)) for sequence in (1, 2, 3))
    assert first is not None and first.fault and first.ours
    assert second == Sampled(2, 1)
    assert unknown is not None and unknown.fault


TINY = [5e-324, 1e-310, 1e-300, 1e-45, 1e-38, 1e-10]


@pytest.mark.parametrize("penalty", [*TINY, 10.0])
def test_a_repetition_penalty_of_any_size_keeps_the_order(penalty: float):
    """What was said is multiplied, so the likeliest of it is drawn, be it beyond what float32 and float64 hold."""
    row = logits(3, 4, 5, 6, -2)
    assert sample(greedy(repetition_penalty=penalty), row, prompt=(0, 1)).token == (1 if penalty < 1 else 3)
    assert sample(SamplingParams(repetition_penalty=penalty, seed=4), row, prompt=(0, 1)).token == (1 if penalty < 1 else 3)
    chosen = sample(SamplingParams(repetition_penalty=penalty, logprobs=1, top_p=0.9), row, prompt=(0, 1, 4))
    assert not chosen.fault and chosen.logprob is not None and -10 < chosen.logprob <= 0


EDGES = {
    "temperature": st.sampled_from([0.0, *TINY, 1e-5, 1.0, 5.0]),
    "top_k": st.sampled_from([0, 1, 2, 40, 2**31]),
    "top_p": st.sampled_from([*TINY, 0.5, 1 - 2**-53, 1.0]),
    "min_p": st.sampled_from([0.0, *TINY, 0.5, 1.0]),
    "repetition_penalty": st.sampled_from([*TINY, 0.5, 1.0, 10.0]),
    "presence_penalty": st.sampled_from([-2.0, -5e-324, 0.0, 5e-324, 2.0]),
    "frequency_penalty": st.sampled_from([-2.0, -5e-324, 0.0, 5e-324, 2.0]),
    "logit_bias": st.dictionaries(st.integers(0, 39), st.sampled_from([-100.0, -5e-324, 0.0, 5e-324, 100.0]), max_size=40),
    "seed": st.sampled_from([0, 1, 2**63, 2**64 - 1]),
    "logprobs": st.sampled_from([None, 0, 20]),
}


@given(
    st.fixed_dictionaries(EDGES),
    st.sampled_from([1e-45, 1e-38, 1.0, 1e4, 1e30, 1e38]),
    st.lists(st.integers(0, 39), max_size=60),
    st.integers(0, 2**31),
)
def test_every_value_of_the_documented_ranges_draws(fields: dict[str, Any], scale: float, said: list[int], position: int):
    """At the edges of each, all together; NumPy's warnings are errors here."""
    params = SamplingParams(**fields)
    params.check(40)
    row = (spread(40, position) / 12).astype(np.float32) * np.float32(scale)
    drawn = sample(params, row, position, prompt=tuple(said), generated=tuple(said))
    assert drawn.fault == ""
    assert 0 <= drawn.token < 40
    assert drawn == sample(params, row, position, prompt=tuple(said), generated=tuple(said))
    for found in [drawn.logprob, *(a.logprob for a in drawn.alternatives)]:
        assert found is None or -1e4 < found <= 1e-3 * max(scale, 1)


def test_a_closed_sequence_is_forgotten():
    s = sampler(SamplingParams())
    s.close(1)
    s.close(1)
    assert len(s) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": 2},
        {"logprobs": 21},
        {"seed": -1},
        {"seed": 2**64},
        {"presence_penalty": 3},
        {"frequency_penalty": -3},
        {"repetition_penalty": 0},
        {"logit_bias": {9: 1.0}},
        {"logit_bias": {0: 101.0}},
    ],
)
def test_what_is_out_of_range_is_refused_by_name(fields: dict[str, object]):
    with pytest.raises(InvalidRequest) as refused:
        SamplingParams(**fields).check(9)  # pyright: ignore[reportArgumentType]
    assert refused.value.param == next(iter(fields))


def test_the_defaults_are_in_range():
    assert SamplingParams().check(1) is None


# Block tables of a stage


def plan(*chunks: Chunk, closed: tuple[int, ...] = (), dropped: tuple[int, ...] = ()) -> StepPlan:
    return StepPlan(0, [], list(closed), list(dropped), [], list(chunks))


def test_a_plan_becomes_arrays():
    batch = Sequences(9).apply(plan(Chunk(1, 0, [5, 6], [3], False), Chunk(2, 0, [7], [4, 8], True)))
    assert batch is not None
    assert (batch.starts.tolist(), batch.positions.tolist(), batch.tokens.tolist()) == ([0, 2, 3], [0, 0], [5, 6, 7])
    assert (batch.tables.tolist(), batch.picked.tolist(), batch.sequences) == ([[3, 0], [4, 8]], [2], (2,))


def test_tables_grow_by_what_a_plan_brings():
    sequences = Sequences(9)
    sequences.apply(plan(Chunk(1, 0, [0] * BLOCK_TOKENS, [3], False)))
    batch = sequences.apply(plan(Chunk(1, BLOCK_TOKENS, [1], [5], True)))
    assert batch is not None
    assert batch.tables.tolist() == [[3, 5]]


def test_a_dropped_table_starts_anew():
    sequences = Sequences(9)
    sequences.apply(plan(Chunk(1, 0, [0], [3], False)))
    batch = sequences.apply(plan(Chunk(1, 0, [0], [7], True), dropped=(1,)))
    assert batch is not None
    assert batch.tables.tolist() == [[7]]


def test_a_closed_sequence_leaves_no_table():
    sequences = Sequences(9)
    sequences.apply(plan(Chunk(1, 0, [0], [3], False)))
    assert sequences.apply(plan(closed=(1, 2))) is None
    assert len(sequences) == 0


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(1, 0, [1], [9], True),
        Chunk(1, 0, [1], [-1], True),
        Chunk(1, 0, [], [1], True),
        Chunk(1, -1, [1], [1], True),
        Chunk(1, 0, [1], [], True),
        Chunk(1, BLOCK_TOKENS, [1], [1], True),
        Chunk(1, 1, [1] * BLOCK_TOKENS, [1], True),
    ],
)
def test_a_plan_that_cannot_be_is_refused(chunk: Chunk):
    with pytest.raises(RemoteProtocolError):
        Sequences(9).apply(plan(chunk))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_rows_are_grouped_by_sequence(lengths: list[int]):
    chunks = [Chunk(i, 0, [i] * n, [0] * -(-n // BLOCK_TOKENS), True) for i, n in enumerate(lengths)]
    batch = Sequences(1).apply(plan(*chunks))
    assert batch is not None
    assert [b - a for a, b in pairwise(batch.starts.tolist())] == lengths
    assert batch.picked.tolist() == [end - 1 for end in batch.starts[1:]]


@pytest.mark.parametrize("temperature", [1e-46, 1e-39])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float):
    """float32(1e-46) is 0: 0/0, and the last token of the vocabulary is drawn."""
    sampler = Sampler()
    sampler.open(Opened(1, SamplingParams(temperature=temperature), [], []))
    assert drawn(sampler, 0, np.array([1, 9, 3, 2], np.float32)).token == 1


def test_more_alternatives_than_tokens_are_all_of_them():
    sampler = Sampler()
    sampler.open(Opened(1, SamplingParams(temperature=0, logprobs=20), [], []))
    assert len(drawn(sampler, 0, np.zeros(4, np.float32)).alternatives) == 4
