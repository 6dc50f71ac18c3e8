"""One stream with drafts from the sequence itself and without, on one node and on two, and two whose links take 5 and 20 ms each way; several
streams on one node; beside llama.cpp's n-gram drafts on one machine. The text is compared: it must be the same.

python -m benchmarks.speculation [--model qwen2.5-coder-1.5b] [--rounds 3] [--tokens 160]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks import far, ours, peers
from benchmarks.report import processor
from shoal.models.sources import pull
from shoal.models.weights import GgufWeights, open_weights
from shoal.node.head import Head
from shoal.request import Request, RequestId, SamplingParams
from shoal.scheduler.drafting.drafting import LONGEST
from shoal.scheduler.scheduler import Scheduler
from shoal.text.tokenizer import Tokenizer

HERE = Path(__file__).parent
CODE = (HERE / "beside.py").read_text()[:2400]
PAGE = (HERE.parent / "docs" / "answers.md").read_text()[:3000]
TASKS = {
    "code editing": f"Rename the variable `streams` to `clients` everywhere in this file. Answer with the whole file alone.\n\n```python\n{CODE}\n```",
    "summarising": f"Sum up this page in ten sentences, with its own words where that is possible.\n\n{PAGE}",
    "free text": "Tell a story about a lighthouse keeper who finds a letter in a bottle.",
}
PEERS = ("none", "ngram-simple", "ngram-map-k", "ngram-cache")
_numbers = count()


def chat(text: str) -> str:
    """In the form that Qwen and SmolLM2 were trained on."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class Runs:
    """Of one task."""

    speeds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Tokens per second after the first token, by how tokens are guessed."""
    drafted: int = 0
    accepted: int = 0

    def speed(self, kind: str) -> float:
        return median(self.speeds[kind])


@dataclass(frozen=True)
class Place:
    nodes: int
    delay: float = 0.0
    """Seconds on each way between two of the machines."""
    streams: int = 1


PLACES = {
    "one node": Place(1),
    "two nodes": Place(2),
    "two nodes, 5 ms": Place(2, 0.005),
    "two nodes, 20 ms": Place(2, 0.02),
    "one node, 8 streams": Place(1, streams=8),
}


async def one(head: Head, prompt: list[int], tokens: int, seed: int, times: list[float]) -> list[int | None]:
    """What a stream says: greedily, the first of them."""
    sampling = SamplingParams(temperature=0.7 if seed else 0.0, seed=seed)
    said = list[int | None]()
    async for chunk in head.engine.submit(Request(RequestId(f"s-{next(_numbers)}"), prompt, tokens, sampling)):
        times.append(perf_counter())
        said.append(chunk.token)
    return said


async def say(head: Head, prompt: list[int], tokens: int, streams: int) -> tuple[list[list[int | None]], float]:
    """What the streams say, and their tokens per second, together, after the first."""
    times = list[float]()
    said = await asyncio.gather(*(one(head, prompt, tokens, seed, times) for seed in range(streams)))
    return said, (len(times) - 1) / (times[-1] - times[0])


def scheduler_of(head: Head) -> Scheduler:
    (runner,) = head.coordinator.runners.values()
    assert runner.driver is not None
    return runner.driver.scheduler


async def measured(file: Path, prompts: dict[str, list[int]], place: Place, threads: int, rounds: int, tokens: int) -> dict[str, Runs]:
    """Interleaved in one cluster. threads: of all nodes together."""
    runs = {task: Runs({"off": [], "lookup": []}) for task in prompts}
    with far.delayed(place.delay) if place.delay else contextlib.nullcontext():
        each = max(1, threads // place.nodes)
        async with ours.cluster(str(file), place.nodes, each, speculation="lookup", context=4096) as cluster:
            scheduler = scheduler_of(cluster.head)
            for number in range(rounds + 1):
                for task, prompt in prompts.items():
                    answers = list[list[list[int | None]]]()
                    for kind, drafts in (("off", 0), ("lookup", LONGEST))[:: 1 if number % 2 else -1]:
                        scheduler.slots.limits = replace(scheduler.limits, drafts=drafts)
                        before = replace(scheduler.counters)
                        said, speed = await say(cluster.head, prompt, tokens, place.streams)
                        answers.append(said)
                        if not number:  # the prompt is in the prefix cache from now on, and steps have been measured
                            continue
                        runs[task].speeds[kind].append(speed)
                        runs[task].drafted += scheduler.counters.drafted_tokens - before.drafted_tokens
                        runs[task].accepted += scheduler.counters.accepted_tokens - before.accepted_tokens
                    if answers[0] != answers[1]:
                        raise SystemExit(f"{task}: the text with drafts is another one")
    return runs


@contextlib.contextmanager
def peer(file: Path, threads: int, kind: str) -> Iterator[int]:
    with peers.server(file, threads, 1, 4096, "--spec-type", kind) as port:
        yield port


def theirs(file: Path, texts: dict[str, str], threads: int, rounds: int, tokens: int) -> dict[str, Runs]:
    """llama-server, one for each way, all of them there at once and asked in turn."""
    runs = {task: Runs({kind: [] for kind in PEERS}) for task in texts}
    with contextlib.ExitStack() as stack:
        ports = {kind: stack.enter_context(peer(file, threads, kind)) for kind in PEERS}
        for each in range(rounds + 1):
            for task, text in texts.items():
                for kind, port in ports.items():
                    speed = _completed(port, text, tokens)
                    if each:
                        runs[task].speeds[kind].append(speed)
    return runs


def _completed(port: int, text: str, tokens: int) -> float:
    body = {"prompt": text, "n_predict": tokens, "temperature": 0, "cache_prompt": True}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)["timings"]["predicted_per_second"]


def rows(where: str, runs: dict[str, Runs]) -> Iterator[str]:
    for task, run in runs.items():
        off, on = run.speed("off"), run.speed("lookup")
        share = f"{run.accepted / run.drafted:.0%} of {run.drafted}" if run.drafted else "none drafted"
        yield f"| {where} | {task} | {off:.1f} | {on:.1f} | {on / off:.2f} | {share} |"


async def main(model: str, rounds: int, tokens: int, threads: int, places: Sequence[str]) -> None:
    file = pull(model)
    weights = open_weights(file)
    assert isinstance(weights, GgufWeights)
    tokenizer, texts = Tokenizer.open(file, weights.file.meta), {task: chat(text) for task, text in TASKS.items()}
    prompts = {task: tokenizer.encode(text, True) for task, text in texts.items()}
    print(f"### {model}, streams of {tokens} tokens, the first greedy, medians of {rounds} interleaved rounds, on {processor()}\n")
    print("| where | text | tokens/s without | with | ratio | drafts that were right |\n|---|---|---|---|---|---|")
    for place in places or PLACES:
        if place == "llama.cpp":
            continue
        for row in rows(place, await measured(file, prompts, PLACES[place], threads, rounds, tokens)):
            print(row, flush=True)
    if places and "llama.cpp" not in places:
        return
    print("\n| llama.cpp, one machine | " + " | ".join(PEERS) + " |\n|---|" + "---|" * len(PEERS))
    for task, run in theirs(file, texts, threads, rounds, tokens).items():
        print(f"| {task} | " + " | ".join(f"{run.speed(kind):.1f}" for kind in PEERS) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--threads", type=int, default=2, help="of all nodes together")
    parser.add_argument("--only", nargs="*", default=[], help="places, like 'one node' or llama.cpp")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.model, arguments.rounds, arguments.tokens, arguments.threads, arguments.only))
