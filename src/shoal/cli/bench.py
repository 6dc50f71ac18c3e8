"""`bench`: how fast a model runs here."""

from __future__ import annotations

import asyncio
from statistics import median
from time import perf_counter
from typing import Any

from shoal.cli.loop import run
from shoal.cli.served import local_settings, served
from shoal.cli.show import emit, err, out
from shoal.cli.waiting import stop_signal
from shoal.config import EngineSettings, NodeSettings
from shoal.node.head import Head
from shoal.request import Request, RequestId, SamplingParams


async def _one(head: Head, prompt: list[int], tokens: int, name: str) -> tuple[float, float]:
    """Seconds to the first token and to the last."""
    began, first = perf_counter(), 0.0
    stream = head.engine.submit(Request(RequestId(name), prompt, tokens, SamplingParams(temperature=0.0)))
    async for _ in stream:
        first = first or perf_counter() - began
    return first, perf_counter() - began


async def _bench(engine: EngineSettings, node: NodeSettings, nodes: int, repeat: int) -> dict[str, Any]:
    async with served(local_settings(engine), node, nodes, stop_signal()) as there:
        if there is None:
            raise KeyboardInterrupt
        _, head = there
        vocabulary = head.engine.vocabulary
        await _one(head, [1, 2, 3], 8, "warm")
        single: list[float] = []
        eight: list[float] = []
        prefill: list[float] = []
        with err.status("measuring"):
            for i in range(repeat):
                first, total = await _one(head, [(7 * i + 11) % vocabulary, 5, 6, 7], 96, f"one-{i}")
                single.append(95 / (total - first))
                began = perf_counter()
                await asyncio.gather(*(_one(head, [(31 * i + 13 * j + 17) % vocabulary, 5, 6, 7], 64, f"eight-{i}-{j}") for j in range(8)))
                eight.append(8 * 64 / (perf_counter() - began))
                prompt = [(k * 7919 + i * 104729 + 23) % vocabulary for k in range(512)]
                first, _ = await _one(head, prompt, 1, f"prefill-{i}")
                prefill.append(512 / first)
        rates = {"decode_1": median(single), "decode_8": median(eight), "prefill_512": median(prefill)}
        return {**{f"{what}_tokens_per_second": round(rate, 1) for what, rate in rates.items()}, "repeat": repeat, "nodes": nodes}


def bench(settings: EngineSettings, node: NodeSettings, nodes: int, repeat: int, as_json: bool) -> None:
    figures = run(_bench(settings, node, nodes, repeat))
    if as_json:
        emit(figures)
        return
    for what, key in (("decode, 1 stream", "decode_1"), ("decode, 8 streams", "decode_8"), ("prefill of 512", "prefill_512")):
        out.print(f"{what:19} {figures[key + '_tokens_per_second']:8.1f} tokens/s", highlight=False)
