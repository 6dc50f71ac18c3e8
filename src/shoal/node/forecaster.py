"""Counts each model's requests by the minute, keeps the counts, and has their forecast computed in another process now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from shoal.errors import CapacityError, ShoalError
from shoal.serving.forecast import forecast
from shoal.serving.scaling.expected_traffic import ExpectedTraffic
from shoal.serving.traffic_history import MINUTE, TrafficHistory

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

EVERY = 20
"""Minutes between two forecasts of a model: each reaches two hours."""
_LOOK = 1.0  # seconds


def other_process() -> Executor:
    """One process, which ends when its work is done: one that waits for more would outlive a head that is killed."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


class Forecaster:
    def __init__(
        self,
        folder: Path,
        counts: Callable[[], Mapping[str, int]],
        clock: Callable[[], float],
        *,
        told: Callable[[str], object] = log.warning,
        process: Callable[[], Executor] = other_process,
    ) -> None:
        """folder: of the history. counts: requests of each model since it was first seen. clock: seconds since 1970. told: of what fails, in
        words. Raises ConfigError if the history cannot be kept."""
        self.expected: dict[str, ExpectedTraffic] = {}
        self._history = TrafficHistory(folder)
        self._thread = ThreadPoolExecutor(1, "traffic")
        """That alone uses the history."""
        self._counts, self._clock, self._told, self._process = counts, clock, told, process
        self._counted = dict(counts())
        self._until = 0
        """The first minute of which no requests are kept; 0: those of none are."""
        self._troubles: dict[str, str] = {}
        """By model; '': of the history."""

    async def run(self) -> None:
        """Keeps what arrives, until it is cancelled."""
        minute = self._minute()
        try:
            while True:
                await asyncio.sleep(_LOOK)
                if (now := self._minute()) != minute:
                    await self._keep(minute)
                    minute = self._until = now
        except asyncio.CancelledError:
            self._thread.submit(self._history.close)
            self._thread.shutdown(wait=False)
            raise

    async def predict(self) -> None:
        """Forecasts while `run` runs, until it is cancelled: with many models that takes more than a minute."""
        due = 1
        while True:
            await asyncio.sleep(_LOOK)
            if (until := self._until) >= due:
                due = until + EVERY
                await self._predict(until)

    def _minute(self) -> int:
        return int(self._clock()) // MINUTE

    async def _keep(self, minute: int) -> None:
        """Writes what arrived since the minute before."""
        counts = dict(self._counts())
        arrived = {model: count - self._counted.get(model, 0) for model, count in counts.items()}
        self._counted = counts
        try:
            await self._in_thread(self._history.add, minute, arrived)
        except CapacityError as error:
            self._say("", f"the requests of a minute could not be kept: {error}")
        else:
            self._say("", "")

    async def _predict(self, until: int) -> None:
        """until: the first minute that is not over."""
        for model in [*self._counted]:
            try:
                minutes = await self._in_thread(self._history.minutes, model, until)
                found = await self._computed(minutes, until)
            except (ShoalError, OSError, ValueError, BrokenProcessPool) as error:
                self._say(model, f"the requests of {model} cannot be forecast: {str(error) or type(error).__name__}")
                continue
            self._say(model, "")
            if found is not None:
                self.expected[model] = found

    async def _in_thread(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        return await asyncio.wrap_future(self._thread.submit(work, *given, **named))

    async def _computed(self, minutes: Sequence[int | None], until: int) -> ExpectedTraffic | None:
        executor = self._process()
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, forecast, minutes, until)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _say(self, subject: str, why: str) -> None:
        """What is the same as before is not told again."""
        if why and why != self._troubles.get(subject):
            self._told(why)
        self._troubles[subject] = why
