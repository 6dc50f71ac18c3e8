"""What it costs a worker to have memory for only a part of its experts: the time of a layer's question, by that part.

python -m benchmarks.worker_memory [--model even|FILE.gguf] [--shares 1 0.9 0.75 0.5 0.25] [--rows 1 8 64] [--tokens 64] [--repeated 0 0.5]

One bank with every expert of the file, one thread. Each row of a question runs as many experts as the model chooses, at random, of which a
part is those of the step before: with none, experts are used evenly and in no order, and what is in memory is found as often as its share.
The packed files are those of shoal's cache. Milliseconds are means over all questions after the first third.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from time import perf_counter

import numpy as np

from benchmarks.experts import file_of
from benchmarks.report import processor
from shoal.config import NodeSettings, Precision
from shoal.executor.cost import expert_bytes
from shoal.executor.expert_bank import ExpertBank
from shoal.executor.packed_layers import PackedLayers
from shoal.models.spec import Experts, ModelSpec
from shoal.models.weights import GgufWeights, Weights
from shoal.weights.expert_reads import ExpertReads
from shoal.wire.routed import Routed

Choice = list[list[int]]
"""Of each row."""


def chosen(rng: np.random.Generator, kind: Experts, before: Choice, repeated: float) -> Choice:
    """repeated: the part of a row's experts that it takes again."""
    out: Choice = []
    for row in before:
        kept = list(rng.choice(row, round(len(row) * repeated), replace=False)) if row else []
        others = np.setdiff1d(np.arange(kind.count), kept)
        out.append([*map(int, kept), *map(int, rng.choice(others, kind.routing.chosen - len(kept), replace=False))])
    return out


def routed(rng: np.random.Generator, layer: int, hidden: int, choice: Choice) -> Routed:
    entries = sorted((expert, row) for row, experts in enumerate(choice) for expert in experts)
    experts, counts = np.unique([expert for expert, _ in entries], return_counts=True)
    scales = np.full((len(choice), hidden // 32), 0.01, np.float32)
    return Routed.of(
        layer,
        experts.astype(np.int32),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        np.array([row for _, row in entries], np.int32),
        np.full(len(entries), 0.1, np.float32),
        (scales, rng.integers(-127, 127, (len(choice), hidden), dtype=np.int8)),
    )


def layers_of(spec: ModelSpec) -> dict[int, Experts]:
    return {layer: of.feed_forward for layer, of in enumerate(spec.layers) if isinstance(of.feed_forward, Experts)}


def asked(bank: ExpertBank, spec: ModelSpec, rows: int, tokens: int, repeated: float) -> tuple[float, ExpertReads]:
    """Milliseconds of a layer's question, and what became of the experts that the later two thirds needed."""
    rng, kinds, before = np.random.default_rng(1), layers_of(spec), bank.expert_reads
    choices: dict[int, Choice] = {layer: [[] for _ in range(rows)] for layer in kinds}
    seconds: list[float] = []
    for token in range(tokens):
        if token == tokens // 3:
            seconds, before = [], bank.expert_reads
        for layer, kind in kinds.items():
            choices[layer] = chosen(rng, kind, choices[layer], repeated)
            question = routed(rng, layer, spec.hidden, choices[layer])
            began = perf_counter()
            bank.run(question)
            seconds.append(perf_counter() - began)
    return mean(seconds) * 1e3, bank.expert_reads.since(before)


def bank_of(weights: Weights, folder: Path, share: float) -> ExpertBank:
    precision = Precision.AUTO
    every = {layer: frozenset(range(kind.count)) for layer, kind in layers_of(weights.spec).items()}
    memory = sum(len(some) * expert_bytes(weights.spec, weights, precision, layer) for layer, some in every.items())
    assert isinstance(weights, GgufWeights)
    bank = ExpertBank(weights.spec, precision, 1, packed=lambda _: PackedLayers.of(weights, folder, precision, 1, print))
    bank.hold(every, weights, round(memory * share))
    return bank


def main(file: Path, shares: list[float], rows: list[int], tokens: int, repeated: list[float]) -> None:
    weights, folder = GgufWeights(file), NodeSettings().packed_folder
    assert folder is not None
    print(f"### {file.stem}, one thread of {processor()}\n")
    print("| memory | rows | taken again | a layer's question, ms | found in memory | MB read |\n|---|---|---|---|---|---|")
    for share in shares:
        bank = bank_of(weights, folder, share)
        for part in repeated:
            for count in rows:
                took, reads = asked(bank, weights.spec, count, tokens, part)
                needed = reads.hits + reads.misses
                found = f"{reads.hits / needed:.0%}" if needed else "all"
                print(f"| {share:.0%} | {count} | {part:.0%} | {took:.2f} | {found} | {reads.bytes_read / 1e6:.0f} |", flush=True)
        bank.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="even")
    parser.add_argument("--shares", nargs="+", type=float, default=[1, 0.9, 0.75, 0.5, 0.25], help="of what all experts take in memory")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeated", nargs="+", type=float, default=[0, 0.5])
    given = parser.parse_args()
    main(file_of(given.model), given.shares, given.rows, given.tokens, given.repeated)
