"""What the last stage reports about a prompt's own tokens: their log-probabilities, and the sum of its final hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import numpy as np

from shoal.errors import ClusterError
from shoal.executor.base import Floats, Ints
from shoal.request import Alternative, Score
from shoal.scheduler.plan import Chunk, PromptOutputs, PromptQuery

_GROUP = 128  # tokens
_SLICE = 64  # rows whose logits are in memory at once: 37 MiB with a vocabulary of 152,000
_NEVER = -9999.0  # the log-probability of a token that has none, as OpenAI writes it: JSON has no infinity
UNSOUND = "the model's output is not a number: its weights or the precision they run in are unsound"


class ModelEnd(Protocol):
    """The end of a model."""

    def logits(self, hidden: Floats, picked: Ints) -> Floats: ...
    def normed(self, hidden: Floats) -> Floats: ...


def score(logits: Floats, token: int, count: int) -> Score:
    """The log-probability under the model itself, before temperature, penalties and cuts, and those of the `count` likeliest tokens.

    logits: [vocabulary]
    Raises ClusterError if the logits are not numbers.
    """
    peak = float(logits.max())
    if not np.isfinite(peak):
        raise ClusterError(UNSOUND)
    with np.errstate(over="ignore"):  # the difference of two may be out of range; it then counts as infinite
        norm = peak + float(np.log(np.exp(logits - np.float32(peak), dtype=np.float32).sum(dtype=np.float64)))
    best = tuple(Alternative(t, max(float(logits[t]) - norm, _NEVER)) for t in likeliest(logits, count))
    return Score(token, max(float(logits[token]) - norm, _NEVER), best)


def likeliest(logits: Floats, count: int) -> list[int]:
    """The tokens of the largest logits, largest first; among equals, the lower token first.

    None of them is below the `count`th largest of the maxima of groups, which leaves few to sort: 20 times as fast as
    argpartition.
    """
    if not count:
        return []
    groups = logits[: len(logits) // _GROUP * _GROUP].reshape(-1, _GROUP).max(axis=1)
    floor = np.partition(groups, -count)[-count] if len(groups) >= count else -np.inf
    found = np.flatnonzero(logits >= floor)
    return found[np.lexsort((found, -logits[found]))][:count].tolist()


def examine(made: ModelEnd, hidden: Floats, chunks: list[Chunk], vocabulary: int) -> tuple[PromptOutputs, ...]:
    """Answers the chunks' queries; a query that cannot be answered gets a fault.

    hidden: [rows, hidden], from the last layer
    """
    wanted: list[tuple[int, int, int]] = []  # row, token, alternatives
    wrong: dict[int, str] = {}
    at = 0
    for chunk in chunks:
        if chunk.asked is not None:
            followers = chunk.asked.followers
            known = all(0 <= token < vocabulary for token in followers)
            if len(followers) > len(chunk.tokens) or not known or chunk.asked.alternatives < 0:
                wrong[chunk.sequence] = f"what is asked about sequence {chunk.sequence} cannot be"
            else:
                wanted += [(row, token, chunk.asked.alternatives) for row, token in enumerate(followers, at)]
        at += len(chunk.tokens)
    return tuple(_answers(chunks, wrong, _scores(made, hidden, wanted), made, hidden))


def _answers(
    chunks: list[Chunk], wrong: dict[int, str], scores: Iterator[Score | ClusterError], made: ModelEnd, hidden: Floats
) -> Iterator[PromptOutputs]:
    at = 0
    for chunk in chunks:
        upto = at + len(chunk.tokens)
        if chunk.sequence in wrong:
            yield PromptOutputs(chunk.sequence, [], fault=wrong[chunk.sequence])
        elif chunk.asked is not None:
            yield _answer(chunk.sequence, list(islice(scores, len(chunk.asked.followers))), chunk.asked, made, hidden[at:upto])
        at = upto


def _answer(sequence: int, found: list[Score | ClusterError], asked: PromptQuery, made: ModelEnd, rows: Floats) -> PromptOutputs:
    scores = [score for score in found if isinstance(score, Score)]
    if len(scores) < len(found):
        return PromptOutputs(sequence, [], fault=UNSOUND)
    if not asked.total:
        return PromptOutputs(sequence, scores)
    with np.errstate(invalid="ignore"):  # infinities of both signs
        total = made.normed(rows).sum(axis=0, dtype=np.float64)
    if not np.isfinite(total).all():
        return PromptOutputs(sequence, [], fault=UNSOUND)
    return PromptOutputs(sequence, scores, total.astype("<f8").tobytes())


def _scores(made: ModelEnd, hidden: Floats, wanted: list[tuple[int, int, int]]) -> Iterator[Score | ClusterError]:
    """Each row's score, or why it has none."""
    for first in range(0, len(wanted), _SLICE):
        part = wanted[first : first + _SLICE]
        rows = made.logits(hidden, np.array([row for row, _, _ in part], np.int32))
        for logits, (_, token, count) in zip(rows, part, strict=True):
            try:
                yield score(logits, token, count)
            except ClusterError as error:
                yield error
