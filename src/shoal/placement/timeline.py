"""What each resource did and when, recorded or simulated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

DISK, PROCESSOR = "disk", "processor"
EXPERTS = "experts"
"""What both do for a layer's experts: read, or compute."""
WAITING = "waiting"
"""What a resource does that waits for another one: it is not busy."""


class Span(NamedTuple):
    """Something that a resource did."""

    resource: str
    what: str
    """A kind of work: few different ones."""
    layer: int
    """-1: of none."""
    began: float
    ended: float
    """Both in seconds, of any clock that all spans share."""


def busy(spans: Iterable[Span]) -> float:
    """Seconds in which at least one of the spans lasts."""
    total, until = 0.0, float("-inf")
    for began, ended in sorted((span.began, span.ended) for span in spans):
        total += max(ended - max(began, until), 0.0)
        until = max(until, ended)
    return total


def utilisation(spans: Sequence[Span]) -> dict[str, float]:
    """By resource, in order of appearance: the part of the time from the first span's beginning to the last one's end in which it was
    busy."""
    if not spans:
        return {}
    length = max(span.ended for span in spans) - min(span.began for span in spans)
    working = [span for span in spans if span.what != WAITING]
    resources = dict.fromkeys(span.resource for span in spans)
    return {name: busy(span for span in working if span.resource == name) / length if length else 0.0 for name in resources}


def last(spans: Sequence[Span], seconds: float) -> list[Span]:
    """Those of the last seconds; one that began before is cut."""
    since = max((span.ended for span in spans), default=0.0) - seconds
    return [span._replace(began=max(span.began, since)) for span in spans if span.ended > since]
