"""Requests as real traffic has them: lognormal lengths, arrivals of a Poisson process, everything from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from random import Random

PROMPT_MEAN, PROMPT_SIGMA = 1150, 0.9
"""Tokens; the sigma of the logarithm. The means are those of conversations served in production (Azure's trace of 2023, in Splitwise)."""
OUTPUT_MEAN, OUTPUT_SIGMA = 210, 0.7
_RESERVED = 256
"""Tokens at the beginning of a vocabulary that a prompt leaves out: control tokens and single bytes."""


@dataclass(frozen=True)
class Arrival:
    at: float
    """Seconds after the start; 0 where a stream sends its next request when the last one has ended."""
    prompt: list[int]
    tokens: int


def lognormal(chance: Random, mean: float, sigma: float, most: int) -> int:
    """A length in [1, most]; `mean` is that of the distribution before it is cut."""
    return max(1, min(round(mean * exp(chance.gauss(0, sigma) - sigma * sigma / 2)), most))


def prompt(chance: Random, length: int, vocabulary: int) -> list[int]:
    """Tokens that no other prompt begins with, so that no prefix cache has a part in the figures."""
    return [chance.randrange(_RESERVED, vocabulary) for _ in range(length)]


def requests(seed: str, count: int, scale: float, context: int, vocabulary: int, rate: float = 0.0) -> list[Arrival]:
    """`count` requests of lengths divided by `scale`, so that prompt and answer fit into the context.

    seed: another one for every load: a server still knows the prompts of the one before
    rate: requests per second at which they arrive, whether or not earlier ones have ended; 0: all at once.
    """
    chance = Random(seed)
    out: list[Arrival] = []
    at = 0.0
    for _ in range(count):
        at += chance.expovariate(rate) if rate else 0.0
        tokens = lognormal(chance, OUTPUT_MEAN / scale, OUTPUT_SIGMA, context // 4)
        length = lognormal(chance, PROMPT_MEAN / scale, PROMPT_SIGMA, context // 2)
        out.append(Arrival(at, prompt(chance, length, vocabulary), tokens))
    return out
