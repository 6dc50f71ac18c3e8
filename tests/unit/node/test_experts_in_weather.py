"""Steps get the right sums, or an error, while workers come, go, stall and answer late, in an order that a seed decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from shoal.errors import ClusterError
from shoal.executor.base import Send
from shoal.node.expert_holders import Holders
from shoal.node.expert_links import ExpertLinks
from shoal.node.expert_service import ExpertService
from shoal.transport.memory import MemoryStream, pair
from shoal.wire.routed import Sums
from tests.support.abacus import Abacus, summed
from tests.support.routed_rows import routed_of

EXPERTS = 8


class Shed:
    """A worker in bad weather."""

    def __init__(self, rng: Random) -> None:
        self._rng, self.bank, self.dry = rng, Abacus(), asyncio.Event()
        self.dry.set()
        self.service = ExpertService(self.bank, self._compute, lambda: 0.0)
        self.streams: list[MemoryStream] = []
        self.tasks = [asyncio.ensure_future(self.service.run())]

    async def _compute(self, work: Callable[[], Sums], size: int) -> Sums:
        for _ in range(self._rng.randrange(6)):
            await asyncio.sleep(0)
        await self.dry.wait()
        return work()

    async def connect(self) -> MemoryStream:
        if self._rng.random() < 0.3:
            raise ConnectionError("it rains")
        mine, its = pair()
        self.streams.append(mine)
        self.tasks.append(asyncio.ensure_future(self.service.serve(mine)))
        return its

    async def weather(self) -> None:
        while True:
            await asyncio.sleep(self._rng.choice([0, 0, 0.0005]))
            what = self._rng.random()
            if what < 0.05:
                for stream in self.streams:
                    stream.abort()
                self.streams.clear()
            elif what < 0.1:
                self.dry.clear()
            elif what < 0.4:
                self.dry.set()


async def storm(seed: int) -> None:
    rng = Random(seed)
    sheds = {name: Shed(rng) for name in "abc"}
    held = {name: {1: frozenset(rng.sample(range(EXPERTS), 5))} for name in sheds}
    held["c"] = {1: held["c"][1] | set(range(EXPERTS)) - held["a"][1] - held["b"][1]}

    async def connect(worker: str) -> MemoryStream:
        return await sheds[worker].connect()

    holders = Holders(held)
    turns = rng.choice([0, 30])
    links = ExpertLinks(holders, holders.experts, connect, 1, asyncio.get_running_loop().time, rng, patience=1e6, turns=turns)
    opening = asyncio.ensure_future(links.open())
    await asyncio.gather(opening, return_exceptions=True)  # some may not be reached yet
    weather = [asyncio.ensure_future(shed.weather()) for shed in sheds.values()]
    for _ in range(25):
        rows = [{expert: rng.choice([0.5, 1.0, -2.0]) for expert in rng.sample(range(EXPERTS), 2)} for _ in range(rng.randrange(1, 12))]
        routed = routed_of(rows, 1, first=rng.randrange(5))
        spare = frozenset(rng.sample(range(EXPERTS), rng.randrange(EXPERTS + 1)) if rng.random() < 0.5 else [])
        await links.send(Send(routed, np.arange(len(rows), dtype=np.int32), spare))
        collecting = asyncio.ensure_future(links.collect())
        if rng.random() < 0.2:
            for _ in range(rng.randrange(1, 20)):
                await asyncio.sleep(0)
            links.forget() if rng.random() < 0.5 else collecting.cancel()
        try:
            parts = await collecting
        except (ClusterError, asyncio.CancelledError):
            continue
        came = sorted(expert for part in parts for expert in part.experts.tolist())
        assert sorted({*came, *spare.intersection(routed.experts.tolist())}) == routed.experts.tolist() and len(set(came)) == len(came)
        total: Any = np.zeros((len(rows), routed.hidden))
        for part in parts:
            total[part.rows] += part.sums
        if late := sorted(set(routed.experts.tolist()) - set(came)):  # the stage runs them itself
            part, at = routed.only(late)
            total[at] += summed(part)
        assert np.array_equal(total, summed(routed))
    await links.close()
    for task in weather:
        task.cancel()
    for shed in sheds.values():
        shed.dry.set()
        for task in shed.tasks[1:]:  # those who served links: these are closed
            await asyncio.gather(task, return_exceptions=True)
        assert shed.service.work.queued == 0
        shed.tasks[0].cancel()
    await asyncio.gather(*weather, *(shed.tasks[0] for shed in sheds.values()), return_exceptions=True)
    assert len(asyncio.all_tasks()) == 1
    assert not links._answers and not links._step and not links._sending
    assert all(links.holders[name].outstanding == 0 for name in sheds)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_sums_are_right_or_there_is_an_error(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_DEADLINE", 0.001), ("_SOONEST", 0.0005), ("_FIRST_DELAY", 0.0001), ("_MOST_DELAY", 0.001)):
        monkeypatch.setattr(f"shoal.node.expert_links.{name}", value)

    async def whole() -> None:
        unhandled: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))
        async with asyncio.timeout(60):
            await storm(seed)
        assert not unhandled

    asyncio.run(whole())
