"""What is read, held and evicted as a whole."""

from __future__ import annotations

from typing import NamedTuple


class Unit(NamedTuple):
    """One expert of one layer. Other blocks of a layer (its attention, a dense feed-forward part) are numbers of their own."""

    layer: int
    expert: int
