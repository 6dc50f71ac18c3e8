"""Serving under load, over HTTP, streamed: shoal beside llama-server on the same file, threads and number of slots.

python -m benchmarks.serve [--rounds 3] [--scale 8] [--streams 1,8,32,100] [--rates 0.5,1,2,4] [--nodes 1]

- closed loop: so many streams at a time, each sends its next request when the last one has ended;
- open loop: requests arrive as a Poisson process, whether or not the servers keep up;
- the stall: eight streams run, a prompt of 2,000 tokens arrives (`benchmarks.beside`: one stream and prompts of 8,000, on shoal alone).

Lengths are lognormal with the means of real traffic, 1,150 → 210 tokens, divided by --scale. Every prompt is new. Answers end at max_tokens on both
sides, never at an end of text. Both servers run all the time, loaded in turn, the order swapped every round: what is printed are
medians over the rounds. The load comes from a process of its own, whose share of one core is printed: near 1 it would measure itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median, quantiles

from benchmarks import load, ours, peers
from benchmarks.traffic import Arrival, prompt, requests
from shoal.models.description import describe
from shoal.models.sources import pull

CONTEXT, SLOTS, LONG = 2304, 32, 2000
"""Tokens of a sequence; sequences at once; tokens of the long prompt."""
GOALS = {8: 1.7, 32: 1.7}
"""Of the throughput, by streams."""


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p50, p90, p99 in ms; nan where there is nothing to rank."""
    if len(values) < 2:
        return tuple(v * 1e3 for v in (list(values) or [float("nan")]) * 3)[:3]  # pyright: ignore[reportReturnType]
    ranks = quantiles(values, n=100, method="inclusive")
    return ranks[49] * 1e3, ranks[89] * 1e3, ranks[98] * 1e3


@dataclass
class Side:
    """What one server made of one kind of load, a report per round."""

    name: str
    port: int
    reports: list[load.Report] = field(default_factory=list[load.Report])

    def take(self, arrivals: list[Arrival], streams: int) -> None:
        self.reports.append(load.run(load.Plan("127.0.0.1", self.port, arrivals, streams)))

    def middle(self, of: Callable[[load.Report], float]) -> float:
        return median(of(report) for report in self.reports)

    @property
    def throughput(self) -> float:
        return self.middle(lambda report: report.throughput)

    def first(self, rank: int) -> float:
        return self.middle(lambda report: percentiles([o.first for o in report.served])[rank])

    def gap(self, rank: int) -> float:
        return self.middle(lambda report: percentiles([gap for o in report.served for gap in o.gaps])[rank])

    def row(self, what: str, rest: str) -> str:
        cells = [what, self.name, f"{self.throughput:.0f}"]
        cells += [" / ".join(f"{rank(i):.0f}" for i in range(3)) for rank in (self.first, self.gap)]
        errors = sum(bool(o.error) for report in self.reports for o in report.outcomes)
        busy = self.middle(lambda report: report.busy / report.seconds)
        return "| " + " | ".join([*cells, str(errors), f"{busy:.2f}", rest]) + " |"


HEAD = "| load | server | output tokens/s | first token, ms p50 / p90 / p99 | between tokens, ms p50 / p90 / p99 | errors | generator | ratio |"


def compare(what: str, mine: Side, theirs: Side, goal: float | None) -> str:
    ratio, sooner = mine.throughput / theirs.throughput, mine.first(0) / theirs.first(0)
    verdict = "" if goal is None else f", goal {goal:.1f}: {'ok' if ratio >= goal else 'SHORT'}"
    rest = f"{ratio:.2f} x tokens/s{verdict}; first token {sooner:.2f} x"
    return mine.row(what, rest) + "\n" + theirs.row("", "")


def both(what: str, ports: tuple[int, int], rounds: int, traffic: Callable[[int], list[Arrival]], streams: int) -> str:
    """traffic: of a round, the same for both."""
    sides = [Side("shoal", ports[0]), Side("llama-server", ports[1])]
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            side.take(traffic(number), streams)
    return compare(what, sides[0], sides[1], GOALS.get(streams))


def stall(port: int, seed: int, vocabulary: int) -> tuple[float, float, float]:
    """Seconds: the longest silence of a running stream while a long prompt is worked on, the usual one before, and the prompt's first token alone."""
    chance = Random(seed)
    alone = load.run(load.Plan("127.0.0.1", port, [Arrival(0, prompt(chance, LONG, vocabulary), 2)])).outcomes[0].first
    running = [Arrival(0, prompt(chance, 16, vocabulary), 2000) for _ in range(8)]
    at = 0.5 + alone / 4
    long = Arrival(at, prompt(chance, LONG, vocabulary), 2)
    *streams, late = load.run(load.Plan("127.0.0.1", port, [*running, long], cut=True)).outcomes
    begun, done = late.sent, late.events[0]
    pairs = [(a, b) for o in streams for a, b in zip(o.events, o.events[1:], strict=False)]
    during = [b - a for a, b in pairs if b > begun and a < done]
    before = [b - a for a, b in pairs if b <= begun]
    if not during or not before:
        raise SystemExit("the streams had ended before the long prompt came: the machine is too fast for this, or too slow")
    return max(during), median(before), alone


def stalls(ports: tuple[int, int], rounds: int, vocabulary: int, chunk: int) -> Iterator[str]:
    """Lines of a table."""
    yield from ("| server | longest silence, ms | usual, ms | long prompt alone, ms | silence in chunks |", "|---|---|---|---|---|")
    for name, port in zip(("shoal", "llama-server"), ports, strict=True):
        silence, usual, alone = (median(part) for part in zip(*(stall(port, 77 + r, vocabulary) for r in range(rounds)), strict=True))
        chunks = f"{silence / (alone * chunk / LONG):.1f} of {chunk} tokens" if name == "shoal" else ""
        yield f"| {name} | {silence * 1e3:.0f} | {usual * 1e3:.0f} | {alone * 1e3:.0f} | {chunks} |"


def main(options: argparse.Namespace) -> None:
    file = pull(options.model)
    vocabulary = describe(options.model).spec.vocabulary
    rounds, scale = options.rounds, options.scale
    with (
        ours.server(file, options.nodes, options.threads, SLOTS, CONTEXT) as mine,
        peers.server(file, options.threads, SLOTS, CONTEXT) as theirs,
    ):
        ports = mine, theirs
        for port in ports:
            load.run(load.Plan("127.0.0.1", port, requests("warm", 4, scale, CONTEXT, vocabulary), 4))
        print(
            f"### {options.model}, {options.threads} threads, {options.nodes} node(s), {SLOTS} slots; lengths of real traffic / {scale:g}; medians of {rounds}\n"
        )
        print(HEAD + "\n" + "|---" * HEAD.count(" | ") + "|---|")
        for streams in options.streams:
            count = max(8, streams * options.turns)
            what = f"{streams} streams, {count} requests"
            print(
                both(what, ports, rounds, lambda r, n=count, w=what: requests(f"{w} {r}", n, scale, CONTEXT, vocabulary), streams),
                flush=True,
            )
        for rate in options.rates:
            count = max(8, round(rate * options.seconds))
            what = f"{rate:g} requests/s, {count}"
            print(
                both(what, ports, rounds, lambda r, n=count, x=rate, w=what: requests(f"{w} {r}", n, scale, CONTEXT, vocabulary, x), 0),
                flush=True,
            )
        print(f"\n### Eight streams run, a prompt of {LONG} tokens arrives\n")
        for line in stalls(ports, rounds, vocabulary, options.chunk):
            print(line, flush=True)


def _numbers(kind: type[int] | type[float]) -> Callable[[str], list[int] | list[float]]:
    return lambda text: [kind(part) for part in text.split(",") if part]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=1, help="of ours; they share the threads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=8.0)
    parser.add_argument("--streams", type=_numbers(int), default=[1, 8, 32, 100])
    parser.add_argument("--turns", type=int, default=3, help="requests per stream of the closed loop")
    parser.add_argument("--rates", type=_numbers(float), default=[0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals in the open loop")
    parser.add_argument(
        "--chunk", type=int, default=256, help="tokens of a prompt in one step of ours: --step-tokens by the number of nodes"
    )
    main(parser.parse_args())
