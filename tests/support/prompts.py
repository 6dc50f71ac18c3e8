"""Prompts: tokens of every length around the borders of blocks, and questions that a trained model answers."""

from __future__ import annotations

import random

LENGTHS = (3, 31, 32, 33, 70, 130)
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain gravity to a child in two sentences.",
    "List three uses of a paperclip.",
    "Translate 'good morning' into Spanish.",
    "Why do leaves change colour in autumn?",
]


def prompts(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 40000) for _ in range(length)] for length in lengths]
