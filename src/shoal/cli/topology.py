"""A cluster as its head publishes it in Redis: shown once, or followed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any

import msgspec

from shoal.cli.show import Rows, emit, line_out, out
from shoal.discovery.advert import check_name
from shoal.discovery.changes import Change, ChangeKind
from shoal.discovery.redis import RedisRegistry
from shoal.discovery.redis_reader import RedisReader
from shoal.discovery.topology import NodeLoad, NodeState, RequestLoad, RouteState, Topology
from shoal.sizes import human_bytes

_PATIENCE = 1.0  # seconds in which an advert must be there; it is read, not waited for


async def show(url: str, cluster: str, follow: bool, as_json: bool) -> None:
    """cluster: '': the only one that is announced there. Raises ClusterError if there is none, or its head is silent; ConfigError."""
    name = check_name(cluster) if cluster else await _only(url)
    reader = RedisReader(url)
    try:
        if follow:
            await _follow(name, reader.follow(name), as_json)
        else:
            _show(name, await reader.topology(name), as_json)
    finally:
        await reader.close()


async def _only(url: str) -> str:
    registry = RedisRegistry(url)
    try:
        return (await registry.find(None, _PATIENCE)).cluster
    finally:
        await registry.close()


async def _follow(cluster: str, following: AsyncGenerator[Topology | Change], as_json: bool) -> None:
    async with contextlib.aclosing(following) as seen:
        async for one in seen:
            if isinstance(one, Topology):
                _show(cluster, one, as_json, lines=True)
            elif as_json:
                print(msgspec.json.encode(one).decode(), flush=True)
            else:
                line_out(f"{datetime.now():%H:%M:%S} {told(one)}")


def _show(cluster: str, topology: Topology, as_json: bool, lines: bool = False) -> None:
    """lines: JSON in one line."""
    if as_json:
        about = {"cluster": cluster, "route": topology.route, "others": topology.others, "nodes": list(topology.nodes.values())}
        if lines:
            print(msgspec.json.encode(about).decode(), flush=True)
        else:
            emit(msgspec.to_builtins(about))
        return
    for route in (topology.route, *topology.others):
        line_out(_route(route))
    out.print(Rows([_row(node) for node in topology.nodes.values()]) if topology.nodes else "no nodes have joined")


def told(change: Change) -> str:
    """An event in words."""
    match change.kind:
        case ChangeKind.JOINING | ChangeKind.JOINED if change.state is not None:
            verb = "is joining" if change.kind == ChangeKind.JOINING else "joined"
            return f"{change.node} {verb} at {change.state.address}: {_does(change.state)}"
        case ChangeKind.MOVED if change.state is not None:
            return f"{change.node} holds something else now: {_does(change.state)}"
        case ChangeKind.CHANGED if change.state is not None:
            return f"{change.node}: {_does(change.state)}"
        case ChangeKind.LEFT:
            return f"{change.node} left: {change.reason or 'no reason is known'}"
        case ChangeKind.LOST:
            return f"{change.node} is lost: {change.reason}"
        case ChangeKind.ROUTE if change.route is not None or change.others is not None:
            routes = [*([] if change.route is None else [change.route]), *(change.others or ())]
            return "\n".join(map(_route, routes)) or "there is no other pipeline any more"
        case ChangeKind.LOAD:
            requests = [] if change.requests is None else [_requests(change.requests)]
            further = [f"{pipeline} {_requests(load)}" for pipeline, load in change.further.items()]
            return "; ".join([*requests, *further, *map(_busy, change.loads.items())])
        case ChangeKind.CLOSED:
            return "the head shut down"
        case ChangeKind.SILENT:
            return "the head is silent: what it wrote has expired"
        case ChangeKind.HEARD:
            return "the head is heard again"
        case _:
            return f"{change.kind} {change.node or ''}".rstrip()


def _does(node: NodeState) -> str:
    return f"{node.state}, {_holds(node)}" if node.held or node.layers else node.state


def _busy(load: tuple[str, NodeLoad]) -> str:
    name, does = load
    return f"{name} {does.busy:.0%} busy" + (f", {does.queue} waiting" if does.queue else "")


def _requests(requests: RequestLoad) -> str:
    return f"{requests.running} of {requests.slots} slots taken, {requests.waiting} waiting"


def _holds(node: NodeState) -> str:
    if node.held:
        return f"{node.held} experts"
    further = [f"{layers} of {pipeline}" for pipeline, layers in node.further.items()]
    return f"layers {', '.join([node.layers, *further])}" if node.layers else "-"


def _route(route: RouteState) -> str:
    if not route.model:
        return "no model is loaded"
    name = route.model if route.replica == 1 else route.pipeline
    if not route.stages:
        return f"{name}: {route.state}, epoch {route.epoch}"
    stages = ", ".join(f"{stage.node} {stage.layers}" for stage in route.stages)
    workers = f"; experts on {', '.join(route.workers)}" if route.workers else ""
    return f"{name}: {route.state}, epoch {route.epoch}: {stages}{workers}; {_requests(route.requests)}"


def _row(node: NodeState) -> dict[str, Any]:
    return {
        "name": node.name,
        "address": node.address,
        "state": node.state,
        "holds": _holds(node),
        "weights": human_bytes(node.weights),
        "memory": human_bytes(node.memory),
        "threads": node.threads,
        "busy": f"{node.load.busy:.0%}",
        "queue": node.load.queue,
        "done": f"{node.load.rows} rows" if node.load.rows else f"{node.load.steps} steps",
        "round trip": f"{node.round_trip * 1e3:.1f} ms",
    }
