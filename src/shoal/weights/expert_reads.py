"""What became of the experts that steps needed, in figures that add up over stages and nodes."""

from __future__ import annotations

from typing import NamedTuple

from shoal.weights.prefetch import Foreseen
from shoal.weights.residency import Tally


class ExpertReads(NamedTuple):
    """Experts, but for bytes; control/cluster.proto says what each is."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    ahead: int = 0
    ahead_used: int = 0
    ahead_wasted: int = 0
    guesses: int = 0
    guesses_right: int = 0
    guessed_about: int = 0
    misses_guessed_about: int = 0
    misses_foreseen: int = 0

    def plus(self, other: ExpertReads) -> ExpertReads:
        return ExpertReads(*(a + b for a, b in zip(self, other, strict=True)))

    def since(self, before: ExpertReads) -> ExpertReads:
        return ExpertReads(*(a - b for a, b in zip(self, before, strict=True)))


def counted(tally: Tally, foreseen: Foreseen) -> ExpertReads:
    return ExpertReads(
        hits=tally.hits,
        misses=tally.misses + tally.awaited,
        bytes_read=tally.bytes_read,
        ahead=tally.guessed,
        ahead_used=tally.guessed_used,
        ahead_wasted=tally.guessed_wasted,
        guesses=foreseen.guesses,
        guesses_right=foreseen.right,
        guessed_about=foreseen.needed,
        misses_guessed_about=foreseen.misses,
        misses_foreseen=foreseen.misses_foreseen,
    )
