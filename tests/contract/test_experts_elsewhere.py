"""A mixture whose experts run on workers gives the bits of one that is held whole: with any split, with replicas, and while workers are
killed, frozen, slow or wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.config import Precision
from shoal.errors import ClusterError
from shoal.executor.base import Floats
from shoal.executor.expert_split import Split
from shoal.models.weights import Weights
from shoal.node.expert_links import ExpertLinks
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan
from tests.support.expert_workers import Asking, Worker, bytes_of, every_expert, logits_of, running
from tests.support.mixtures import EVERY, Maker
from tests.support.streamed import Disk, finder, made, residencies

STEPS = 6
PROMPT = [5, 9, 90, 17, 3, 88, 41, 7, 7, 72, 33]

Table = Mapping[int, frozenset[int]]
Made = Callable[[Weights, Table, Precision], Worker]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def weights(make: Maker) -> Weights:
    return make("mixtral", Precision.Q8).weights


def plan(step: int) -> StepPlan:
    """A prompt, then a token in each step, whatever is sampled."""
    if step:
        return StepPlan(step, [], [], [], [], [Chunk(0, len(PROMPT) + step - 1, [30 + step], [], True)])
    return StepPlan(0, [Opened(0, SamplingParams(temperature=0.0), [], [])], [], [], [], [Chunk(0, 0, PROMPT, [1], True)])


def held(weights: Weights, precision: Precision) -> list[Floats]:
    """Logits of the steps, with everything here."""
    asking = Asking(weights, {}, precision)
    seen = logits_of(asking.stage)
    for step in range(STEPS):
        asking.stage.run(plan(step), None)
    return seen


def split(weights: Weights, among: int, share: float = 1.0) -> list[dict[int, frozenset[int]]]:
    """Every expert, or the first ones of each layer, dealt to workers."""
    tables: list[dict[int, frozenset[int]]] = [{} for _ in range(among)]
    for layer, experts in every_expert(weights).items():
        away = sorted(experts)[: round(len(experts) * share)]
        for worker in range(among):
            if mine := frozenset(away[worker::among]):
                tables[worker][layer] = mine
    return tables


def union(tables: list[dict[int, frozenset[int]]]) -> dict[int, frozenset[int]]:
    return {layer: frozenset().union(*(table.get(layer, frozenset()) for table in tables)) for table in tables for layer in table}


class Everything(Split):
    """Sends whatever it may."""

    def sent(self, rows: Mapping[int, int], only_there: frozenset[int], there_too: frozenset[int]) -> list[int]:
        return [expert for expert in rows if expert in only_there or expert in there_too]


class Restless(Split):
    """Sends other experts each time."""

    times = 0

    def sent(self, rows: Mapping[int, int], only_there: frozenset[int], there_too: frozenset[int]) -> list[int]:
        self.times += 1
        return [expert for at, expert in enumerate(rows) if expert in only_there or (expert in there_too and (at + self.times) % 3)]


Meanwhile = Callable[[int, dict[str, Worker], ExpertLinks], Awaitable[None]]


async def _nothing(step: int, workers: dict[str, Worker], links: ExpertLinks) -> None:
    pass


def steps(
    weights: Weights,
    precision: Precision,
    tables: list[dict[int, frozenset[int]]],
    meanwhile: Meanwhile = _nothing,
    prepare: Callable[[dict[str, Worker]], Any] = lambda workers: None,
    patience: float = 5.0,
    also: Table | None = None,
    turns: int = 0,
    make_worker: Made = Worker,
) -> tuple[list[Floats], ExpertLinks]:
    """Logits of the steps, with experts on workers w0, w1, … meanwhile: runs beside each step, and ends with it. also: what the stage has, too."""

    async def play() -> tuple[list[Floats], ExpertLinks]:
        workers = {f"w{i}": make_worker(weights, table, precision) for i, table in enumerate(tables)}
        prepare(workers)
        both = also or {}
        only = {layer: experts - both.get(layer, frozenset()) for layer, experts in union(tables).items()}
        asking = Asking(weights, only, precision, also=both, split=Restless(len(tables), 0.0))
        seen = logits_of(asking.stage)
        async with asyncio.timeout(60), running(workers, patience, only, turns) as links:
            for step in range(STEPS):
                beside = asyncio.ensure_future(meanwhile(step, workers, links))
                await asking.run(plan(step), links)
                await beside
        for worker in workers.values():
            worker.bank.close()
        return seen, links

    return asyncio.run(play())


def alike(found: list[Floats], wanted: list[Floats]) -> None:
    assert len(found) == len(wanted) == STEPS
    for step, (mine, its) in enumerate(zip(found, wanted, strict=True)):
        assert np.array_equal(mine, its), f"step {step} differs"


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize(("workers", "share"), [(1, 1.0), (2, 0.5), (3, 1.0)])
def test_every_split_gives_the_same_bits(make: Maker, case: tuple[str, Precision], workers: int, share: float) -> None:
    weights, precision = make(*case)
    found, links = steps(weights, precision, split(weights, workers, share))
    alike(found, held(weights, precision))
    assert links.tally.frames > 0 and not links.tally.hedged and not links.tally.repeated_frames


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize(("workers", "share", "turns"), [(1, 0.0, 0), (2, 0.5, 100)])
def test_what_a_stage_has_too_may_run_on_either_side(
    make: Maker, case: tuple[str, Precision], workers: int, share: float, turns: int
) -> None:
    """share: of the experts, that only workers have."""
    weights, precision = make(*case)
    also = {layer: frozenset(sorted(experts)[round(len(experts) * share) :]) for layer, experts in every_expert(weights).items()}
    found, links = steps(weights, precision, [every_expert(weights)] * workers, also=also, turns=turns)
    alike(found, held(weights, precision))
    assert links.tally.frames > 0 and not links.tally.taken_back


@pytest.mark.parametrize("phase", range(STEPS))
def test_a_stage_runs_what_it_has_too_when_a_worker_is_killed(weights: Weights, phase: int) -> None:
    whole = every_expert(weights)

    async def kill(step: int, workers: dict[str, Worker], links: ExpertLinks) -> None:
        if step == phase:
            await workers["w0"].stop()

    found, links = steps(weights, Precision.Q8, [whole], kill, also=whole)
    alike(found, held(weights, Precision.Q8))
    assert links.tally.taken_back > 0


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize("degrade", [False, True])
def test_a_stage_that_streams_asks_workers_too(make: Maker, case: tuple[str, Precision], degrade: bool, tmp_path: Path) -> None:
    """All routed experts of some steps, so that only a shared one is left for the stage; and what it has itself is taken back from a worker
    that is killed."""
    weights, precision = make(*case)
    whole = every_expert(weights)
    also = {layer: frozenset(sorted(experts)[1::2]) for layer, experts in whole.items()}
    only = {layer: whole[layer] - also[layer] for layer in whole}
    sizes = made(weights, precision, tmp_path)

    async def play() -> list[Floats]:
        workers = {"w0": Worker(weights, only, precision), "w1": Worker(weights, whole, precision)}
        packed = finder(tmp_path, precision)
        asking = Asking(
            weights, only, precision, also=also, split=Everything(2, 0.0), degrade=degrade, packed=packed, memory=residencies(sizes)["25 %"]
        )
        seen = logits_of(asking.stage)
        try:
            async with asyncio.timeout(60), running(workers, needed=only, degrade=degrade) as links:
                for step in range(STEPS):
                    if step == STEPS // 2:
                        await workers["w1"].stop()
                    assert (await asking.run(plan(step), links)).degraded == ()
                assert links.tally.taken_back > 0 or degrade
        finally:
            asking.shard.close()
        return seen

    alike(asyncio.run(play()), held(weights, precision))


def test_a_stage_does_not_wait_for_a_frozen_worker_for_what_it_has_too(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.node.expert_links._DEADLINE", 0.05)
    whole = every_expert(weights)

    async def freeze(step: int, workers: dict[str, Worker], links: ExpertLinks) -> None:
        if step == 1:
            workers["w0"].delay = 1e6

    found, links = steps(weights, Precision.Q8, [whole], freeze, also=whole)
    alike(found, held(weights, Precision.Q8))
    assert links.tally.taken_back > 0


def test_the_loss_of_spare_experts_does_not_hold_up_those_that_another_worker_has(weights: Weights) -> None:
    """w0 has everything, w1 what the stage has not."""
    whole = every_expert(weights)
    also = {layer: frozenset(sorted(experts)[:4]) for layer, experts in whole.items()}

    async def kill(step: int, workers: dict[str, Worker], links: ExpertLinks) -> None:
        if step == 2:
            await workers["w0"].stop()

    found, _ = steps(weights, Precision.Q8, [whole, {layer: whole[layer] - also[layer] for layer in whole}], kill, also=also)
    alike(found, held(weights, Precision.Q8))


def test_a_step_that_may_goes_on_without_experts_and_says_for_which_rows(weights: Weights) -> None:
    async def play() -> None:
        tables = split(weights, 2)
        workers = {f"w{i}": Worker(weights, table, Precision.Q8) for i, table in enumerate(tables)}
        asking = Asking(weights, union(tables), Precision.Q8, degrade=True)
        seen = logits_of(asking.stage)
        async with asyncio.timeout(60), running(workers, degrade=True) as links:
            whole = await asking.run(plan(0), links)
            await workers["w1"].stop()
            lacking = await asking.run(plan(1), links)
        assert whole.degraded == () and lacking.degraded == ((0, 1),)
        assert links.tally.dropped > 0
        assert np.isfinite(seen[1]).all() and not np.array_equal(seen[1], wanted[1])

    wanted = held(weights, Precision.Q8)
    asyncio.run(play())


def streaming(folder: Path, percent: int = 50, disk: Disk | None = None) -> Made:
    """Workers with memory for a part of their experts."""

    def made(weights: Weights, held: Table, precision: Precision) -> Worker:
        memory = bytes_of(weights, precision, held) * percent // 100
        return Worker(weights, held, precision, memory, finder(folder, precision, disk))

    return made


@pytest.mark.parametrize("case", EVERY)
def test_workers_that_read_half_of_their_experts_from_disk_give_the_same_bits(
    make: Maker, case: tuple[str, Precision], tmp_path: Path
) -> None:
    weights, precision = make(*case)
    workers: dict[str, Worker] = {}
    tables = split(weights, 2)
    found, links = steps(weights, precision, tables, prepare=workers.update, make_worker=streaming(tmp_path, 50, Disk(delay=0.002)))
    alike(found, held(weights, precision))
    assert not links.tally.repeated_frames
    for worker in workers.values():
        reads = worker.bank.expert_reads
        assert reads.misses > 0 and reads.bytes_read > 0, "the disk was used"
        assert sum(int(counts.sum()) for counts in worker.expert_rows.values()) > 0


def test_a_read_that_fails_is_a_question_that_another_worker_answers(weights: Weights, tmp_path: Path) -> None:
    disk, whole = Disk(), every_expert(weights)

    async def fail(step: int, workers: dict[str, Worker], links: ExpertLinks) -> None:
        if step == 2:
            disk.broken = True

    workers: dict[str, Worker] = {}
    made = iter([streaming(tmp_path, 50, disk), Worker])
    found, links = steps(
        weights,
        Precision.Q8,
        [whole, whole],
        fail,
        workers.update,
        make_worker=lambda weights, held, precision: next(made)(weights, held, precision),
    )
    alike(found, held(weights, Precision.Q8))
    assert not any(links.holders[name].fenced for name in workers)


def test_rows_are_sent_rounded_and_counted(weights: Weights) -> None:
    tables = split(weights, 2)
    workers: dict[str, Worker] = {}
    _, links = steps(weights, Precision.Q8, tables, prepare=workers.update)
    layers, chosen, rows = len(every_expert(weights)), 2, len(PROMPT) + STEPS - 1
    counted = sum(int(counts.sum()) for worker in workers.values() for counts in worker.expert_rows.values())
    assert counted == layers * chosen * rows
    hidden = weights.spec.hidden
    most = rows * layers * 2 * (hidden + hidden // 32 * 4) + links.tally.frames * 400
    assert links.tally.sent < most
    assert all(worker.service.work.frames for worker in workers.values())


def test_a_killed_worker_is_replaced_by_its_replica(weights: Weights) -> None:
    whole = every_expert(weights)

    async def kill(step: int, workers: dict[str, Worker], links: ExpertLinks) -> None:
        if step == 2:  # the one that is asked
            await workers["w1"].stop()

    workers: dict[str, Worker] = {}
    found, links = steps(weights, Precision.Q8, [whole, whole], kill, workers.update)
    alike(found, held(weights, Precision.Q8))
    assert links.tally.repeated_frames == 1
    assert all(worker.service.work.frames for worker in workers.values())


@pytest.mark.parametrize("step_of_loss", [0, 1, 4])
def test_a_worker_without_a_replica_is_waited_for(weights: Weights, step_of_loss: int) -> None:
    async def restart(step: int, workers: dict[str, Worker], links: ExpertLinks) -> None:
        if step == step_of_loss:
            port = workers["w1"].port
            await workers["w1"].stop()
            await asyncio.sleep(0.2)
            await workers["w1"].start(port)

    found, links = steps(weights, Precision.Q8, split(weights, 2), restart)
    alike(found, held(weights, Precision.Q8))
    assert links.tally.repeated_frames > 0


def test_an_expert_that_nobody_has_any_more_ends_the_step_with_an_error(weights: Weights) -> None:
    async def kill(step: int, workers: dict[str, Worker], links: ExpertLinks) -> None:
        if step == 1:
            await workers["w1"].stop()

    with pytest.raises(ClusterError, match=r"expert \d+ of layer \d+ could not be had for 0.5 s .*w1: cannot be reached"):
        steps(weights, Precision.Q8, split(weights, 2), kill, patience=0.5)


def test_parts_of_a_lost_worker_are_asked_of_several_others(weights: Weights) -> None:
    whole = every_expert(weights)

    async def kill(step: int, workers: dict[str, Worker], links: ExpertLinks) -> None:
        if step == 2:  # the one that has everything, and so is asked alone
            await workers["w0"].stop()

    found, _ = steps(weights, Precision.Q8, [whole, *split(weights, 2)], kill)
    alike(found, held(weights, Precision.Q8))


def test_a_late_worker_is_not_waited_for_where_there_is_a_replica(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.node.expert_links._DEADLINE", 0.05)
    whole = every_expert(weights)

    def slow(workers: dict[str, Worker]) -> None:
        workers["w1"].delay = 0.5

    found, links = steps(weights, Precision.Q8, [whole, whole], prepare=slow)
    alike(found, held(weights, Precision.Q8))
    assert links.tally.hedged > 0


def test_a_frozen_worker_does_no_harm_where_there_is_a_replica(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.node.expert_links._DEADLINE", 0.05)
    whole = every_expert(weights)

    async def freeze(step: int, workers: dict[str, Worker], links: ExpertLinks) -> None:
        if step == 1:
            workers["w1"].delay = 1e6

    found, _ = steps(weights, Precision.Q8, [whole, whole], freeze)
    alike(found, held(weights, Precision.Q8))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda sums: sums * np.nan, "not all numbers"),
        (lambda sums: sums[:, 1:], "were asked for"),
        (lambda sums: np.concatenate([sums, sums]), ""),
    ],
)
def test_a_worker_that_answers_what_cannot_be_is_fenced(weights: Weights, spoil: Callable[[Any], Any], why: str) -> None:
    whole = every_expert(weights)

    def wrong(workers: dict[str, Worker]) -> None:
        workers["w1"].spoil = spoil

    found, links = steps(weights, Precision.Q8, [whole, whole], prepare=wrong)
    alike(found, held(weights, Precision.Q8))
    assert why in links.holders["w1"].fenced


def test_a_worker_that_lacks_what_it_was_said_to_hold(weights: Weights) -> None:
    whole = every_expert(weights)

    async def shed(step: int, workers: dict[str, Worker], links: ExpertLinks) -> None:
        if step == 2:
            workers["w1"].bank.shed({layer: experts - {0, 1, 2} for layer, experts in whole.items()})

    found, links = steps(weights, Precision.Q8, [whole, whole], shed)
    alike(found, held(weights, Precision.Q8))
    assert not links.holders["w1"].fenced


def test_experts_may_move_between_steps(weights: Weights) -> None:
    """To a worker that did not have them, loaded while it runs others."""
    whole = every_expert(weights)
    first, second = split(weights, 2)

    async def move(step: int, workers: dict[str, Worker], links: ExpertLinks) -> None:
        if step == 2:
            for layer, experts in second.items():
                await asyncio.to_thread(workers["w0"].bank.load, layer, experts, weights)
            links.holders["w0"].held = whole
        if step == 4:
            workers["w1"].bank.shed({})

    found, _ = steps(weights, Precision.Q8, [first, second], move)
    alike(found, held(weights, Precision.Q8))


def test_a_stage_finds_a_worker_missing_before_it_runs(weights: Weights) -> None:
    async def play() -> None:
        workers = {f"w{i}": Worker(weights, table, Precision.Q8) for i, table in enumerate(split(weights, 2))}

        async def nowhere(port: int = 0) -> None:
            workers["w1"].port = 1
            workers["w1"].stop = nothing

        async def nothing() -> None:
            pass

        workers["w1"].start = nowhere
        async with asyncio.timeout(20):
            with pytest.raises(ClusterError, match="nobody who can be reached holds expert"):
                async with running(workers):
                    pass

    asyncio.run(play())
