"""Clusters of several models and copies from seeds: streams go on at other copies and under other heads, and sabotage is noticed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from shoal.membership.state import Cluster
from shoal.node.agent import Agent
from shoal.node.copies import Copies
from shoal.node.pipeline_runner import PipelineRunner
from shoal.request import Request
from shoal.scheduler.scheduler import Scheduler
from shoal.testing.fleet_scenario import FleetScenario
from shoal.testing.simulate import play, play_all

SEEDS = int(os.environ.get("SHOAL_SEEDS", "300")) // 6  # `make simulate` plays more


@pytest.mark.slow
def test_no_seed_breaks_an_invariant():
    outcomes = play_all(range(SEEDS), 1, kind="fleet")
    failures = [outcome.events for outcome in outcomes if outcome.events]
    assert not failures, f"{len(failures)} of {SEEDS} seeds failed; the first:\n{failures[0]}"
    # What they went through: otherwise the seeds would hold because nothing happens in them.
    assert sum(o.interruptions for o in outcomes) > SEEDS / 2
    assert sum(o.refilled for o in outcomes) > SEEDS
    assert sum(o.tokens for o in outcomes) > 80 * SEEDS
    assert sum(o.moved for o in outcomes) > SEEDS / 20
    assert sum(o.successions for o in outcomes) > SEEDS / 4


def fleets(seeds: range) -> list[FleetScenario]:
    out = [FleetScenario(seed) for seed in seeds]
    for scenario in out:
        scenario.run()
    return out


@pytest.mark.slow
def test_what_is_to_happen_in_them_happens():
    played = fleets(range(SEEDS, SEEDS + 30))
    told = ["\n".join(scenario.events) for scenario in played]
    assert sum(scenario.unloaded for scenario in played) > 0, "streams that a model took with it"
    assert sum(len(scenario.sizes) > 1 for scenario in played) > 10
    for words in ("is opened", "is closed", "is unloaded", "the head dies", "may use", "is taken up by", "goes on at"):
        assert any(words in events for events in told), words


@pytest.mark.slow
def test_the_same_seed_gives_the_same_events():
    assert [s.events for s in fleets(range(4))] == [s.events for s in fleets(range(4))]


def _begin_anew(original: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Copies, runner: PipelineRunner) -> None:
        others = [other for other in self if other is not runner and other.serving]
        for stream in runner.requests.hand_over() if others else ():
            stream.left = {choice: [] for choice in stream.left}
            others[0].requests.take_up(stream)

    return wrong


def _forget_most(original: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Scheduler, request: Request, generated: dict[int, list[int]] | None = None, now: float = 0.0) -> None:
        original(self, request, {choice: tokens[:1] for choice, tokens in (generated or {}).items()} or None, now)

    return wrong


def _keep(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, part: None


def _anybody(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, id, node, waiting: 0


def _say_nothing(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, reason: None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "sabotage", "first"),
    [
        (Copies, "_move", _begin_anew, 18),
        (Scheduler, "add", _forget_most, 1),
        (Agent, "_drop", _keep, 1),
        (Cluster, "taken", _anybody, 0),
        (PipelineRunner, "close", _say_nothing, 0),
    ],
    ids=[
        "a request begins anew at another copy",
        "tokens that were said are forgotten",
        "a node keeps what it is to drop",
        "every pipeline takes all memory",
        "streams are not told that their model is gone",
    ],
)
def test_sabotage_is_noticed(kind: type, name: str, sabotage: Callable[..., Any], first: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kind, name, sabotage(getattr(kind, name)))
    assert any(play(seed, kind="fleet").events for seed in range(first, first + 60))
