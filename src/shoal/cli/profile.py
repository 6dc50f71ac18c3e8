"""`profile`: where the time of a cluster goes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import msgspec

from shoal.cli.asking import ChatOptions
from shoal.cli.loop import run
from shoal.cli.profiling_load import Watched, profiling_load
from shoal.cli.served import local_settings, served
from shoal.cli.show import Rows, described, emit, err, line, line_out, out
from shoal.cli.waiting import stop_signal, until
from shoal.config import EngineSettings, NodeSettings
from shoal.errors import ConfigError, ShoalError
from shoal.executor.cost import attention_costs, model_cost
from shoal.models.description import Description
from shoal.models.sources import find
from shoal.native import BLOCK_TOKENS
from shoal.placement.profile import Demand, LinkSpeed, LinkSpeeds, NodeProfile
from shoal.profiling.changes import Situation, changes, sequence_of
from shoal.profiling.chrome_trace import chrome_trace
from shoal.profiling.limits import Costing, estimated_parts, stage_limits
from shoal.profiling.parts import stage_parts
from shoal.profiling.profile import LinkLoad, Profile, profiled
from shoal.profiling.report import html_report
from shoal.profiling.slices import Run, Track, merged, track_name
from shoal.profiling.tables import TITLES, summary, tables
from shoal.wire.codec import encoded_bytes
from shoal.wire.frame import WireCodec


def profile(
    engine: EngineSettings,
    node: NodeSettings,
    nodes: int,
    asking: ChatOptions,
    seconds: int,
    streams: int,
    html: Path | None,
    chrome: Path | None,
    as_json: bool,
) -> None:
    """Raises ShoalError, OSError."""
    check_files(html, chrome)
    if not asking.url and streams > engine.slots:
        raise ConfigError(f"--streams {streams} is more than --slots {engine.slots}, the sequences that run at once")
    found, model = run(_watched(engine, node, nodes, asking, seconds, streams))
    steps = merged(found.timelines)
    if not steps.steps:
        raise ConfigError(f"no step was completed in {seconds} s; give more --seconds")
    context = round(mean(one.request.prompt_tokens + one.request.generated / 2 for one in found.timelines))
    made = completed(profiled(steps, found.view.model.name, streams), steps, found, model, engine, max(context, 1))
    if html is not None:
        html.write_text(html_report(made), encoding="utf-8")
    if chrome is not None:
        chrome.write_text(json.dumps(chrome_trace(steps)), encoding="utf-8")
    if as_json:
        emit(msgspec.to_builtins(made))
    else:
        _show(made)
    for path in (html, chrome):
        if path is not None:
            line(f"written to {path}")


def check_files(*paths: Path | None) -> None:
    """Raises ConfigError before anything is measured."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ConfigError(f"{path} cannot be written: its folder does not exist, or it is one itself")


async def _watched(
    engine: EngineSettings, node: NodeSettings, nodes: int, asking: ChatOptions, seconds: int, streams: int
) -> tuple[Watched, Callable[[str], Description | None]]:
    """With how to describe the model that was served."""
    stop = stop_signal()
    if asking.url:
        return await _load(asking, seconds, streams, stop), _here
    async with served(local_settings(engine), node, nodes, stop) as there:
        if there is None:
            raise KeyboardInterrupt
        url, head = there
        model = head.engine.model
        return await _load(dataclasses.replace(asking, url=url, model=""), seconds, streams, stop), lambda _: model


async def _load(asking: ChatOptions, seconds: int, streams: int, stop: asyncio.Event) -> Watched:
    found: list[Watched] = []

    async def work() -> None:
        async with profiling_load(asking) as load:
            found.append(await load.run(seconds, streams))

    with err.status(f"profiling for {seconds} s"):
        if not await until(stop, work()):
            raise KeyboardInterrupt
    return found[0]


def _here(reference: str) -> Description | None:
    """A model that a cluster somewhere serves, if it is on this machine; nothing is fetched."""
    try:
        return described(reference) if find(reference) is not None else None
    except (ShoalError, OSError):
        return None


def completed(
    made: Profile, steps: Run, watched: Watched, model: Callable[[str], Description | None], engine: EngineSettings, context: int
) -> Profile:
    """With what the nodes counted, and what the costs of the model tell, where they are known. context: tokens that a row attends to, on average."""
    notes: list[str] = []
    before, view = watched.before, watched.view
    made = msgspec.structs.replace(made, computing=stage_parts(steps, before, view, {}))
    if made.lost:
        notes.append(f"{made.lost} steps were not kept by the head and are missing here")
    if made.left_out:
        notes.append(f"{made.left_out} steps ran on another route and are left out")
    described = model(view.model.reference)
    links = _links(steps, 0)
    if described is None:
        notes.append(f"limits and changes are left out: {view.model.reference} is not a file or model of the catalogue on this machine")
        return msgspec.structs.replace(made, links=links, notes=notes)
    cost = model_cost(described.spec, described.weights, engine.precision, engine.kv_type, engine.step_tokens)
    width = encoded_bytes(WireCodec[engine.activations.name], 1, described.spec.hidden)
    made = msgspec.structs.replace(made, links=_links(steps, width), notes=notes)
    machines = {machine.name: machine for machine in view.machines}
    if tuple(stage.node for stage in view.stages) != steps.nodes or not all(
        (found := machines.get(name)) is not None and found.bytes_per_second > 0 and found.flops > 0 for name in steps.nodes
    ):
        notes.append("limits and changes are left out: the route changed meanwhile, or a node's speed is not known")
        return made
    order = tuple(
        NodeProfile(one.name, one.memory, one.bytes_per_second, one.flops, one.disk) for one in (machines[name] for name in steps.nodes)
    )
    bounds = [(stage.first_layer, stage.end_layer) for stage in view.stages]
    costing = Costing(cost, attention_costs(described.spec, described.weights, engine.precision), context)
    made = msgspec.structs.replace(
        made,
        computing=stage_parts(steps, before, view, estimated_parts(steps, bounds, order, costing)),
        limits=stage_limits(steps, bounds, order, costing),
    )
    if any(machine.role == "experts" for machine in view.machines):
        notes.append("changes are left out: they are not predicted where experts are on workers")
        return made
    measured = {
        one.name: LinkSpeed(one.round_trip / 2, one.link_bytes_per_second) for one in view.machines if one.link_bytes_per_second > 0
    }
    kv = max(view.requests.blocks * BLOCK_TOKENS, 1)
    demand = Demand(made.streams, kv, kv, context)
    threads = {one.name: one.threads for one in view.machines}
    now = Situation(order, sequence_of(bounds), cost, LinkSpeeds(measured), demand, threads)
    return msgspec.structs.replace(made, predicted=now.running().tokens_per_second, changes=changes(now))


def _links(steps: Run, width: int) -> list[LinkLoad]:
    """width: bytes of a row between two stages; 0: not known."""
    count = len(steps.nodes)
    ways = [[step.stages[i].hop for step in steps.steps] for i in range(count)] + [[step.back for step in steps.steps]]
    return [LinkLoad(track_name(Track("link", i), steps.nodes), median(way), width if 0 < i < count else 0) for i, way in enumerate(ways)]


def _show(made: Profile) -> None:
    line_out(summary(made))
    for name, rows in tables(made).items():
        if rows:
            out.print()
            out.print(Rows([dict(row) for row in rows], TITLES[name]))
    for note in made.notes:
        line_out(note)
