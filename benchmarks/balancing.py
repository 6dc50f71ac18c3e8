"""What the strategies that choose a replica cost, and what they are worth: `python -m benchmarks.balancing [--rounds 3]`.

First a balancer alone (`--parts costs`). Then it in front of simulated replicas, each with slots, speeds and a prefix cache, on
conversations: shared system prompts, a hot document, lognormal lengths, time to think. `hits` compares prefix caches, `slow` has a slow
replica, and `large` is as large as `--requests` and `--replicas` say. Times of this program are those of the processor.
"""

from __future__ import annotations

import argparse
import gc
import os
from collections import deque
from itertools import count
from random import Random
from statistics import median
from time import process_time

from benchmarks.replicas import BLOCK, Machine, Ran, Traffic, simulate
from benchmarks.report import processor
from shoal.config import Balancing
from shoal.serving.balancing.balancer import Balancer
from shoal.serving.balancing.inquiry import Ending, Inquiry
from shoal.serving.balancing.replica_state import Flight, Traits

SIZES = (10, 100, 1000)
CALLS = 40_000
RATE = 0.14
"""Conversations per second and replica: the replicas are about half busy, if they compute half of the prompts."""
EIGHT, ASKED = 8, 20_000
SLOW = (2.0, 4.0)
PARTS = ["costs", "hits", "slow", "large"]


def inquiries(chance: Random, replicas: int) -> list[Inquiry]:
    """Of eight conversations per replica: each turn has ten blocks more, and after seven of them it begins again."""
    fresh = count()
    system = [next(fresh) for _ in range(8)]
    conversations = [list(system) for _ in range(8 * replicas)]
    asked: list[Inquiry] = []
    for _ in range(CALLS):
        number = chance.randrange(len(conversations))
        if len(conversations[number]) > 80:
            conversations[number] = list(system)
        conversations[number].extend(next(fresh) for _ in range(10))
        asked.append(Inquiry(len(conversations[number]) * BLOCK + 1, tuple(conversations[number]), f"s{number}"))
    return asked


def cost(strategy: Balancing, replicas: int) -> float:
    """Seconds of processor per request, from choosing to the end, with four requests per replica in flight."""
    chance = Random(replicas)
    balancer = Balancer[int](strategy, chance)
    for number in range(replicas):
        balancer.add(number, 0.0, Traits(speed=1.0 + number % 4, distance=number % 5, blocks=1024))
    asked = inquiries(chance, replicas)
    flights: deque[Flight[int]] = deque()
    began, now = process_time(), 0.0
    for inquiry in asked:
        now += 0.01
        replica = balancer.choose(inquiry, now)
        assert replica is not None
        flights.append(balancer.began(replica, inquiry, now))
        if len(flights) > 4 * replicas:
            flight = flights.popleft()
            balancer.first_token(flight, now)
            balancer.ended(flight, Ending.SERVED, now, 100)
    return (process_time() - began) / len(asked)


def costs(rounds: int) -> None:
    print(f"\n### µs per request, by replicas\n\n| strategy | {' | '.join(map(str, SIZES))} | requests/s, {SIZES[-1]} |\n|---|{'---|' * 4}")
    for strategy in Balancing:
        taken = [median(cost(strategy, size) for _ in range(rounds)) for size in SIZES]
        print(f"| {strategy} | {' | '.join(f'{seconds * 1e6:.1f}' for seconds in taken)} | {1 / taken[-1]:,.0f} |", flush=True)


def large(requests: int, replicas: int, rounds: int) -> None:
    print(
        f"\n### {requests:,} requests over {replicas:,} simulated replicas, simulation included\n\n| strategy | s | hits |\n|---|---|---|"
    )
    for strategy in (Balancing.PREFIX, Balancing.ROUND_ROBIN):
        taken: list[float] = []
        hits: list[float] = []
        for number in range(rounds):
            began = process_time()
            ran = simulate(strategy, [Machine()] * replicas, Traffic(rate=RATE * replicas), requests, f"large {number}")
            taken.append(process_time() - began)
            hits.append(ran.hit_rate)
        print(f"| {strategy} | {median(taken):.0f} | {median(hits):.1%} |", flush=True)


def runs(strategy: Balancing, machines: list[Machine], traffic: Traffic, rounds: int) -> list[Ran]:
    return [simulate(strategy, machines, traffic, ASKED, f"{number}") for number in range(rounds)]


def first_tokens(ran: list[Ran]) -> str:
    return " | ".join(f"{median(one.first(share) for one in ran):.2f}" for share in (0.5, 0.99))


def hits(rounds: int) -> None:
    for bursty in (False, True):
        traffic = Traffic(rate=RATE * EIGHT, bursty=bursty)
        one = runs(Balancing.PREFIX, [Machine().times(EIGHT)], traffic, rounds)
        whole = median(ran.hit_rate for ran in one)
        print(f"\n### {EIGHT} replicas, conversations {'in bursts' if bursty else 'as a Poisson process'}\n")
        print("| | hits | of one's | first token p50, s | p99 | hottest replica, × mean | longest queue |\n|---|---|---|---|---|---|---|")
        print(f"| one replica of {EIGHT} times the size | {whole:.1%} | | {first_tokens(one)} | | |", flush=True)
        for strategy in Balancing:
            ran = runs(strategy, [Machine()] * EIGHT, traffic, rounds)
            hit = median(one.hit_rate for one in ran)
            hottest = median(one.hottest for one in ran)
            most = median(max(queue.most for queue in one.queues) for one in ran)
            print(f"| {strategy} | {hit:.1%} | {hit / whole:.0%} | {first_tokens(ran)} | {hottest:.2f} | {most:.0f} |", flush=True)


def slow(rounds: int) -> None:
    for factor in SLOW:
        machines = [Machine().slower(factor), *[Machine()] * (EIGHT - 1)]
        print(f"\n### {EIGHT} replicas, one of them {factor:g} times slower, fewer requests\n")
        print("| | first token p50, s | p99 | of the requests to the slow one | noticed |\n|---|---|---|---|---|")
        for strategy in (Balancing.LEAST_LATENCY, Balancing.ROUND_ROBIN, Balancing.LEAST_CONNECTIONS, Balancing.PREFIX):
            ran = runs(strategy, machines, Traffic(rate=0.05 * EIGHT), rounds)
            share = median(one.queues[0].requests / ASKED for one in ran)
            noticed = sum(any(anomaly.replica == 0 for anomaly in one.anomalies) for one in ran)
            print(f"| {strategy} | {first_tokens(ran)} | {share:.1%} | {noticed} of {rounds} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    gc.disable()  # nothing here is cyclic, and looking for it takes a tenth of the time
    print(f"{processor()}, {os.cpu_count()} processors: medians of {given.rounds} rounds")
    for part in given.parts:
        match part:
            case "costs":
                costs(given.rounds)
            case "hits":
                hits(given.rounds)
            case "slow":
                slow(given.rounds)
            case _:
                large(given.requests, given.replicas, given.rounds)
