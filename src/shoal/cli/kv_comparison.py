"""`profile --kv-cache off`: how much faster an answer is with its keys and values kept than with all of it computed for each token."""

from __future__ import annotations

import dataclasses
from time import perf_counter

from shoal.cli.loop import run
from shoal.cli.served import local_settings, served
from shoal.cli.show import emit, err, line_out
from shoal.cli.waiting import stop_signal, until
from shoal.config import EngineSettings, NodeSettings
from shoal.errors import ClusterError
from shoal.node.head import Head
from shoal.request import Request, RequestId, SamplingParams

_PROMPT = 32  # tokens


@dataclasses.dataclass(frozen=True)
class KvComparison:
    """Seconds of the same answer."""

    tokens: int
    kept_seconds: float
    recomputed_seconds: float

    @property
    def speedup(self) -> float:
        return self.recomputed_seconds / self.kept_seconds


async def compared(head: Head, tokens: int) -> KvComparison:
    """head: of a cluster without prefix cache. Raises ClusterError if the answers differ."""
    prompt = [(7919 * k + 23) % head.engine.vocabulary for k in range(_PROMPT)]
    await _answer(head, prompt, 4, "warm")
    began = perf_counter()
    kept = await _answer(head, prompt, tokens, "kept")
    between = perf_counter()
    recomputed: list[int] = []
    for i in range(len(kept)):
        recomputed += await _answer(head, prompt + recomputed, 1, f"recomputed-{i}")
    ended = perf_counter()
    if kept != recomputed:
        at = next((i for i, (a, b) in enumerate(zip(kept, recomputed, strict=False)) if a != b), len(recomputed))
        raise ClusterError(f"the answers with and without the KV cache differ from token {at + 1} on; this is an error of shoal")
    return KvComparison(len(kept), between - began, ended - between)


async def _answer(head: Head, prompt: list[int], tokens: int, name: str) -> list[int]:
    request = Request(RequestId(name), prompt, tokens, SamplingParams(temperature=0.0))
    return [chunk.token async for chunk in head.engine.submit(request) if chunk.token is not None]


async def _compare(engine: EngineSettings, node: NodeSettings, nodes: int, tokens: int) -> KvComparison:
    stop, found = stop_signal(), list[KvComparison]()
    async with served(local_settings(dataclasses.replace(engine, prefix_cache=False)), node, nodes, stop) as there:
        if there is None:
            raise KeyboardInterrupt

        async def work() -> None:
            found.append(await compared(there[1], tokens))

        with err.status("computing the same answer twice"):
            if not await until(stop, work()):
                raise KeyboardInterrupt
    return found[0]


def compare(engine: EngineSettings, node: NodeSettings, nodes: int, tokens: int, as_json: bool) -> None:
    """Raises ShoalError, OSError."""
    made = run(_compare(engine, node, nodes, tokens))
    if as_json:
        emit({**dataclasses.asdict(made), "speedup": made.speedup})
        return
    with_it, without = made.tokens / made.kept_seconds, made.tokens / made.recomputed_seconds
    line_out(f"the same {made.tokens} tokens, with KV cache {with_it:.1f} tokens/s, without {without:.1f} tokens/s")
    line_out(f"the KV cache makes it {made.speedup:.2f} times as fast")
