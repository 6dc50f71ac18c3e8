"""One stream of a model that is larger than its memory, with experts read ahead by several guesses, and by none.

python -m benchmarks.prefetch [--rounds 3] [--models trained even] [--shares 50 25] [--steps 128] [--threads 2]

trained: SmolLM2-135M as a Mixtral of eight experts that differ, whose input is this project's documentation. even, local: random weights
in Qwen3-MoE's shape, 6 GB, 128 experts, used evenly or as unevenly as a real model's; tokens are random. All variants see the same tokens.
Each of the random models takes 12 GB of the disk. The oracle knows from a run before what each layer will need. Each
step runs with all of the guesses in turn; a rate is that of the median step of the second half of the steps.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks import random_moe
from benchmarks.report import processor
from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.base import Floats
from shoal.executor.foresight import Foresight, Routers
from shoal.executor.packed_layers import PackedLayers
from shoal.executor.runtimes import factory
from shoal.executor.stage import StageExecutor
from shoal.executor.streamed_store import StreamedStore
from shoal.folders import cache_dir
from shoal.models.sources import pull
from shoal.models.weights import GgufWeights
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan
from shoal.text.tokenizer import Tokenizer
from tests.support import upcycled

Makes = Callable[[Sequence[int], Routers], Foresight | None]


class Oracle(Foresight):
    """trace: experts by layer, in the order of visits."""

    def __init__(self, trace: Sequence[tuple[int, Sequence[int]]], experts: Sequence[int], routers: Routers) -> None:
        super().__init__(experts, None, history=False)
        self._trace, self._at = trace, 0

    def compare(self, layer: int, needed: Sequence[int], page: Sequence[int], rows: int) -> None:
        assert self._trace[self._at] == (layer, list(needed))
        self._at += 1

    def worth_reading(self, layer: int, hidden: Floats, page: Sequence[int]) -> list[int]:
        if self.following(layer) <= layer:
            return []  # of the next token nothing is known; and the read would go on during a step with other guesses
        _, experts = self._trace[self._at % len(self._trace)]
        return [expert for expert in experts if page[expert] < 0]


class Recorder(Oracle):
    """Guesses nothing, and keeps what came."""

    def __init__(self, trace: list[tuple[int, Sequence[int]]], experts: Sequence[int], routers: Routers) -> None:
        super().__init__(trace, experts, routers)
        self._kept = trace

    def compare(self, layer: int, needed: Sequence[int], page: Sequence[int], rows: int) -> None:
        self._kept.append((layer, list(needed)))

    def worth_reading(self, layer: int, hidden: Floats, page: Sequence[int]) -> list[int]:
        return []


class Stream:
    """One sequence over weights of which a part is in memory."""

    def __init__(self, file: Path, weights: GgufWeights, threads: int, share: int, makes: Makes, tokens: list[int]) -> None:
        """share: of the file, in percent, for weights."""
        layers, blocks = range(len(weights.spec.layers)), len(tokens) // 32 + 1
        self.store = StreamedStore(packed(file, weights), layers, file.stat().st_size * share // 100, foresight=makes)
        self.store.fill()
        runtime = factory(RuntimeName.NATIVE, Precision.AUTO, KvType.BF16, threads)(weights, 0)
        runtime.open(blocks)
        self._stage = StageExecutor(weights.spec, layers, runtime, self.store, blocks, {}, weights)
        self._tokens = tokens
        self.seconds: list[float] = []

    def step(self) -> None:
        i = len(self.seconds)
        opened = [Opened(1, SamplingParams(temperature=0.0), [], [])] if i == 0 else []
        plan = StepPlan(i, opened, [], [], [], [Chunk(1, i, [self._tokens[i]], [i // 32] if i % 32 == 0 else [], True)])
        began = perf_counter()
        self._stage.run(plan, None)
        self.seconds.append(perf_counter() - began)

    def row(self, rate: float, of_none: float) -> str:
        seen, tally = self.store.foreseen, self.store.tally
        told = f"{seen.recall:.2f} | {seen.accuracy:.2f} | {seen.coverage:.2f}" if seen.guesses else "- | - | -"
        counts = f"{tally.hit_rate:.2f} | {tally.guessed} | {tally.guessed_used} | {tally.guessed_wasted}"
        return f"{rate:.1f} | {of_none:.2f} | {told} | {counts}"


def packed(file: Path, weights: GgufWeights) -> PackedLayers:
    return PackedLayers.of(weights, cache_dir() / "packed", Precision.AUTO, 2)


def make_packed(file: Path, weights: GgufWeights) -> None:
    files, every = packed(file, weights), list(range(len(weights.spec.layers) + 1))
    files.make(every)
    if not all(files.made(at) for at in every):
        raise SystemExit("the disk has no room for the packed weights, and packing them on the way would be measured")
    files.close()


def trace_of(file: Path, weights: GgufWeights, threads: int, share: int, tokens: list[int]) -> list[tuple[int, Sequence[int]]]:
    trace: list[tuple[int, Sequence[int]]] = []
    stream = Stream(file, weights, threads, share, partial(Recorder, trace), tokens)
    for _ in tokens:
        stream.step()
    stream.store.close()
    return trace


def in_turn(streams: dict[str, Stream], steps: int, draw: random.Random) -> None:
    """Each step on all of them, in a random order: what one leaves behind meets all others alike."""
    for _ in range(steps):
        for stream in draw.sample(list(streams.values()), len(streams)):
            stream.step()


def variants(trace: list[tuple[int, Sequence[int]]]) -> dict[str, Makes]:
    return {
        "none": lambda experts, routers: None,
        "history": lambda experts, routers: Foresight(experts, None),
        "router": partial(Foresight, history=False),
        "both": Foresight,
        "oracle": partial(Oracle, trace),
    }


def tokens_of(name: str, file: Path, count: int) -> list[int]:
    if name != "trained":
        draw = random.Random(1)
        return [draw.randrange(49000) for _ in range(count)]
    weights = GgufWeights(file)
    text = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text()
    return Tokenizer.open(file, weights.file.meta).encode(text)[:count]


def main(names: list[str], shares: list[int], guesses: list[str], rounds: int, steps: int, threads: int) -> None:
    print(f"### {threads} threads of {processor()}, steps in turn, medians of {rounds} rounds of {steps // 2}\n")
    print("| model | memory | guesses | tokens/s | of none | recall | accuracy | coverage | hit rate | read ahead | used | wasted |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name in names:
        dense = pull("smollm2-135m")
        if name == "trained":
            file = upcycled.mixtral(dense, "perturbed")
        else:
            file = random_moe.write(random_moe.QWEN3 if name == "even" else random_moe.QWEN3_LOCAL, dense)
        weights = GgufWeights(file)
        make_packed(file, weights)
        tokens = tokens_of(name, file, steps)
        for share in shares:
            made = variants(trace_of(file, weights, threads, share, tokens))
            rates: dict[str, list[float]] = defaultdict(list)
            streams: dict[str, Stream] = {}
            for turn in range(rounds):
                streams = {each: Stream(file, weights, threads, share, made[each], tokens) for each in guesses}
                in_turn(streams, steps, random.Random(turn))
                for each, stream in streams.items():
                    stream.store.close()
                    rates[each].append(1 / median(stream.seconds[steps // 2 :]))
            for each, stream in streams.items():
                of_none = median(a / b for a, b in zip(rates[each], rates[guesses[0]], strict=True))
                print(f"| {name} | {share} % | {each} | {stream.row(median(rates[each]), of_none)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=["trained", "even", "local"], default=["trained", "even"])
    parser.add_argument("--shares", nargs="+", type=int, default=[50, 25])
    parser.add_argument("--guesses", nargs="+", default=["none", "history", "router", "both", "oracle"], help="side by side in memory")
    parser.add_argument("--steps", type=int, default=256, help="the first half warms up")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.models, arguments.shares, arguments.guesses, arguments.rounds, arguments.steps, arguments.threads)
