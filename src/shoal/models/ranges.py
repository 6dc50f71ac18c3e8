"""Which bytes of a file are here, which are being fetched, and which are still to be requested. Pure."""

from __future__ import annotations

from collections.abc import Iterable

GRAIN = 4 << 20
"""Most bytes of a range: small enough to share a file out among peers, and to lose when one of them dies."""


class Ranges:
    """A file of `size` bytes, divided into ranges of at most `grain`. Every byte is in exactly one of: done, taken, wanted.

    done: what an earlier fetch had in its `done`; raises ValueError if it is impossible.
    """

    def __init__(self, size: int, done: Iterable[tuple[int, int]] = (), grain: int = GRAIN) -> None:
        self.size, self.grain = size, grain
        self.done: list[tuple[int, int]] = []
        """[start, end) of what is here, in order; no two of them touch."""
        self.taken: set[range] = set()
        for start, end in done:
            self._add(start, end)
        self._wanted: list[range] = []  # the last is handed out next
        at = 0
        for start, end in [*self.done, (size, size)]:
            self._wanted += [range(a, min(a + grain, start)) for a in range(at, start, grain)]
            at = end
        self._wanted.reverse()

    @property
    def complete(self) -> bool:
        return not self._wanted and not self.taken

    @property
    def bytes_done(self) -> int:
        return sum(end - start for start, end in self.done)

    def take(self) -> range | None:
        """The next range to request; None if all are here or being fetched."""
        if not self._wanted:
            return None
        self.taken.add(piece := self._wanted.pop())
        return piece

    def finish(self, piece: range) -> None:
        """A range that was taken has arrived."""
        self.taken.remove(piece)
        self._add(piece.start, piece.stop)

    def give_back(self, piece: range) -> None:
        """A range that was taken did not arrive."""
        self.taken.remove(piece)
        self._wanted.append(piece)

    def _add(self, start: int, end: int) -> None:
        if not 0 <= start < end <= self.size:
            raise ValueError(f"{start} to {end} is not a range of {self.size} bytes")
        apart: list[tuple[int, int]] = []
        for a, b in self.done:
            if a < end and start < b:
                raise ValueError(f"{start} to {end} is already here")
            if b == start:
                start = a
            elif a == end:
                end = b
            else:
                apart.append((a, b))
        self.done = sorted([*apart, (start, end)])
