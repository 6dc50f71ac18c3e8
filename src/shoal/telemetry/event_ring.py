"""The latest events of a cluster."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice

from shoal.observed.event import ClusterEvent, EventKind, EventPage

KEPT = 10_000


class EventRing:
    def __init__(self, clock: Callable[[], float], keep: int = KEPT) -> None:
        """clock: seconds since 1970."""
        self._clock = clock
        self._events: deque[ClusterEvent] = deque(maxlen=keep)
        self.latest = 0
        """Number of the newest event; 0 before the first."""
        self.counts: Counter[EventKind] = Counter()

    def add(self, kind: EventKind, message: str, node: str = "", figures: Mapping[str, float] | None = None) -> ClusterEvent:
        self.latest += 1
        event = ClusterEvent(self.latest, self._clock(), kind, message, node, dict(figures or {}))
        self._events.append(event)
        self.counts[kind] += 1
        return event

    def __iter__(self) -> Iterator[ClusterEvent]:
        return iter(self._events)

    def __reversed__(self) -> Iterator[ClusterEvent]:
        return reversed(self._events)

    def page(self, after: int = 0, limit: int = KEPT, kinds: Collection[EventKind] = (), node: str = "") -> EventPage:
        """Events with larger numbers than `after`, the latest of them if there are more than `limit`. kinds, node: only those; empty: all."""
        found = islice(
            (
                event
                for event in reversed(self._events)
                if event.number > after and (not kinds or event.kind in kinds) and (not node or event.node == node)
            ),
            limit,
        )
        oldest = self._events[0].number if self._events else 0
        return EventPage([*found][::-1], self.latest, oldest)
