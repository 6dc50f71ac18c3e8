"""What rounded keys and values cost: perplexity and greedy agreement of each type of KV cache, beside bf16.

    python -m benchmarks.kv_quality [--models smollm2-135m qwen2.5-coder-1.5b] [--types bf16 q8 q4] [--context 2048] [--pieces 6]

The text is this Python's own: the topics of `pydoc_data`, and modules of the standard library; its size and hash are printed. It is cut into
pieces of `context` tokens. Of each token in a piece: the log-probability after all before it, and which token was the likeliest there. Then
the first tokens of some pieces are prompts, whose greedy answers are compared with those of bf16.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import inspect
import ipaddress
import math
import platform
import statistics
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import cast

from benchmarks.report import processor
from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.base import StageOutput
from shoal.executor.runtimes import factory
from shoal.executor.shard import Shard
from shoal.executor.stage import StageExecutor
from shoal.models.description import Description, describe
from shoal.native import BLOCK_TOKENS
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, PromptQuery, StepPlan
from shoal.text.tokenizer import Tokenizer

_ROWS = 512
"""Of a step."""
_PROMPTS, _PROMPT, _ANSWER = 8, 256, 64
"""How many greedy answers, of prompts and answers of how many tokens."""


def text() -> str:
    prose = cast("dict[str, str]", topics)
    return "\n\n".join([*(prose[name] for name in sorted(prose)), *map(inspect.getsource, (difflib, statistics, ipaddress))])


def pieces(model: Description, context: int, count: int) -> list[list[int]]:
    """Spread evenly over the text."""
    tokens = Tokenizer.open(model.path, model.gguf, None, False).encode(text(), bos=False)
    stride = max((len(tokens) - context) // max(count - 1, 1), 1)
    return [tokens[i * stride : i * stride + context] for i in range(count)]


@dataclass
class Seen:
    logprobs: list[float]
    likeliest: list[int]
    """At the same places."""
    answers: list[list[int]]

    @property
    def perplexity(self) -> float:
        return math.exp(-statistics.fmean(self.logprobs))


class _Reader:
    """One sequence after the other through all layers."""

    def __init__(self, executor: StageExecutor) -> None:
        self._executor, self._sequence = executor, 0

    def scored(self, tokens: list[int]) -> tuple[list[float], list[int]]:
        logprobs: list[float] = []
        likeliest: list[int] = []
        self._sequence += 1
        for at in range(0, len(tokens), _ROWS):
            part, followers = tokens[at : at + _ROWS], tokens[at + 1 : at + _ROWS + 1]
            for score in self._step(at, part, PromptQuery(followers, 1, False), False).examined[0].scores:
                assert score.logprob is not None
                logprobs.append(score.logprob)
                likeliest.append(score.alternatives[0].token)
        self._executor.run(StepPlan(0, [], [self._sequence], [], [], []), None)
        return logprobs, likeliest

    def answer(self, prompt: list[int], count: int) -> list[int]:
        self._sequence += 1
        out, at = [self._step(0, prompt, None, True).sampled[0].token], len(prompt)
        while len(out) < count:
            out.append(self._step(at, out[-1:], None, True).sampled[0].token)
            at += 1
        self._executor.run(StepPlan(0, [], [self._sequence], [], [], []), None)
        return out

    def _step(self, at: int, tokens: list[int], asked: PromptQuery | None, sample: bool) -> StageOutput:
        opened = [Opened(self._sequence, SamplingParams(temperature=0.0), [], [])] if sample and at == 0 else []
        blocks = list(range(-(-at // BLOCK_TOKENS), -(-(at + len(tokens)) // BLOCK_TOKENS)))
        return self._executor.run(StepPlan(0, opened, [], [], [], [Chunk(self._sequence, at, tokens, blocks, sample, asked)]), None)


def read(model: Description, kv_type: KvType, parts: list[list[int]], threads: int) -> Seen:
    layers = range(len(model.spec.layers))
    shard = Shard(factory(RuntimeName.NATIVE, Precision.AUTO, kv_type, threads))
    assert model.weights is not None
    shard.load(layers, model.weights)
    longest = max(max(map(len, parts)), _PROMPT + _ANSWER)
    reader = _Reader(shard.enter(layers, range(0), -(-longest // BLOCK_TOKENS) + 1))
    scored = [reader.scored(part) for part in parts]
    prompts = [part[:_PROMPT] for part in parts[:_PROMPTS]]
    return Seen(
        [logprob for logprobs, _ in scored for logprob in logprobs],
        [token for _, tokens in scored for token in tokens],
        [reader.answer(prompt, _ANSWER) for prompt in prompts],
    )


def compared(seen: Seen, exact: Seen) -> str:
    alike = statistics.fmean(a == b for a, b in zip(seen.likeliest, exact.likeliest, strict=True))
    same = sum(a == b for a, b in zip(seen.answers, exact.answers, strict=True))
    until = [
        next((i for i, (a, b) in enumerate(zip(*both, strict=True)) if a != b), _ANSWER)
        for both in zip(seen.answers, exact.answers, strict=True)
    ]
    return (
        f"{seen.perplexity:.4f} | {seen.perplexity / exact.perplexity - 1:+.2%} | {alike:.1%} | {same} of {len(seen.answers)}, "
        f"{statistics.fmean(until):.0f} of {_ANSWER} tokens"
    )


def main(models: list[str], types: list[KvType], context: int, count: int, threads: int) -> None:
    data = text().encode()
    print(
        f"{threads} threads of {processor()}; Python {platform.python_version()}: {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()[:16]}…\n"
    )
    print(
        "| model | keys and values | perplexity | against bf16 | same likeliest token | same greedy answers, until the first difference |"
    )
    print("|---|---|---|---|---|---|")
    for name in models:
        model = describe(name)
        parts = pieces(model, context, count)
        exact: Seen | None = None
        for kv_type in types:
            seen = read(model, kv_type, parts, threads)
            exact = exact or seen
            print(f"| {name} | {kv_type} | {compared(seen, exact)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "qwen2.5-coder-1.5b"])
    parser.add_argument(
        "--types", nargs="+", type=KvType, default=[KvType.BF16, KvType.Q8, KvType.Q4], help="the first is what others are compared with"
    )
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--pieces", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    main(given.models, given.types, given.context, given.pieces, given.threads)
