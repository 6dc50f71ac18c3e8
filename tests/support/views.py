"""Clusters as the operator's API shows them, made up."""

from __future__ import annotations

from shoal.cli.operator_client import Sight
from shoal.observed.cluster import Advice, ClusterView, MachineView, ModelView, PipelineView, Progress, RequestsView, StageView
from shoal.observed.event import ClusterEvent, EventKind, EventPage
from shoal.observed.requests import RequestView

HOSTILE = "evil\x1b[2J\x1b]0;owned\x07[bold red]\u202e\nname"
NOW = 1_800_000_000.0


def machine(name: str, number: int, of: int, **changes: object) -> MachineView:
    """Of so many that share 30 layers."""
    first, end = 30 * number // of, 30 * (number + 1) // of
    values: dict[str, object] = {
        "name": name,
        "number": number,
        "role": "layers",
        "state": "serving",
        "words": "",
        "address": f"192.168.1.{number}:7000",
        "machine": "x86",
        "threads": 4,
        "silence": 0.1,
        "first_layer": first,
        "end_layer": end,
        "weights": 1 << 30,
        "memory": 4 << 30,
        "resident": 2 << 30,
        "busy": 0.42,
        "round_trip": 0.0003,
    }
    return MachineView(**(values | changes))  # pyright: ignore[reportArgumentType]


def seen(machines: int = 2, events: int = 3, requests: int = 2, name: str = "node", model: str = "tiny", **changes: object) -> Sight:
    names = [f"{name}-{i}" for i in range(machines)]
    stages = [
        StageView(one, 30 * i // machines, 30 * (i + 1) // machines, 0.0001, 0.012, 0.0, 0.5, 0.011, 0.0003) for i, one in enumerate(names)
    ]
    values: dict[str, object] = {
        "cluster": "c",
        "version": "1",
        "at": NOW,
        "started": NOW - 100,
        "model": ModelView(model, model, 30, 4096, 2 << 30),
        "state": "serving",
        "reason": "",
        "epoch": 3,
        "machines": [machine(one, i, machines) for i, one in enumerate(names)],
        "stages": stages,
        "requests": RequestsView(2, 1, 32, 10, 100),
        "predicted": 41.0,
        "predicted_single": 12.34,
        "measured": 23.0,
        "last_hop": 0.0004,
        "advice": [Advice("bound", f"{names[-1] if names else name} bounds the pipeline", gain=0.14)],
    }
    view = ClusterView(**(values | changes))  # pyright: ignore[reportArgumentType]
    happened = [ClusterEvent(i + 1, NOW - events + i, EventKind.JOINED, f"{name}-{i} joined", f"{name}-{i}") for i in range(events)]
    asked = [RequestView(f"{name}-r{i}", NOW - i, "alice", "running", 12, 0, 34, NOW - i / 2, 0.0, 11.0) for i in range(requests)]
    return Sight(view, asked, EventPage(happened, events, 1))


def several(*names: str, shown: int = 0, **changes: object) -> Sight:
    """One of several pipelines. names: of them all."""
    states = ("serving", "loading")
    listed = [
        PipelineView(one, one.split("/")[0], 1, states[i % 2], "", RequestsView(i + 1, i + 2), 10.0 * (i + 1), [f"{one}-0"])
        for i, one in enumerate(names)
    ]
    name = names[shown]
    return seen(name=name, model=name.split("/")[0], measured=listed[shown].measured, pipeline=name, pipelines=listed, **changes)  # pyright: ignore[reportArgumentType]


LOADING = Progress("packing layer 3", 30, 100)
