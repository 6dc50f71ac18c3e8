"""/operator/stream: the cluster and its events as they change, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from shoal.errors import UnknownObject
from shoal.gateway.operator import Operator
from shoal.observed.cluster import ClusterView

LOOK = 0.5
"""Seconds between two looks at the cluster."""
_PAGE = 1000
_PING = 30  # looks without news after which the stream shows that it is alive
_encoder = msgspec.json.Encoder()


def _still(view: ClusterView) -> ClusterView:
    """Without what changes although nothing happens."""
    machines = [msgspec.structs.replace(machine, silence=0.0) for machine in view.machines]
    return msgspec.structs.replace(view, at=0.0, machines=machines)


async def watched(operator: Operator, pipeline: str, after: int, over: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Ends with the pipeline. pipeline: see Operator.cluster. after: number of the last event that is known. over: whether the server ends,
    or the reader may not see more."""
    last: ClusterView | None = None
    quiet = 0
    while not over():
        out: list[bytes] = []
        page = await operator.events(after, _PAGE, (), "")
        for event in page.events:
            out.append(b"event: event\nid: %d\ndata: %b\n\n" % (event.number, _encoder.encode(event)))
            after = event.number
        try:
            view = await operator.cluster(pipeline)
        except UnknownObject:  # it was closed
            yield b"".join(out)
            return
        if (still := _still(view)) != last:
            last = still
            out.append(b"event: cluster\ndata: %b\n\n" % _encoder.encode(view))
        quiet = 0 if out else quiet + 1
        if quiet and quiet % _PING == 0:
            out.append(b": still here\n\n")
        if out:
            yield b"".join(out)
        await asyncio.sleep(LOOK)
