"""Whole clusters from seeds: nothing is lost, said twice or stuck, the same seed gives the same events, and sabotage is noticed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shoal.executor.base import Program, StageOutput
from shoal.executor.journal import Journal, JournalLimits
from shoal.executor.sampler import Sampler
from shoal.executor.shard import Shard
from shoal.membership.route_machine import RouteMachine
from shoal.node.pipeline_part import PipelinePart
from shoal.node.stage_service import StageService
from shoal.scheduler.budget import StepBudget
from shoal.scheduler.cost import Learned
from shoal.scheduler.plan import Sampled
from shoal.scheduler.scheduler import Scheduler
from shoal.testing import toy
from shoal.testing.clock import Deadlock, SimulatedLoop
from shoal.testing.fleet_scenario import FleetScenario
from shoal.testing.foreteller import foreteller_of
from shoal.testing.rush import Rush
from shoal.testing.scenario import Broken, Scenario, disks_of, undecided_of, workers_of
from shoal.testing.simulate import play, play_all
from shoal.testing.standby_scenario import StandbyScenario

SEEDS = int(os.environ.get("SHOAL_SEEDS", "300"))  # `make simulate` plays more


def fails_somewhere(first: int) -> bool:
    """Among 400 seeds; first: where to begin, a little before the one that is known to notice."""
    return any(play(seed).events for seed in range(first, first + 400))


@pytest.mark.slow
def test_no_seed_breaks_an_invariant():
    outcomes = play_all(range(SEEDS), 1)  # the other processes run other tests
    failures = [outcome.events for outcome in outcomes if outcome.events]
    assert not failures, f"{len(failures)} of {SEEDS} seeds failed; the first:\n{failures[0]}"
    # What they went through: otherwise the seeds would hold because nothing happens in them.
    assert sum(o.interruptions for o in outcomes) > SEEDS / 2
    assert sum(o.refilled for o in outcomes) > SEEDS
    assert sum(o.tokens for o in outcomes) > 20 * SEEDS
    assert sum(o.waits for o in outcomes) > SEEDS
    assert sum(o.faults for o in outcomes) > SEEDS / 10


@pytest.mark.slow
def test_weights_that_come_late_or_not_at_all_cost_time_and_no_token():
    with_disks = [Scenario(seed) for seed in range(260) if disks_of(seed) is not None]
    for scenario in with_disks:
        scenario.run()  # raises Broken for a token that is wrong, and for a request that ends early or never
    disks = [node.disk for scenario in with_disks for node in scenario._nodes if node.disk is not None]
    assert sum(disk.steps > 0 for disk in disks) > 20
    assert sum(disk.failed for disk in disks) > 10


@pytest.mark.slow
def test_workers_that_are_lost_cost_time_and_no_token():
    with_workers = [Scenario(seed) for seed in range(200) if workers_of(seed) is not None]
    for scenario in with_workers:
        scenario.run()  # raises Broken as above
    told = ["\n".join(scenario.events) for scenario in with_workers]
    assert sum(" experts\n" in events for events in told) > 15, "plans with workers"
    assert sum("a worker with experts is lost" in events for events in told) > 5
    banks = [model.bank for scenario in with_workers for node in scenario._nodes for model in node.models]
    assert sum(bool(bank.rows) for bank in banks) > 15


@pytest.mark.slow
def test_nodes_change_their_parts_and_no_token():
    undecided = [Scenario(seed) for seed in range(200) if undecided_of(seed) is not None]
    for scenario in undecided:
        scenario.run()  # raises Broken as above, and where something stays that another part has no use for
    assert sum(bool(changed_parts(scenario.events)) for scenario in undecided) > 10


def changed_parts(events: list[str]) -> set[str]:
    """The nodes that had layers at one time and experts at another."""
    layouts = [event.partition(": ")[2].split(", ") for event in events if "[info] epoch" in event]
    with_experts = {part.split()[0] for parts in layouts for part in parts if part.endswith("experts")}
    return with_experts & {part.split()[0] for parts in layouts for part in parts if not part.endswith("experts")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Scenario, FleetScenario, StandbyScenario])
def test_drafts_save_steps_and_change_no_token(kind: type[Scenario]):
    drafting = [kind(seed) for seed in range(60) if foreteller_of(seed) is not None]
    for scenario in drafting:
        scenario.run()  # raises Broken as above
    counts = [scenario.foreteller.counts for scenario in drafting if scenario.foreteller is not None]
    assert sum(accepted for _, accepted in counts) > 100
    assert sum(drafted - accepted for drafted, accepted in counts) > 100
    assert any(interruption.tokens for scenario in drafting for interruption in scenario.counts.interruptions)


@pytest.mark.slow
@pytest.mark.parametrize(("stages", "seed"), [(1, 6), (2, 2), (3, 3), (4, 9), (4, 1736)])
def test_nobody_waits_long_for_the_prompt_of_another(stages: int, seed: int):
    rush = Rush(seed)
    rush.run()
    assert rush.stages == stages
    assert len(rush.waits) > 20
    assert rush.shares


def rush_through(seeds: range) -> None:
    for seed in seeds:
        Rush(seed).run()


def _by_rows_alone(allowed: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, alone: float("inf")


def _never_corrected(learn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, load, seconds: None


def _starved(prompt: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, position, wanted, scored, part: min(wanted, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "sabotage", "first"),
    [
        (StepBudget, "_allowed", _by_rows_alone, 1),
        (Learned, "learn", _never_corrected, 1),
        (StepBudget, "prompt", _starved, 4),
    ],
    ids=["rows alone bound a step", "a guess stays a guess", "a prompt gets one row of a step"],
)
def test_a_long_wait_is_noticed(kind: type, name: str, sabotage: Callable[..., Any], first: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kind, name, sabotage(getattr(kind, name)))
    with pytest.raises(Broken, match=r"waited|has its first token after"):
        rush_through(range(first, first + 40))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_events():
    def events(scenario: Scenario) -> list[str]:
        scenario.run()
        return scenario.events

    told = [events(Scenario(seed)) for seed in range(5)]
    assert [events(Scenario(seed)) for seed in range(5)] == told
    assert told[0] != told[1]
    for seed in (3, 6):
        assert events(Rush(seed)) == events(Rush(seed))


def _corrupt_replay(read: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Journal, slots: np.ndarray) -> Any:
        rows, known = read(self, slots)
        return rows + 1, known

    return wrong


def _forget_nothing(rewind: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Scheduler) -> None:
        computed = {s.id: s.scheduled for s in self.slots.running}
        rewind(self)
        for sequence in self.slots.running:
            sequence.computed = sequence.scheduled = min(computed[sequence.id], len(sequence.tokens) - 1)

    return wrong


def _ask_nothing_again(rewind: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Scheduler) -> None:
        asked = {s.id: s.asked for s in self._sequences.values()}
        rewind(self)
        for sequence in self._sequences.values():
            sequence.asked = asked[sequence.id]

    return wrong


def _keep_everything(enter: Callable[..., Any]) -> Callable[..., Any]:
    def nothing(*step: Any) -> Program[StageOutput]:
        """Fills nothing, and says that all is well."""
        return StageOutput(None, [], (0.0, 0.0, 0.0))
        yield  # which makes it a program

    def wrong(self: Shard, *order: Any, **more: Any) -> Any:
        stage = enter(self, *order, **more)
        stage._refill = nothing
        return stage

    return wrong


def _go_on(close: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: None


def _hoard(init: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Journal, limits: JournalLimits, *rest: Any) -> None:
        init(self, replace(limits, memory=2 * limits.memory), *rest)

    return wrong


def _believe(run: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Sampler, sequence: int, position: int, drafts: Sequence[int], logits: np.ndarray) -> list[Sampled]:
        sampled = run(self, sequence, position, drafts, logits)
        return [Sampled(sequence, draft) for draft in drafts] + sampled[-1:] if drafts and sampled else sampled

    return wrong


def _keep_both(relieve: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, path: []


def _want_all(wanted: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: {layer: frozenset(range(toy.EXPERTS)) for layer in range(10)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "sabotage", "first"),
    [
        (Journal, "read", _corrupt_replay, 88),
        (Scheduler, "rewind", _forget_nothing, 17),
        (Scheduler, "rewind", _ask_nothing_again, 9),
        (Shard, "enter", _keep_everything, 10),
        (StageService, "close", _go_on, 18),
        (Journal, "__init__", _hoard, 1),
        (Sampler, "run", _believe, 1),
        (RouteMachine, "_relieve", _keep_both, 50),
        (PipelinePart, "_wanted_experts", _want_all, 60),
    ],
    ids=[
        "a journal replays other rows",
        "steps that were lost count as done",
        "answers that were lost count as given",
        "nothing is refilled",
        "a stage goes on when its node is another",
        "a journal takes more than it may",
        "drafts are believed",
        "a node with experts keeps its layers",
        "a node with layers keeps its experts",
    ],
)
def test_sabotage_is_noticed(kind: type, name: str, sabotage: Callable[..., Any], first: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kind, name, sabotage(getattr(kind, name)))
    assert fails_somewhere(first)


def test_time_jumps_to_the_next_timer():
    loop = SimulatedLoop()
    try:
        loop.run_until_complete(asyncio.sleep(1000))
        assert loop.time() == 1000
    finally:
        loop.close()


def test_waiting_for_what_never_comes_is_an_error_and_no_wait():
    loop = SimulatedLoop()
    try:
        with pytest.raises(Deadlock):
            loop.run_until_complete(loop.create_future())
    finally:
        loop.close()


def test_a_broken_invariant_prints_its_events(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Scenario, "check", lambda self: (_ for _ in ()).throw(AssertionError("it does not hold")))
    with pytest.raises(Broken, match="it does not hold") as broken:
        Scenario(1).run()
    assert "joined" in str(broken.value)
