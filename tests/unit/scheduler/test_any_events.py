"""Whatever happens on the way, every sequence says what it would have said alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import InvalidRequest
from shoal.request import Priority, Request
from tests.support.toy_stage import (
    Toy,
    asking,
    expected,
    expected_embedding,
    expected_scores,
    limits,
)


@dataclass(frozen=True)
class Scenario:
    blocks: int
    block_tokens: int
    slots: int
    step_tokens: int
    depth: int
    drafts: int
    prompts: list[list[int]]
    classes: list[Priority]
    """Of the requests, in turn."""
    events: list[int]


def scenarios() -> st.SearchStrategy[Scenario]:
    token = st.integers(1, 2)  # few, so that prefixes are shared
    prompts = st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=8)
    return st.builds(
        Scenario,
        blocks=st.integers(3, 12),
        block_tokens=st.integers(1, 4),
        slots=st.integers(1, 6),
        step_tokens=st.integers(1, 12),
        depth=st.integers(1, 4),
        drafts=st.sampled_from([0, 1, 6]),
        prompts=prompts,
        classes=st.lists(st.sampled_from(Priority), min_size=1, max_size=4),
        events=st.lists(st.integers(0, 999), max_size=120),
    )


def play(scenario: Scenario) -> tuple[Toy, dict[str, Request], set[tuple[str, int]]]:
    """Adds, sends, runs, applies and cancels as the events say; what was cancelled is not expected to end."""
    toy = Toy(
        limits(
            scenario.blocks,
            scenario.block_tokens,
            slots=scenario.slots,
            step_tokens=scenario.step_tokens,
            depth=scenario.depth,
            drafts=scenario.drafts,
        )
    )
    waiting = [asking(i, p, c) for i, (p, c) in enumerate(zip(scenario.prompts, cycle(scenario.classes), strict=False))]
    added: dict[str, Request] = {}
    cancelled: set[tuple[str, int]] = set()
    for event in scenario.events:
        what, pick = event % 10, event // 10
        if what <= 1 and waiting:
            add(toy, waiting.pop(), added)
        elif what == 2 and added:
            cancel(toy, list(added.values())[pick % len(added)], pick, cancelled)
        elif what <= 5:
            toy.run()
        else:
            toy.take()
            toy.fill()
    for r in waiting:
        add(toy, r, added)
    toy.drain()
    return toy, added, cancelled


def cancel(toy: Toy, r: Request, pick: int, cancelled: set[tuple[str, int]]) -> None:
    choice = pick % r.n if pick % 2 else None
    toy.cancel(r.id, choice)
    cancelled |= {(r.id, c) for c in range(r.n) if choice in (None, c) and (r.id, c) not in toy.ends}


def add(toy: Toy, r: Request, added: dict[str, Request]) -> None:
    if len(r.prompt) + r.max_tokens > toy.limits.longest:
        with pytest.raises(InvalidRequest):
            toy.add(r)
        return
    toy.add(r)
    toy.fill()
    added[r.id] = r


@pytest.mark.slow
@settings(max_examples=400)
@given(scenarios())
def test_every_sequence_says_what_it_would_say_alone(scenario: Scenario):
    toy, added, cancelled = play(scenario)
    for r in added.values():
        scores, embedding = toy.scores[r.id], toy.embeddings[r.id]
        if (r.id, 0) in cancelled:
            assert scores == expected_scores(r)[: len(scores)]
            assert embedding in (b"", expected_embedding(r))
        else:
            assert (scores, embedding) == (expected_scores(r), expected_embedding(r))
        for choice in range(r.n):
            said, (right, finish) = toy.said[r.id, choice], expected(r, choice)
            if (r.id, choice) in cancelled:
                assert said == right[: len(said)]
            else:
                assert (said, toy.ends.get((r.id, choice))) == (right, finish)


@pytest.mark.slow
@settings(max_examples=150)
@given(scenarios())
def test_nothing_is_left_behind(scenario: Scenario):
    toy, _, _ = play(scenario)
    scheduler = toy.scheduler
    assert (scheduler.running, scheduler.waiting, scheduler.in_flight, scheduler.pool.used) == (0, 0, 0, 0)
    assert len(toy.stage) == 0
