"""A run in Chrome's trace event format, for Perfetto or chrome://tracing: a track for the head, each link and each stage."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from shoal.profiling.slices import HEAD, Run, Slice, Track, slices, track_name

_SLACK = 1e-6  # seconds by which slices of one track may overlap, from rounding


def chrome_trace(run: Run) -> dict[str, Any]:
    """Times in it are microseconds since the first step. Slices of one track that overlap, such as steps that are on a link at once, go
    to further tracks of its name."""
    began = min((step.at for step in run.steps), default=0.0)
    lanes: dict[Track, list[list[tuple[Slice, int]]]] = defaultdict(list)
    for number, one in sorted(((step.number, one) for step in run.steps for one in slices(step)), key=lambda found: found[1].began):
        if one.seconds > 0:
            places = lanes[one.track]
            free = next((lane for lane in places if lane[-1][0].ended <= one.began + _SLACK), None)
            if free is None:
                places.append(free := [])
            free.append((one, number))
    events: list[dict[str, Any]] = [{"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": "shoal"}}]
    rows = {step.number: step.rows for step in run.steps}
    tid = 0
    for track in _order(len(run.nodes)):
        for i, lane in enumerate(lanes.get(track, [[]])):
            tid += 1
            title = track_name(track, run.nodes) + (f" ({i + 1})" if i else "")
            events.append({"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": title}})
            events.append({"ph": "M", "pid": 1, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}})
            end = 0.0
            for one, number in lane:
                begin = max((one.began - began) * 1e6, end)
                end = max((one.ended - began) * 1e6, begin)
                more = {"step": number, "rows": rows[number]}
                events.append(
                    {"ph": "X", "pid": 1, "tid": tid, "name": one.part, "cat": track.kind, "ts": begin, "dur": end - begin, "args": more}
                )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _order(stages: int) -> list[Track]:
    """As a step passes through them."""
    return [HEAD, *(Track(kind, i) for i in range(stages) for kind in ("link", "stage")), Track("link", stages)]
