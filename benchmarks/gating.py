"""The Triton kernels beside torch, on a GPU: top-k gating, its gradient, and products with INT8 weights.

    python -m benchmarks.gating [--rows 1 8 64 512 4096] [--rounds 5] [--no-compile]

Microseconds, medians of the rounds. "Called" is one call after another from Python, so that whichever is slower counts, the GPU or the
process that feeds it. "Replayed" is a CUDA graph of many calls, in which only the GPU counts. A ratio above 1 means that ours is faster.

Without a GPU it says so and ends with status 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from statistics import median
from typing import NamedTuple

import shoal.triton

if why := shoal.triton.missing():
    print(why, file=sys.stderr)
    raise SystemExit(2)

import torch

from shoal.triton import Gating, dequantise, int8_matmul, quantise, top_k_gating

Chosen = tuple[torch.Tensor, torch.Tensor]
Call = Callable[[], object]
SHAPES = ((4096, 4096), (2048, 768))
"""Outputs and inputs: a projection of attention, and a matrix of one of Qwen3-30B-A3B's experts."""
_ROUND_MS = 20.0
_COPIES = 256 << 20
"""Bytes of INT8 weights that calls take turns over: more than any cache of a GPU holds."""


class Setting(NamedTuple):
    name: str
    experts: int
    gating: Gating
    rival: Callable[[torch.Tensor, torch.Tensor | None], Chosen]
    biased: bool = False

    def bias(self, device: str) -> torch.Tensor | None:
        return torch.randn(self.experts, device=device) * 0.1 if self.biased else None


def by_softmax(chosen: int) -> Callable[[torch.Tensor, torch.Tensor | None], Chosen]:
    """As in transformers' Mixtral and Qwen3-MoE."""

    def choose(logits: torch.Tensor, _: torch.Tensor | None) -> Chosen:
        weights, ids = torch.softmax(logits.float(), -1).topk(chosen)
        return weights / weights.sum(-1, keepdim=True), ids

    return choose


def as_deepseek_v3(logits: torch.Tensor, bias: torch.Tensor | None) -> Chosen:
    """As in transformers' DeepSeek-V3: 8 of 256 experts, in 4 of 8 groups scored by their two best."""
    scores = logits.float().sigmoid()
    compared = scores if bias is None else scores + bias
    groups = compared.view(-1, 8, 32).topk(2, -1).values.sum(-1).topk(4, -1).indices
    is_open = torch.zeros_like(compared[:, :8]).scatter(1, groups, 1.0).bool().repeat_interleave(32, 1)
    ids = compared.masked_fill(~is_open, -torch.inf).topk(8).indices
    weights = scores.gather(1, ids)
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5, ids


SETTINGS = (
    Setting("Mixtral", 8, Gating(2, renormalised=True), by_softmax(2)),
    Setting("64 experts", 64, Gating(6, renormalised=True), by_softmax(6)),
    Setting("Qwen3-MoE", 128, Gating(8, renormalised=True), by_softmax(8)),
    Setting("256 experts", 256, Gating(8, renormalised=True), by_softmax(8)),
    Setting(
        "DeepSeek-V3", 256, Gating(8, "sigmoid", True, 2.5, groups=8, groups_chosen=4, group_score="best two"), as_deepseek_v3, biased=True
    ),
)


def called(call: Call, rounds: int) -> float:
    """Microseconds of a call from Python."""
    return median(_rounds(call, rounds, 1))


def replayed(call: Call, rounds: int, calls: int = 16) -> float:
    """Microseconds of a call within a CUDA graph of so many."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # whatever is compiled or allocated at first is so before the capture
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return median(_rounds(graph.replay, rounds, calls))


def _rounds(call: Call, rounds: int, calls: int) -> list[float]:
    """Each of as many repetitions as take about 20 ms; the first, which is not counted, finds how many."""
    times: list[float] = []
    repetitions = 5
    for counted in range(-1, rounds):
        call()
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        for _ in range(repetitions):
            call()
        ended.record()
        ended.synchronize()
        took = began.elapsed_time(ended) / repetitions  # ms
        if counted >= 0:
            times.append(took * 1000 / calls)
        else:
            repetitions = max(int(_ROUND_MS / max(took, 1e-3)), 5)
    return times


def compiled(setting: Setting, logits: torch.Tensor, bias: torch.Tensor | None) -> Call | None:
    """The rival's call by torch.compile; None where that does not work, which is said."""
    made = torch.compile(setting.rival)

    def call() -> object:
        return made(logits, bias)

    try:
        call()
    except Exception as error:  # noqa: BLE001 - of the compiler, of whatever kind
        print(f"torch.compile does not work here: {type(error).__name__}", file=sys.stderr)
        return None
    return call


def beside(ours: float, *theirs: float | None) -> str:
    """Cells: our time, then each other one and its ratio to ours."""
    return " | ".join([f"{ours:.1f}", *("– | –" if time is None else f"{time:.1f} | {time / ours:.2f} x" for time in theirs)])


def head(before: str, columns: list[str]) -> str:
    names = [*before.split(" | "), *columns]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def gating_row(setting: Setting, rows: int, device: str, rounds: int, with_compile: bool) -> str:
    logits, bias = torch.randn(rows, setting.experts, device=device), setting.bias(device)
    quick = compiled(setting, logits, bias) if with_compile else None
    cells: list[str] = []
    for timed in (called, replayed):
        ours = timed(lambda: top_k_gating(logits, setting.gating, bias), rounds)
        eager = timed(lambda: setting.rival(logits, bias), rounds)
        cells.append(beside(ours, eager, None if quick is None else timed(quick, rounds)))
    return f"| {setting.name} | {setting.experts} | {setting.gating.chosen} | {rows} | {' | '.join(cells)} |"


def gradient_row(setting: Setting, rows: int, device: str, rounds: int) -> str:
    logits, bias = torch.randn(rows, setting.experts, device=device, requires_grad=True), setting.bias(device)
    upstream = torch.randn(rows, setting.gating.chosen, device=device)

    def with_gradient(weights: torch.Tensor) -> object:
        return torch.autograd.grad(weights, logits, upstream)

    ours = called(lambda: with_gradient(top_k_gating(logits, setting.gating, bias)[0]), rounds)
    theirs = called(lambda: with_gradient(setting.rival(logits, bias)[0]), rounds)
    return f"| {setting.name} | {setting.experts} | {setting.gating.chosen} | {rows} | {beside(ours, theirs)} |"


def product_row(made: list[tuple[torch.Tensor, torch.Tensor]], rows: int, device: str, rounds: int) -> str:
    """Calls take turns over weights that are all alike but for their place, so that none are in a cache."""
    wide = [dequantise(*each, torch.bfloat16) for each in made]
    outputs, inputs = wide[0].shape
    x = torch.randn(rows, inputs, device=device).bfloat16()
    turns, wide_turns = cycle(made), cycle(wide)
    calls: tuple[Call, ...] = (
        lambda: int8_matmul(x, *next(turns)),
        lambda: x @ dequantise(*next(turns), torch.bfloat16).T,
        lambda: x @ next(wide_turns).T,
    )
    from_python = [called(call, rounds) for call in calls]
    in_graphs = [replayed(call, rounds, len(made)) for call in calls]
    return f"| {outputs} | {inputs} | {rows} | {beside(*from_python)} | {beside(*in_graphs)} |"


def tables(device: str, every_rows: list[int], rounds: int, with_compile: bool, copied: int = _COPIES) -> Iterator[str]:
    """The lines of all three."""
    ways = ["called: ours", "torch", "ratio", "torch.compile", "ratio", "replayed: ours", "torch", "ratio", "torch.compile", "ratio"]
    yield "### Top-k gating, float32 logits\n"
    yield head("model | experts | chosen | rows", ways)
    for setting in SETTINGS:
        yield from (gating_row(setting, rows, device, rounds, with_compile) for rows in every_rows)
    yield "\n### Top-k gating and its gradient, float32 logits, called\n"
    yield head("model | experts | chosen | rows", ["ours", "torch", "ratio"])
    for setting in SETTINGS:
        yield from (gradient_row(setting, rows, device, rounds) for rows in every_rows)
    ways = ["dequantised, then multiplied", "ratio", "bf16 weights", "ratio"]
    yield "\n### Products with INT8 weights, a scale per channel, bfloat16 activations\n"
    yield head("outputs | inputs | rows", ["called: ours", *ways, "replayed: ours", *ways])
    for outputs, inputs in SHAPES:
        weights = [quantise(torch.randn(outputs, inputs, device=device) * 0.02) for _ in range(max(copied // (outputs * inputs), 1))]
        yield from (product_row(weights, rows, device, rounds) for rows in every_rows)


def main(every_rows: list[int], rounds: int, with_compile: bool) -> None:
    if not torch.cuda.is_available():
        print("benchmarks.gating needs a GPU that torch can use", file=sys.stderr)
        raise SystemExit(2)
    print(f"{torch.cuda.get_device_name()}; torch {torch.__version__}; µs, medians of {rounds}\n")
    for line in tables("cuda", every_rows, rounds, with_compile):
        print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 512, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes some seconds for each setting")
    arguments = parser.parse_args()
    main(arguments.rows, arguments.rounds, not arguments.no_compile)
