"""Who is first, kept while the keys change."""

from __future__ import annotations

from collections.abc import Collection
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")
Key = TypeVar("Key", float, tuple[float, float])


class Ranking(Generic[T, Key]):
    """Items by their keys, the least first; of equals, the one that was put first. Every call costs O(log n), amortised.

    A heap from which nothing is taken when a key changes: entries that are out of date are dropped when they come to the top, or when
    they are the majority.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, T]] = []
        self._turns: dict[T, int] = {}
        """The turn of each item's entry that counts."""
        self._turn = 0

    def put(self, item: T, key: Key) -> None:
        """Adds it, or changes its key."""
        self._turn += 1
        self._turns[item] = self._turn
        heappush(self._heap, (key, self._turn, item))
        if len(self._heap) > 2 * len(self._turns) + 64:
            self._heap = [entry for entry in self._heap if self._turns.get(entry[2]) == entry[1]]
            heapify(self._heap)

    def drop(self, item: T) -> None:
        self._turns.pop(item, None)

    def least(self, without: Collection[T] = ()) -> T | None:
        """The first that is not in `without`, each of which costs as much as a call."""
        heap, turns = self._heap, self._turns
        passed: list[tuple[Key, int, T]] = []
        found = None
        while heap:
            _, turn, item = heap[0]
            if turns.get(item) != turn:
                heappop(heap)
            elif item in without:
                passed.append(heappop(heap))
            else:
                found = item
                break
        for entry in passed:
            heappush(heap, entry)
        return found
