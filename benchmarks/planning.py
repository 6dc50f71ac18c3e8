"""What is predicted for steps of models that are held or streamed, beside what they take: memory, batch, context and model.

    python -m benchmarks.planning [--threads 2] [--profile FILE] [--models dense small large] [--plot docs/planning.svg]
    python -m benchmarks.planning --policies

The profile is that of `shoal doctor --measure` unless one is named; it must have been measured with as many threads. Steps run through a
stage as a node runs it, with random tokens. What the computing thread waits for a processor that another program has is taken off, and
rounds count in which processor and disk were as fast as their profile says, or nearest to it, if that does not happen.
With --policies: whether the batch that the search chooses for some memory gives what the best of all batches gives.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import msgspec
import numpy as np

from benchmarks import peers, random_moe, ratios
from benchmarks.pace import Pace
from benchmarks.report import processor
from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.cost import model_cost
from shoal.executor.hardware_files import read_hardware
from shoal.executor.machine_profile import remembered
from shoal.executor.other_load import OtherLoad, ThreadClock
from shoal.executor.packed_layers import PackedLayers
from shoal.executor.runtimes import factory
from shoal.executor.shard import Shard
from shoal.executor.stage import StageExecutor
from shoal.folders import cache_dir
from shoal.models.sources import pull
from shoal.models.weights import StoredWeights, Weights, open_weights
from shoal.native import BLOCK_TOKENS
from shoal.placement.cost import ModelCost
from shoal.placement.division import StageSizes, divide, least_expected
from shoal.placement.hardware import Hardware
from shoal.placement.policy import Grid, search
from shoal.placement.room import Room
from shoal.placement.steps import Steps, StepTime
from shoal.placement.workload import Policy, Workload
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan
from tests.support import upcycled

_DENSE = "smollm2-135m"
_STEPS = 64
"""Positions after the context that are measured at most before the last is measured again."""
_SECONDS, _ROUND_SECONDS, _ROUNDS, _PATIENCE = 3.0, 0.12, 4, 6.0
"""Of a setting, at least; of a round; steady rounds that are waited for, and how long."""
_STEADY = 0.1
"""What processor and disk may be off their profile in a steady round, before and after it, and others may take of the processors."""
MODELS: dict[str, Callable[[], Path]] = {
    "dense": lambda: pull(_DENSE),
    "small": lambda: peers.quantised(upcycled.mixtral(pull(_DENSE), "perturbed"), "Q4_0"),
    "large": lambda: random_moe.write(random_moe.QWEN3, pull(_DENSE)),
}
"""SmolLM2-135M; the same with eight experts; a third of Qwen3-30B-A3B's layers with random weights, 6 GB."""


@dataclass(frozen=True)
class Setting:
    share: float
    """Of the weights, that may be in memory."""
    batch: int
    context: int


SETTINGS: dict[str, list[Setting]] = {
    "dense": [
        *(Setting(1.0, batch, context) for context in (128, 1024) for batch in (1, 2, 8, 32)),
        *(Setting(share, batch, 128) for share in (0.75, 0.5) for batch in (1, 8, 32)),
    ],
    "small": [
        *(Setting(1.0, batch, 128) for batch in (1, 2, 8, 32)),
        *(Setting(share, batch, 128) for share in (0.75, 0.5, 0.25) for batch in (1, 2, 8, 32)),
    ],
    "large": [
        *(Setting(1.0, batch, 128) for batch in (1, 8)),
        *(Setting(share, batch, 128) for share in (0.75, 0.5, 0.25) for batch in (1, 8)),
        Setting(0.5, 32, 128),
    ],
}


@dataclass(frozen=True)
class Taken:
    seconds: float
    processor: float
    """Its speed before and after, of what the profile says."""
    disk: float
    others: float
    """The part of the processors that other programs took meanwhile."""

    @property
    def off(self) -> float:
        """How far the machine was from its profile."""
        return max(abs(self.processor - 1), 1 - self.disk, self.others)  # a disk beside which nothing computes is faster


class Times(msgspec.Struct):
    popularity: dict[str, dict[int, list[float]]] = {}
    taken: dict[str, list[tuple[Setting, Taken]]] = {}


class Subject:
    """A model that is held or streamed on this machine."""

    def __init__(self, path: Path, threads: int, hardware: Hardware) -> None:
        self._path, self._hardware = path, hardware
        self.weights = open_weights(path)
        self.threads, self._layers = threads, range(len(self.weights.spec.layers))
        self.cost = model_cost(self.weights.spec, self.weights, Precision.AUTO, KvType.BF16, 32)
        self._shard: Shard | None = None
        self._stage: StageExecutor | None = None
        self._share, self._next = 0.0, 0
        self._rng, self._clock = np.random.default_rng(3), ThreadClock()

    def _packed(self, weights: Weights) -> PackedLayers:
        assert isinstance(weights, StoredWeights)
        return PackedLayers.of(weights, cache_dir() / "packed", Precision.AUTO, self.threads)

    def memory(self, share: float) -> int:
        return int(self.cost.held_bytes * share)

    def enter(self, share: float, blocks: int) -> StageExecutor:
        if self._shard is None or share != self._share:
            self.close()
            make = factory(RuntimeName.NATIVE, Precision.AUTO, KvType.BF16, threads=self.threads)
            self._shard = Shard(make, packed=self._packed)
            self._shard.load(self._layers, self.weights, streamed=share < 1)
            self._share = share
        return self._shard.enter(self._layers, range(0), blocks, self.memory(share) if share < 1 else 0)

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard = None

    def popularity(self) -> dict[int, list[float]]:
        """Of the experts of each layer, counted in decode steps; all weights are held for that."""
        if all(layer.experts is None for layer in self.cost.layers):
            return {}
        self.step_seconds(Setting(1.0, 32, 128), 4 * _SECONDS)
        assert self._shard is not None
        return {layer: (counts / counts.sum()).tolist() for layer, counts in self._shard.expert_rows.items()}

    def _tokens(self, count: int) -> list[int]:
        return self._rng.integers(5, self.weights.spec.vocabulary, count).tolist()

    def step_seconds(self, setting: Setting, seconds: float = _SECONDS) -> Taken:
        """The median of decode steps, of the rounds in which the machine was as its profile says."""
        per = -(-(setting.context + _STEPS) // BLOCK_TOKENS)
        stage = self.enter(setting.share, setting.batch * per)
        first, position, step = self._next, 0, 0
        self._next += setting.batch

        def run() -> float:
            nonlocal position, step
            chunks = [
                Chunk(first + i, setting.context + position, self._tokens(1), [] if step else list(range(i * per, (i + 1) * per)), True)
                for i in range(setting.batch)
            ]
            opened = [] if step else [Opened(first + i, _GREEDY, [], []) for i in range(setting.batch)]
            plan = StepPlan(step, opened, [], [], [], chunks)
            position, step = min(position + 1, _STEPS - 1), step + 1
            return self._clock.seconds(lambda: stage.run(plan, None))

        warm = perf_counter() + seconds / 3
        while perf_counter() < warm or step < 8:
            run()
        rounds: list[Taken] = []
        end, patience = perf_counter() + seconds, perf_counter() + _PATIENCE
        pace = Pace(self._hardware, self.threads, self._path if setting.share < 1 else None)
        now = pace.both()
        while perf_counter() < end or (sum(found.off < _STEADY for found in rounds) < _ROUNDS and perf_counter() < patience):
            run()  # the threads are awake again
            others, until, times, before = OtherLoad(), perf_counter() + _ROUND_SECONDS, [run()], now
            while perf_counter() < until:
                times.append(run())
            taken, now = others.share() or 0.0, pace.both()
            rounds.append(Taken(median(times), min(before[0], now[0]), min(before[1], now[1]), taken))
        pace.close()
        stage.run(StepPlan(step, [], [first + i for i in range(setting.batch)], [], [], []), None)
        rounds.sort(key=lambda found: found.off)
        best = [found for found in rounds if found.off < _STEADY] or rounds[: max(len(rounds) // 8, 1)]
        found = (median(values) for values in zip(*((r.seconds, r.processor, r.disk, r.others) for r in best), strict=True))
        return Taken(*found)


_GREEDY = SamplingParams(temperature=0.0)


def popular(cost: ModelCost, popularity: Mapping[int, Sequence[float]]) -> ModelCost:
    """popularity: by layer, of all that rows choose."""
    layers = list(cost.layers)
    for i, shares in popularity.items():
        experts = layers[i].experts
        assert experts is not None
        layers[i] = replace(layers[i], experts=replace(experts, popularity=tuple(min(share * experts.chosen, 1.0) for share in shares)))
    return replace(cost, layers=tuple(layers))


def held(cost: ModelCost, share: float) -> int:
    """Bytes of weights that are in memory of such a share, as a node divides it."""
    if share >= 1:
        return cost.held_bytes
    sizes = StageSizes.of(cost, 0, len(cost.layers))
    division = divide(sizes, int(cost.held_bytes * share))
    experts = sum(size * sizes.experts[layer] for layer, size in sizes.expert.items())
    return cost.held_bytes - division.streamed(sizes) - round(experts * division.missed(sizes))


def predicted(cost: ModelCost, hardware: Hardware, setting: Setting) -> StepTime:
    here = held(cost, setting.share)
    dense = all(layer.experts is None for layer in cost.layers)
    policy = Policy(setting.batch, setting.batch, "processor", "processor", 1.0, KvType.BF16, (cost.held_bytes - here, here), dense)
    return Steps(cost, hardware, Workload(setting.context, 1, setting.batch)).decode(policy)


def measured(names: Sequence[str], hardware: Hardware, threads: int, times: Path | None) -> Iterator[tuple[str, ModelCost, Setting, Taken]]:
    """times: a file of an earlier run, whose times are taken instead; if it is not there, it is written."""
    known = msgspec.json.decode(times.read_bytes(), type=Times) if times and times.exists() else None
    found = known or Times()
    for name in names:
        subject = Subject(MODELS[name](), threads, hardware)
        if known is None:
            found.popularity[name] = subject.popularity()
            found.taken[name] = [(setting, subject.step_seconds(setting)) for setting in SETTINGS[name]]
        subject.close()
        cost = popular(subject.cost, found.popularity[name])
        for setting, taken in found.taken[name]:
            yield name, cost, setting, taken
        if known is None and times is not None:
            times.write_bytes(msgspec.json.encode(found))


def predictions(names: Sequence[str], hardware: Hardware, threads: int, times: Path | None, plot: Path | None) -> None:
    points, steady = list[ratios.Point](), list[ratios.Point]()
    print(
        "| model | in memory | rows | context | predicted ms | measured ms | predicted / measured | limit | processor, of its profile | disk |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, cost, setting, taken in measured(names, hardware, threads, times):
        told = predicted(cost, hardware, setting)
        points.append(ratios.Point(name, setting.share, told.seconds, taken.seconds))
        steady += points[-1:] if taken.off < _STEADY else []
        print(
            f"| {name} | {setting.share:.0%} | {setting.batch} | {setting.context} | {told.seconds * 1e3:.2f} | {taken.seconds * 1e3:.2f} "
            f"| {told.seconds / taken.seconds:.2f} | {told.limit} | {taken.processor:.2f} | {taken.disk:.2f} |",
            flush=True,
        )
    if steady and len(steady) < len(points):
        print(
            f"\nof the {len(steady)} steps in which the machine was as its profile says the median of |ratio - 1| is {ratios.error(steady):.1%}"
        )
    for what, some in (("held", [p for p in points if p.share >= 1]), ("streamed", [p for p in points if p.share < 1])):
        if some:
            print(f"\n{len(some)} steps of models that are {what}: {ratios.error(some):.1%}")
    print(f"\n{len(points)} steps, {threads} thread(s) of {processor()}: the median of |ratio - 1| is {ratios.error(points):.1%}")
    if plot is not None:
        plot.write_text(ratios.drawn(points, f"{threads} thread(s) of {processor()}"), "utf-8")


def policies(hardware: Hardware, threads: int, streams: int = 32) -> None:
    """Measures every batch at some sizes of memory, of which a larger batch leaves less for weights."""
    subject = Subject(MODELS["small"](), threads, hardware)
    cost = popular(subject.cost, subject.popularity())
    sizes, work = (1, 2, 4, 8, 16, streams), Workload(128, 128, streams)
    print("| memory | tokens/s with " + " | ".join(f"{size} rows" for size in sizes) + " | chosen | of the best |")
    print("|---|" + "---|" * (len(sizes) + 2))
    for share in (1.1, 0.5, 0.25):
        beside = {size: _beside(cost, hardware, work, size) for size in sizes}
        memory = int(cost.held_bytes * share) + beside[8]
        tiers = tuple(replace(tier, size=memory) if tier.name == "memory" else tier for tier in hardware.tiers)
        speeds: dict[int, float] = {}
        for size in sizes:
            left = min((memory - beside[size]) / cost.held_bytes, 1.0)
            if left * cost.held_bytes < least_expected(StageSizes.of(cost, 0, len(cost.layers))):
                speeds[size] = 0.0  # it cannot run
                continue
            speeds[size] = size / subject.step_seconds(Setting(left, size, 192)).seconds
        chosen = search(cost, replace(hardware, tiers=tiers), work, Grid(sizes, (1,))).policy.batch
        shown = " | ".join(f"{speed:.0f}" for speed in speeds.values())
        print(f"| {memory / 1e6:.0f} MB | {shown} | {chosen} | {speeds[chosen] / max(speeds.values()):.0%} |", flush=True)
    subject.close()


def _beside(cost: ModelCost, hardware: Hardware, work: Workload, batch: int) -> int:
    """Bytes of memory that a batch needs besides weights."""
    policy = Policy(batch, batch, "processor", "processor", 1.0, KvType.BF16, (0,) * len(hardware.tiers), False)
    return int(Room(Steps(cost, hardware, work)).beside(policy, streams=True)[hardware.devices[0].tier])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", help="a hardware profile; otherwise this machine's own")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    parser.add_argument("--times", type=Path, help="a file for what was measured; if it is there, nothing is measured again")
    parser.add_argument("--policies", action="store_true")
    arguments = parser.parse_args()
    if arguments.profile:
        here = read_hardware(arguments.profile)
    elif (found := remembered()) is not None:
        here = found.hardware
    else:
        raise SystemExit("this machine was not measured: `shoal doctor --measure` does that")
    if arguments.policies:
        policies(here, arguments.threads)
    else:
        predictions(arguments.models, here, arguments.threads, arguments.times, arguments.plot)
