"""What attention takes with each type of keys and values: processor time of one thread, which other work on a machine disturbs little.

    python -m benchmarks.kv_attention [--types bf16 q8 q4] [--heads 9,3,64 12,2,128] [--rows 16] [--contexts 512 4096] [--isa avx2]

One row of each of `rows` sequences, of one layer, whose blocks are scattered over memory; the least of several rounds, the types in turns.
heads: of queries, of keys and values, and their width.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from time import thread_time

import numpy as np

from benchmarks.report import processor
from shoal.config import KvType
from shoal.executor.kv_pool import token_bytes
from shoal.native import BLOCK_TOKENS, kernels

_LAYERS, _ROUNDS = 4, 9
"""As many pools take turns, so that no cache holds what is read."""


def step(kv_type: KvType, q_heads: int, kv_heads: int, width: int, rows: int, context: int, isa: str) -> tuple[Callable[[], None], int]:
    """A call, and the bytes of keys and values that it reads."""
    module = kernels()
    assert module is not None
    per, size = -(-(context + 1) // BLOCK_TOKENS), BLOCK_TOKENS * token_bytes((width, width) * kv_heads, kv_type)
    pools: list[np.ndarray] = []
    for _ in range(_LAYERS):
        raw = np.ones(rows * per * size + 64, np.uint8)
        pools.append(raw[-raw.ctypes.data % 64 :][: rows * per * size].reshape(rows * per, size))
    heads = {"q_heads": q_heads, "kv_heads": kv_heads, "key_dim": width, "value_dim": width}
    block = module.GroupedQuery(module.Around(), None, None, None, None, **heads, scale=width**-0.5)
    stage, rng = module.Stage(16, 1, isa), np.random.default_rng(0)
    qkv = rng.standard_normal((rows, (q_heads + 2 * kv_heads) * width)).astype(np.float32)
    out, starts, positions = (
        np.zeros((rows, q_heads * width), np.float32),
        np.arange(rows + 1, dtype=np.int32),
        np.full(rows, context, np.int32),
    )
    tables = rng.permutation(rows * per).astype(np.int32).reshape(rows, per)

    def run() -> None:
        for pool in pools:
            stage.attend(block, qkv, starts, positions, tables, [], pool, kv_type, out)

    return run, rows * context * token_bytes((width, width) * kv_heads, kv_type)


def heads_of(text: str) -> tuple[int, int, int]:
    q_heads, kv_heads, width = map(int, text.split(","))
    return q_heads, kv_heads, width


def main(types: list[KvType], every: list[tuple[int, int, int]], rows: int, contexts: list[int], isa: str) -> None:
    print(f"one thread of {processor()} {isa}; {rows} rows, one layer\n")
    print("| heads | context | " + " | ".join(f"{kv_type}, ms | GB/s | against {types[0]}" for kv_type in types) + " |")
    print("|" + "---|" * (3 * len(types) + 2))
    for heads, context in product(every, contexts):
        made = [step(kv_type, *heads, rows, context, isa) for kv_type in types]
        best = [float("inf")] * len(types)
        for _ in range(_ROUNDS):
            for i, (call, _) in enumerate(made):
                began = thread_time()
                call()
                best[i] = min(best[i], (thread_time() - began) / _LAYERS)
        cells = [f"{s * 1e3:.2f} | {nbytes / s / 1e9:.1f} | {best[0] / s:.2f} x" for s, (_, nbytes) in zip(best, made, strict=True)]
        print(f"| {heads} | {context} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", type=KvType, nargs="+", default=[KvType.BF16, KvType.Q8, KvType.Q4])
    parser.add_argument("--heads", type=heads_of, nargs="+", default=[(9, 3, 64), (12, 2, 128)])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--isa", default="")
    given = parser.parse_args()
    main(given.types, given.heads, given.rows, given.contexts, given.isa)
