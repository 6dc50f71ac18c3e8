"""How much each node has to do, by its heartbeats and by the traces of the steps. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from shoal.control.messages import Heartbeat
from shoal.discovery.topology import NodeLoad

WINDOW = 10.0
"""Seconds over which shares and balances are taken."""
_GRAIN = 16 << 20
"""Bytes to which memory is rounded, so that it does not change all the time."""


class _Sample(NamedTuple):
    """Counts since the node started, or since it was first heard."""

    at: float
    computed: float
    rows: int


@dataclass
class _Node:
    load: NodeLoad = NodeLoad()
    stage_seconds: float = 0.0
    """That it computed as a stage."""
    worker: bool = False
    samples: deque[_Sample] = field(default_factory=deque[_Sample])

    def since(self) -> tuple[float, float, int]:
        """Seconds, seconds of computing and rows of the window. What a node counts may begin anew."""
        first, last = self.samples[0], self.samples[-1]
        return last.at - first.at, max(last.computed - first.computed, 0.0), max(last.rows - first.rows, 0)


class Loads:
    """By the nodes' names. now: seconds."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def ran(self, name: str, seconds: float) -> None:
        """A node computed so long for a step, as a stage."""
        self._nodes.setdefault(name, _Node()).stage_seconds += seconds

    def heard(self, name: str, heartbeat: Heartbeat, now: float) -> None:
        node = self._nodes.setdefault(name, _Node())
        works = [work for report in heartbeat.pipelines for work in report.expert_work]
        node.worker = bool(works)
        computed, rows = sum(work.computed for work in works), sum(work.rows for work in works)
        sample = _Sample(now, node.stage_seconds + computed, rows)
        node.samples.append(sample)
        while now - node.samples[0].at > WINDOW and len(node.samples) > 2:
            node.samples.popleft()
        seconds, computed, _ = node.since()
        node.load = NodeLoad(
            busy=round(min(computed / seconds, 1.0), 2) if seconds > 0 else 0.0,
            steps=sum(report.steps for report in heartbeat.pipelines),
            frames=sum(work.frames for work in works),
            rows=sample.rows,
            queue=sum(work.queued for work in works),
            resident=round(heartbeat.resident / _GRAIN) * _GRAIN,
        )

    def of(self, name: str) -> NodeLoad:
        return node.load if (node := self._nodes.get(name)) is not None else NodeLoad()

    def balance(self, names: Iterable[str]) -> dict[str, float]:
        """Of each of these that is a worker, its rows in the window over the mean of all of them; 1 if none had any."""
        rows = {name: node.since()[2] for name in names if (node := self._nodes.get(name)) is not None and node.worker}
        total = sum(rows.values())
        return {name: count * len(rows) / total if total else 1.0 for name, count in rows.items()}

    def rename(self, old: str, new: str) -> None:
        if (node := self._nodes.pop(old, None)) is not None:
            self._nodes[new] = node

    def forget(self, name: str) -> None:
        self._nodes.pop(name, None)
