"""What the last stage says of a prompt's rows: the right rows, in slices; and what it refuses to say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.executor.examination import examine, likeliest, score
from shoal.executor.stage import StageExecutor
from shoal.scheduler.plan import Chunk, PromptQuery, StepPlan
from shoal.testing import toy
from tests.support.stages import stage

VOCABULARY = 11


class Rows:
    """Layers whose logits and norm say which row they are of."""

    runtime, nbytes = "rows", 0

    def __init__(self) -> None:
        self.slices: list[int] = []

    def logits(self, hidden: np.ndarray, picked: np.ndarray) -> np.ndarray:
        self.slices.append(len(picked))
        return hidden[picked, :1] * np.arange(VOCABULARY, dtype=np.float32) / 100

    def normed(self, hidden: np.ndarray) -> np.ndarray:
        return hidden + np.float32(1)

    forward: Any = None
    trim: Any = None


def rows(count: int) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], 3, axis=1)


def chunk(sequence: int, tokens: int, asked: PromptQuery | None) -> Chunk:
    return Chunk(sequence, 0, [1] * tokens, [], False, asked)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits.astype(np.float64)).sum())


def test_each_chunk_is_told_of_its_own_rows():
    chunks = [
        chunk(4, 2, None),
        chunk(7, 3, PromptQuery([5, 6], 1, False)),
        chunk(9, 2, PromptQuery([3, 4], 0, True)),
        chunk(2, 1, PromptQuery([], 0, True)),
    ]
    first, second, third = examine(Rows(), rows(8), chunks, VOCABULARY)
    of = [log_softmax(np.arange(VOCABULARY) * row / 100) for row in range(8)]
    assert (first.sequence, [s.token for s in first.scores], first.total) == (7, [5, 6], b"")
    assert [s.logprob for s in first.scores] == pytest.approx([of[2][5], of[3][6]])
    assert [[a.token for a in s.alternatives] for s in first.scores] == [[10], [10]]
    assert (second.sequence, [s.alternatives for s in second.scores]) == (9, [(), ()])
    assert [s.logprob for s in second.scores] == pytest.approx([of[5][3], of[6][4]])
    assert np.frombuffer(second.total, "<f8").tolist() == [5 + 6 + 2] * 3
    assert (third.sequence, third.scores, np.frombuffer(third.total, "<f8").tolist()) == (2, [], [8] * 3)


def test_only_so_many_logits_are_in_memory_at_once():
    made = Rows()
    chunks = [chunk(i, 50, PromptQuery([3] * 49, 0, False)) for i in range(4)]
    found = examine(made, rows(200), chunks, VOCABULARY)
    assert made.slices == [64, 64, 64, 4]
    assert [len(each.scores) for each in found] == [49] * 4


def test_where_nothing_is_asked_nothing_is_computed():
    made = Rows()
    assert examine(made, rows(2), [chunk(1, 2, None)], VOCABULARY) == ()
    assert made.slices == []


@pytest.mark.parametrize(
    "asked",
    [PromptQuery([1, 2, 3], 0, False), PromptQuery([VOCABULARY], 0, False), PromptQuery([-1], 0, True), PromptQuery([1], -1, False)],
)
def test_what_cannot_be_asked_is_refused(asked: PromptQuery):
    first, second = examine(Rows(), rows(4), [chunk(3, 2, asked), chunk(4, 2, PromptQuery([1], 0, False))], VOCABULARY)
    assert "sequence 3" in first.fault
    assert (second.sequence, second.fault, [s.logprob for s in second.scores]) == (
        4,
        "",
        [pytest.approx(log_softmax(np.arange(VOCABULARY) * 2 / 100)[1])],
    )


@pytest.mark.parametrize("asked", [PromptQuery([1], 2, False), PromptQuery([], 0, True)])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_a_number_is_a_fault_of_the_one_sequence(asked: PromptQuery, wrong: float):
    given = rows(6)
    given[2:4] = wrong
    with np.errstate(invalid="ignore"):
        found = examine(Rows(), given, [chunk(2, 2, asked), chunk(3, 2, asked), chunk(4, 2, asked)], VOCABULARY)
    assert [(each.sequence, "not a number" in each.fault, bool(each.scores or each.total)) for each in found] == [
        (2, False, True), (3, True, False), (4, False, True)
    ]  # fmt: skip


def test_alternatives_are_the_likeliest_first_and_at_most_all():
    found = score(np.array([0, 3, 1, 3], np.float32), 0, 9)
    assert [a.token for a in found.alternatives] == [1, 3, 2, 0]
    assert found.logprob == found.alternatives[-1].logprob == pytest.approx(log_softmax(np.array([0, 3, 1, 3]))[0])


@given(st.integers(0, 700), st.integers(1, 700), st.integers(1, 40), st.integers(0, 99))
def test_the_likeliest_are_found_as_by_sorting(count: int, size: int, levels: int, seed: int):
    logits = np.random.default_rng(seed).integers(0, levels, size).astype(np.float32)
    assert likeliest(logits, count) == np.lexsort((np.arange(size), -logits))[:count].tolist()


# A stage


def through(stages: list[StageExecutor], plan: StepPlan) -> Any:
    output = stages[0].run(plan, None)
    for each in stages[1:]:
        assert output.examined == ()
        output = each.run(plan, output.hidden)
    return output


def test_a_step_that_fills_layers_anew_says_nothing_of_a_prompt():
    layers = 3
    whole = stage(toy.ToyWeights(layers), range(layers), blocks=2, make_runtime=toy.make_runtime)
    chunks = [Chunk(1, 0, [4, 5, 6], [0], False, PromptQuery([5, 6], 1, True))]
    assert through([whole], StepPlan(0, [], [], [], [], chunks, [(0, layers)])).examined == ()
    assert len(through([whole], StepPlan(1, [], [], [], [], [Chunk(1, 3, [7], [], False, PromptQuery([], 0, True))])).examined) == 1
