"""The last day in figures, a sample a minute."""

from __future__ import annotations

import msgspec

STEP = 60.0
"""Seconds between two samples."""
SAMPLES = 24 * 60


class History(msgspec.Struct, frozen=True):
    """Lists of one length; the last entry is the minute under way. first_p50, first_p99: time to first token, null where no request
    began. queue: the most sequences that waited. blocks: the largest share of KV blocks in use, 0 to 1. memory: resident bytes of all
    nodes. nodes: the fewest."""

    at: list[float]
    tokens_per_second: list[float]
    first_p50: list[float | None]
    first_p99: list[float | None]
    queue: list[int]
    blocks: list[float]
    memory: list[int]
    nodes: list[int]
