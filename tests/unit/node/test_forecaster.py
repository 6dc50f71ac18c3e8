"""Requests are counted by the minute, kept, and forecast in another process."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.node.forecaster import Forecaster, other_process
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

    def __init__(self, folder: Path, process: Callable[[], Executor] = lambda: ThreadPoolExecutor(1)) -> None:
        self.clock, self.folder = Clock(), folder
        self.counts = {"a": 5}
        self.told: list[str] = []
        self.made = Forecaster(folder, lambda: self.counts, self.clock, told=self.told.append, process=process)

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
            while self.made._until != self.clock.minute:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.node.forecaster._LOOK", 0.005)


@asynccontextmanager
async def running(*parts: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.sleep(0)
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_every_minute_is_kept_also_one_without_requests(tmp_path: Path) -> None:
    async def go() -> None:
        made = Watched(tmp_path)
        async with running(made.made.run()):
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
        made = Watched(tmp_path, other_process)
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


class Broken(ThreadPoolExecutor):
    def submit(self, *words: object, **more: object) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise OSError("no more processes")


def test_what_cannot_be_forecast_is_told_once_of_each_model_and_the_head_goes_on(tmp_path: Path) -> None:
    async def go() -> None:
        made = Watched(tmp_path, lambda: Broken(1))
        made.counts["b"] = 1
        async with running(made.made.run()):
            for _ in range(3):
                await made.minutes()
                await made.made._predict(made.clock.minute)
        assert made.told == [f"the requests of {model} cannot be forecast: no more processes" for model in "ab"]

    asyncio.run(go())


def test_what_fails_once_more_is_told_once_more(tmp_path: Path) -> None:
    async def go() -> None:
        works = iter([False, True, False])
        made = Watched(tmp_path, lambda: ThreadPoolExecutor(1) if next(works) else Broken(1))
        for _ in range(3):
            await made.made._predict(made.clock.minute)
        assert made.told == ["the requests of a cannot be forecast: no more processes"] * 2

    asyncio.run(go())


def test_requests_are_counted_by_the_minute_while_a_forecast_takes_several(tmp_path: Path) -> None:
    begun, end = threading.Event(), threading.Event()

    class Slow(ThreadPoolExecutor):
        def submit(self, *words: Any, **more: Any) -> Any:
            def work() -> None:
                begun.set()
                end.wait()

            return super().submit(work)

    async def go() -> None:
        made = Watched(tmp_path, lambda: Slow(1))
        try:
            async with running(made.made.run(), made.made.predict()):
                await made.minutes()
                await asyncio.to_thread(begun.wait)
                for count in (7, 9, 12):
                    made.counts = {"a": count}
                    await made.minutes()
                assert made.kept("a") == [0, 2, 2, 3]
        finally:
            end.set()

    asyncio.run(go())


@pytest.mark.slow
def test_it_is_computed_a_few_times_an_hour(tmp_path: Path) -> None:
    async def go() -> None:
        computed: list[int] = []

        def process() -> Executor:
            computed.append(made.clock.minute)
            return ThreadPoolExecutor(1)

        made = Watched(tmp_path, process)
        async with running(made.made.run(), made.made.predict()):
            await made.minutes(60)
        assert len(computed) == 3 and all(second - first >= 20 for first, second in itertools.pairwise(computed)), computed

    asyncio.run(go())
