"""Prompts of every length around the borders of blocks."""

from __future__ import annotations

import random

LENGTHS = (3, 31, 32, 33, 70, 130)


def prompts(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 40000) for _ in range(length)] for length in lengths]
