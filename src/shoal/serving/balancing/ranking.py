"""Who is first, kept while the keys change."""

from __future__ import annotations

from collections.abc import Collection
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, TypeVar

T = TypeVar("T")
Key = TypeVar("Key", float, tuple[float, float])


class Ranking(Generic[T, Key]):
    """Items by their keys, the least first; of equals, the one that was put first. Every call costs O(log n), amortised.

    A heap with one entry for each item that counts, whose key is at most the item's: where a key grows, nothing moves until the entry
    comes to the top. Entries that do not count any more are dropped when they come to the top, or when they are the majority.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, T]] = []
        self._keys: dict[T, tuple[Key, int]] = {}
        """With the turn in which it was put, which decides between equals."""
        self._entries: dict[T, int] = {}
        """The turn of each item's entry that counts."""
        self._turn = 0

    def key(self, item: T) -> Key:
        """Of an item that is there."""
        return self._keys[item][0]

    def put(self, item: T, key: Key) -> None:
        """Adds it, or changes its key."""
        self._turn = turn = self._turn + 1
        before = self._keys.get(item)
        self._keys[item] = key, turn
        if before is None or key < before[0]:
            self._entries[item] = turn
            heappush(self._heap, (key, turn, item))
            if len(self._heap) > 2 * len(self._entries) + 64:
                self._heap = [entry for entry in self._heap if self._entries.get(entry[2]) == entry[1]]
                heapify(self._heap)

    def drop(self, item: T) -> None:
        self._keys.pop(item, None)
        self._entries.pop(item, None)

    def least(self, without: Collection[T] = ()) -> T | None:
        """The first that is not in `without`, each of which costs as much as a call."""
        heap, entries, keys = self._heap, self._entries, self._keys
        passed: list[tuple[Key, int, T]] = []
        found = None
        while heap:
            _, turn, item = heap[0]
            if entries.get(item) != turn:
                heappop(heap)
            elif (now := keys[item])[1] != turn:
                entries[item] = now[1]
                heapreplace(heap, (*now, item))
            elif item in without:
                passed.append(heappop(heap))
            else:
                found = item
                break
        for entry in passed:
            heappush(heap, entry)
        return found
