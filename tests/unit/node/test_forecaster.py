"""Requests are counted by the minute, kept, and forecast in another process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shoal.node.forecaster import EVERY, Forecaster, other_process
from shoal.serving.forecast import forecast
from shoal.serving.traffic_history import TrafficHistory

DAYS = 8


class Clock:
    """Seconds since 1970, which a test moves."""

    def __init__(self) -> None:
        self.minute = 29_000_000

    def __call__(self) -> float:
        return self.minute * 60.0 + 7.0


class Watched:
    """A forecaster with a clock and counts that a test sets."""

    def __init__(self, folder: Path, *, predicts: bool = True, process: Callable[[], Executor] = lambda: ThreadPoolExecutor(1)) -> None:
        self.clock, self.folder = Clock(), folder
        self.counts = {"a": 5}
        self.told: list[str] = []
        self.made = Forecaster(folder, lambda: self.counts, self.clock, predicts=predicts, told=self.told.append, process=process)

    def kept(self, model: str) -> list[int | None]:
        history = TrafficHistory(self.folder)
        try:
            return history.minutes(model, self.clock.minute)
        finally:
            history.close()

    async def minutes(self, count: int = 1) -> None:
        """So many pass, one after another; returns when what was counted is kept."""
        for _ in range(count):
            self.clock.minute += 1
            while self.made._counted != self.counts or len(self.kept("a")) == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await asyncio.sleep(1.1)


@asynccontextmanager
async def running(made: Watched) -> AsyncGenerator[None]:
    task = asyncio.ensure_future(made.made.run())
    try:
        await asyncio.sleep(0)
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.slow
def test_every_minute_is_kept_also_one_without_requests(tmp_path: Path) -> None:
    async def go() -> None:
        made = Watched(tmp_path, predicts=False)
        async with running(made):
            made.counts = {"a": 12, "b": 3}
            await made.minutes()
            await made.minutes()
            made.counts = {"a": 13, "b": 3}
            await made.minutes()
        assert made.kept("a") == [7, 0, 1] and made.kept("b") == [3, 0, 0]
        assert made.made.expected == {} and made.told == []

    asyncio.run(go())


def test_a_forecast_is_that_of_the_history_and_comes_from_another_process(tmp_path: Path) -> None:
    async def go() -> None:
        made = Watched(tmp_path, process=other_process)
        history, until = TrafficHistory(tmp_path), made.clock.minute
        for minute in range(until - DAYS * 24 * 60, until):
            history.add(minute, {"a": 40 if minute // 60 % 24 in range(8, 18) else 2})
        wanted = forecast(history.minutes("a", until), until)
        history.close()
        assert wanted is not None
        await made.made._predict(until)
        assert made.made.expected == {"a": wanted}
        assert wanted.start == until * 60.0 and made.told == []

    asyncio.run(go())


def test_what_cannot_be_forecast_is_told_once_and_the_head_goes_on(tmp_path: Path) -> None:
    class Broken(ThreadPoolExecutor):
        def submit(self, *words: object, **more: object) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise OSError("no more processes")

    async def go() -> None:
        made = Watched(tmp_path, process=lambda: Broken(1))
        for _ in range(2):
            await made.made._predict(made.clock.minute)
        assert made.told == ["the requests of a cannot be forecast: no more processes"]

    asyncio.run(go())


def test_it_is_computed_a_few_times_an_hour_at_most() -> None:
    assert EVERY >= 15
