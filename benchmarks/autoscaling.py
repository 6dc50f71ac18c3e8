"""What the autoscaler gains on made-up traffic: seconds to the first token beside replica-hours, for fixed numbers of replicas, for the
policy that reacts, and for the one that also has a forecast.

    python -m benchmarks.autoscaling [--days 7] [--peak 4] [--load 300]

Traffic: requests of a Poisson process whose rate has two humps on workdays and less at weekends, drifts, and jumps by itself now and then;
five weeks of it are history, with a holiday and a day in which nobody counted, and another holiday is among the days that are simulated.
Replicas have 8 slots, a request takes one for 20 s on average (lognormal) and gets its first token 0.4 s after it. Those that are wanted
load for a while; those that go finish what they have begun. The autoscaler is the one of `shoal.serving.scaling`, asked every 15 s; the
forecast is that of `shoal.serving.forecast`, made anew every half hour.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from time import process_time

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import processor
from shoal.config import ScalingSettings
from shoal.observed.fleet_plan import StartReplica, StopReplica
from shoal.serving.forecast import forecast
from shoal.serving.scaling.autoscaler import Autoscaler
from shoal.serving.scaling.expected_traffic import ExpectedTraffic
from shoal.serving.scaling.load import ModelLoad, ReplicaLoad, ReplicaPhase
from shoal.serving.scaling.room import places_for

SLOTS, SERVICE, SIGMA, PREFILL = 8, 20.0, 0.6, 0.4
TICK, DAY = 15.0, 86400
HISTORY_DAYS = 35
HOLIDAYS, MISSING = (16, HISTORY_DAYS + 3), 24
"""Days, counted from a Monday."""
MOST = 40
RENEWED = 1800
"""Seconds between two forecasts."""

Figures = NDArray[np.float64]


def rates(days: int, peak: float, chance: np.random.Generator) -> Figures:
    """Requests per second in each minute."""
    minute = np.arange(days * 1440)
    hour, day = (minute / 60) % 24, minute // 1440
    shape = 0.06 + np.exp(-(((hour - 10.5) / 1.8) ** 2)) + 0.75 * np.exp(-(((hour - 15.5) / 2.2) ** 2))
    shape += 0.8 / (1 + np.exp(-(hour - 8.5) * 40)) * (hour < 12.5) * np.exp(-((hour - 8.5) / 3.0))  # everybody begins at half past eight
    quiet = (day % 7 >= 5) | np.isin(day, HOLIDAYS)
    drift = np.exp(np.repeat(chance.normal(0, 0.1, days), 1440))
    jumps = np.ones(len(minute))
    for begin in chance.integers(0, len(minute), days // 2):
        jumps[begin : begin + 40] *= 1.6
    wave = shape * np.where(quiet, 0.3, 1.0) * drift * jumps
    return wave * peak / np.quantile(wave, 0.999)


@dataclass
class Outcome:
    first_tokens: list[float] = field(default_factory=list[float])
    replica_seconds: float = 0.0
    changes: int = 0
    most: int = 0
    processor: float = 0.0
    """Seconds, of all plans."""

    def row(self, name: str, fixed: float, days: int) -> str:
        p50, p95, p99 = np.quantile(self.first_tokens, (0.5, 0.95, 0.99))
        late = np.mean(np.array(self.first_tokens) > 2.0)
        hours = self.replica_seconds / 3600
        return (
            f"| {name} | {p50:.2f} | {p95:.2f} | {p99:.2f} | {late:.2%} | {hours:.0f} | {hours / fixed:.0%} | {self.most} | "
            f"{self.changes / days:.0f} |"
        )


class Fleet:
    """One model: a queue, and replicas that take from it."""

    def __init__(self, serving: int, load: float) -> None:
        self.states = dict.fromkeys(range(1, serving + 1), ReplicaPhase.SERVING)
        self.ready: dict[int, float] = {}
        self.load = load
        self.queue: deque[tuple[float, float]] = deque()
        self.ends: list[float] = []
        self.started: deque[tuple[float, float]] = deque()
        self.arrived: deque[float] = deque()
        self.outcome = Outcome()
        self.slot_seconds, self.requests = SERVICE, 1

    @property
    def serving(self) -> int:
        return sum(state is ReplicaPhase.SERVING for state in self.states.values())

    def came(self, at: float, seconds: float) -> None:
        self.finish(at)
        self.arrived.append(at)
        self.requests += 1
        self.slot_seconds += seconds
        self.queue.append((at, seconds))
        self._begin(at)

    def finish(self, until: float) -> None:
        """What ends until then, and what begins in its place."""
        while self.ends and self.ends[0] <= until:
            self._begin(heappop(self.ends))

    def _begin(self, now: float) -> None:
        while self.queue and len(self.ends) < self.serving * SLOTS:
            at, seconds = self.queue.popleft()
            heappush(self.ends, now + seconds)
            first = now - at + PREFILL
            self.outcome.first_tokens.append(first)
            self.started.append((now, first))

    def tick(self, now: float) -> None:
        """Every TICK seconds."""
        for number, at in [*self.ready.items()]:
            if at <= now:
                self.states[number] = ReplicaPhase.SERVING
                del self.ready[number]
        self.finish(now)
        self._begin(now)
        while self.arrived and self.arrived[0] < now - 60:
            self.arrived.popleft()
        while self.started and self.started[0][0] < now - 60:
            self.started.popleft()
        self.outcome.replica_seconds += TICK * len(self.states)
        self.outcome.most = max(self.outcome.most, len(self.states))

    def seen(self) -> ModelLoad:
        firsts = [first for _, first in self.started]
        replicas = tuple(ReplicaLoad(number, state, SLOTS) for number, state in self.states.items())
        return ModelLoad(
            "model",
            replicas,
            waiting=len(self.queue),
            first_token_p95=float(np.quantile(firsts, 0.95)) if firsts else None,
            utilisation=min(len(self.ends) / max(self.serving * SLOTS, 1), 1.0),
            requests_per_second=len(self.arrived) / 60,
            slot_seconds=self.slot_seconds / self.requests,
            load_seconds=self.load,
        )


def simulated(
    arrivals: Sequence[tuple[float, float]], fleet: Fleet, begin: float, end: float, scaler: Autoscaler | None, counts: Figures | None
):
    """counts: requests of each minute from the start of the history on, NaN where nobody counted; None: there is no forecast."""
    expected: dict[str, ExpectedTraffic] = {}
    trusted = made = 0
    waiting = deque(arrivals)
    now = begin
    while now < end:
        now += TICK
        while waiting and waiting[0][0] <= now:
            fleet.came(*waiting.popleft())
        fleet.tick(now)
        if scaler is None:
            continue
        if counts is not None and now % RENEWED == 0:
            minute = int(now // 60)
            told = forecast([None if np.isnan(count) else int(count) for count in counts[:minute]], minute)
            expected = {} if told is None else {"model": told}
            made, trusted = made + 1, trusted + (told is not None and told.trusted)
        spent = process_time()
        scaler.observe(now, [fleet.seen()], expected)
        plan = scaler.plan(now, places_for(MOST - len(fleet.states)))
        scaler.began(now, plan)
        fleet.outcome.processor += process_time() - spent
        for action in plan.models[0].actions:
            if isinstance(action, StartReplica):
                fleet.states[action.replica] = ReplicaPhase.LOADING
                fleet.ready[action.replica] = now + fleet.load
                fleet.outcome.changes += 1
            elif isinstance(action, StopReplica):
                del fleet.states[action.replica]
                fleet.ready.pop(action.replica, None)
                fleet.outcome.changes += 1
    return trusted / made if made else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--peak", type=float, default=4.0, help="requests per second")
    parser.add_argument("--load", type=float, default=300.0, help="seconds to load a replica")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = np.random.default_rng(given.seed)
    rate = rates(HISTORY_DAYS + given.days, given.peak, chance)
    counts = chance.poisson(rate * 60).astype(np.float64)
    begin, end = HISTORY_DAYS * DAY, (HISTORY_DAYS + given.days) * DAY
    moments = [
        minute * 60 + second for minute in range(begin // 60, end // 60) for second in np.sort(chance.uniform(0, 60, int(counts[minute])))
    ]
    lengths = chance.lognormal(np.log(SERVICE) - SIGMA**2 / 2, SIGMA, len(moments))
    arrivals = [(float(at), float(seconds)) for at, seconds in zip(moments, lengths, strict=True)]
    known = counts.copy()
    known[MISSING * 1440 : (MISSING + 1) * 1440] = np.nan

    def needed(rate: float) -> int:
        return int(np.ceil(rate * SERVICE / (SLOTS * 0.75)))

    peak, mean = needed(float(rate[begin // 60 :].max())), needed(float(rate[begin // 60 :].mean()))
    settings = ScalingSettings(replicas_min=1, replicas_max=MOST, forecast=True)
    ways: list[tuple[str, int, Autoscaler | None, Figures | None]] = [
        (f"fixed, for the peak: {peak}", peak, None, None),
        (f"fixed, for the mean: {mean}", mean, None, None),
        ("reactive", 1, Autoscaler(settings), None),
        ("predictive", 1, Autoscaler(settings), known),
    ]
    print(
        f"{processor()}; {given.days} days, {len(arrivals)} requests, {given.peak:g} a second at most, a replica loads in {given.load:g} s\n"
    )
    print("| replicas | first token p50, s | p95 | p99 | after 2 s | replica-hours | of fixed | most | changes a day |")
    print("|---|---|---|---|---|---|---|---|---|")
    cost = 0.0
    for name, count, scaler, figures in ways:
        fleet = Fleet(count, given.load)
        trusted = simulated(arrivals, fleet, begin, end, scaler, figures)
        note = f" (forecast trusted {trusted:.0%} of the time)" if figures is not None else ""
        print(fleet.outcome.row(name + note, peak * given.days * 24, given.days), flush=True)
        if scaler is not None and figures is None:
            cost = fleet.outcome.processor / (given.days * DAY / TICK)
    print(f"\na look at the load and a plan take {cost * 1e6:.0f} µs")


if __name__ == "__main__":
    main()
