"""`plan`, `bench` and `doctor`: what would run where, how fast it runs, and what this machine can do."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import os
import platform
import shutil
import sys
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import typer
import uvloop
from rich.markup import escape

from shoal import __version__, allowance
from shoal.cli.client import local_settings, served
from shoal.cli.cluster import stop_signal
from shoal.cli.options import Json, Nodes, Runtime, Threads, node_settings, settings
from shoal.cli.show import described, emit, err, out, placement_rows, table
from shoal.config import EngineSettings, NodeSettings, RuntimeName, cache_dir, default_threads, parse_bytes
from shoal.errors import ConfigError, human_bytes
from shoal.executor.cost import model_cost
from shoal.executor.measure import measure
from shoal.executor.runtimes import installed, lacking
from shoal.native import instruction_set
from shoal.node.head import Head
from shoal.placement.partition import place
from shoal.placement.profile import Demand, Links, NodeProfile
from shoal.request import Request, RequestId, SamplingParams


def _node(text: str, index: int, threads: int) -> NodeProfile:
    """'4GiB' or '4GiB:2' (twice as fast as this machine). Raises ConfigError."""
    memory, _, factor = text.partition(":")
    try:
        speed = float(factor) if factor else 1.0
    except ValueError:
        raise ConfigError(f"'{text}' is no node; write MEMORY or MEMORY:SPEED, like 4GiB:0.5") from None
    if not 0 < speed < 1e6:
        raise ConfigError(f"'{text}': a speed is greater than 0, and finite")
    here = measure(threads)
    return NodeProfile(f"node-{index}", parse_bytes(memory), here.bytes_per_second * speed, here.flops * speed)


def _cache() -> tuple[str, str]:
    """The state of the folder for models and keys, and what it means."""
    try:
        home = cache_dir()
        at = next(p for p in (home, *home.parents) if p.exists())
        free, writable = shutil.disk_usage(at).free, at.is_dir() and os.access(at, os.W_OK)
    except (ConfigError, OSError) as error:
        return "wrong", str(error)
    words = f"{home}, {human_bytes(free)} free" + ("" if writable else ", not writable: set SHOAL_CACHE")
    return "ok" if writable and free > 2**30 else "wrong", words


def _checks() -> list[dict[str, str]]:
    """What this machine has: name, state (ok, note, wrong), and what it means."""
    checks: list[dict[str, str]] = []

    def add(name: str, state: str, what: str) -> None:
        checks.append({"check": name, "state": state, "result": what})

    add("shoal", "ok", f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    isa = instruction_set()
    if isa is None:
        add("kernels", "wrong", "not compiled: attention runs in NumPy, many times slower; install g++ and cmake, then reinstall")
    else:
        add("kernels", "ok" if isa != "portable" else "note", f"instruction set {isa}")
        speed = measure(default_threads())
        add(
            "speed",
            "ok",
            f"decode {speed.bytes_per_second / 1e9:.1f} GB/s of 4-bit weights, prefill {speed.flops / 1e9:.0f} GFLOP/s, {default_threads()} threads",
        )
    for runtime in (RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO):
        missing = lacking(runtime)
        add(runtime, "note" if missing else "ok", f"optional; {missing}" if missing else "installed")
    if not installed():
        add("runtimes", "wrong", "nothing here runs layers; install one of those above")
    cores, memory = allowance.processors(), allowance.memory()
    add("processors", "ok", f"{cores.usable}" + (f": {cores.source}" if cores.source else ""))
    free, source = f"{human_bytes(memory.available)} free of {human_bytes(memory.total)}", f": {memory.source}" if memory.source else ""
    add("memory", "ok" if memory.available > 2**30 else "note", free + source)
    add("cache", *_cache())
    add(
        "pip",
        "ok" if importlib.util.find_spec("pip") else "wrong",
        "fetches the models of the catalogue"
        if importlib.util.find_spec("pip")
        else "missing: models cannot be fetched; python -m ensurepip",
    )
    add(
        "npm",
        "ok" if shutil.which("npm") else "note",
        "fetches some models of the catalogue" if shutil.which("npm") else "not installed; only tinyllama-1.1b needs it",
    )
    return checks


async def _one(head: Head, prompt: list[int], tokens: int, name: str) -> tuple[float, float]:
    """Seconds to the first token and to the last."""
    began, first = perf_counter(), 0.0
    stream = head.submit(Request(RequestId(name), prompt, tokens, SamplingParams(temperature=0.0)))
    async for _ in stream:
        first = first or perf_counter() - began
    return first, perf_counter() - began


async def _bench(engine: EngineSettings, node: NodeSettings, nodes: int, repeat: int) -> dict[str, Any]:
    async with served(local_settings(engine), node, nodes, stop_signal()) as there:
        if there is None:
            raise KeyboardInterrupt
        _, head = there
        vocabulary = head.vocabulary
        await _one(head, [1, 2, 3], 8, "warm")
        single: list[float] = []
        eight: list[float] = []
        prefill: list[float] = []
        with err.status("measuring"):
            for i in range(repeat):
                first, total = await _one(head, [(7 * i + 11) % vocabulary, 5, 6, 7], 96, f"one-{i}")
                single.append(95 / (total - first))
                began = perf_counter()
                await asyncio.gather(*(_one(head, [(31 * i + 13 * j + 17) % vocabulary, 5, 6, 7], 64, f"eight-{i}-{j}") for j in range(8)))
                eight.append(8 * 64 / (perf_counter() - began))
                prompt = [(k * 7919 + i * 104729 + 23) % vocabulary for k in range(512)]
                first, _ = await _one(head, prompt, 1, f"prefill-{i}")
                prefill.append(512 / first)
        return {"decode_1": median(single), "decode_8": median(eight), "prefill_512": median(prefill), "repeat": repeat, "nodes": nodes}


def register(app: typer.Typer) -> None:
    @app.command("plan")
    @settings(EngineSettings, leave_out=("model",))
    def plan(  # pyright: ignore[reportUnusedFunction]
        settings: EngineSettings,
        model: Annotated[str, typer.Argument(help="As for --model elsewhere.")],
        node: Annotated[
            list[str] | None,
            typer.Option("--node", metavar="MEMORY[:SPEED]", help="A node; repeat for each. SPEED is relative to this machine."),
        ] = None,
        threads: Annotated[int, typer.Option("--threads", min=0, help="Threads that this machine is measured with.")] = 0,
        as_json: Json = False,
    ) -> None:
        """Show how a model would be split and how fast it would be. Example: [bold]shoal plan qwen2.5-coder-1.5b --node 1GiB --node 1GiB:0.5[/bold]"""
        engine = dataclasses.replace(settings, model=model)
        description = described(model)
        cost = model_cost(description.spec, description.weights, engine.precision, engine.kv_type, engine.step_tokens)
        context = min(engine.context, description.spec.context)
        demand = Demand.of(engine.lanes, engine.kv_tokens, context)
        given = node or [f"{allowance.usable_memory()}"]
        nodes = [_node(text, i + 1, threads or default_threads()) for i, text in enumerate(given)]
        placement = place(nodes, Links(), cost, demand)
        answer = {
            "model": description.name,
            "stages": placement_rows(placement),
            "kv_tokens": placement.kv_tokens,
            "predicted_tokens_per_second_full": round(placement.tokens_per_second, 1),
            "predicted_prefill_tokens_per_second": round(placement.prefill_per_second, 1),
        }
        if as_json:
            emit(answer)
            return
        out.print(table(description.name, placement_rows(placement)))
        out.print(
            f"{placement.kv_tokens} tokens of KV; with {engine.lanes} lanes busy about {placement.tokens_per_second:.0f} tokens/s, prefill about {placement.prefill_per_second:.0f} tokens/s"
        )

    @app.command("bench")
    @settings(EngineSettings)
    def bench(  # pyright: ignore[reportUnusedFunction]
        settings: EngineSettings,
        nodes: Nodes = 1,
        threads: Threads = 0,
        runtime: Runtime = RuntimeName.AUTO,
        repeat: Annotated[int, typer.Option("--repeat", min=1, help="Medians of so many runs.")] = 3,
        as_json: Json = False,
    ) -> None:
        """Measure a local cluster: decoding 1 and 8 streams, and a prompt of 512. Example: [bold]shoal bench --nodes 2 --threads 1[/bold]"""
        figures = uvloop.run(_bench(settings, node_settings(threads=threads, runtime=runtime), nodes, repeat))
        if as_json:
            emit(figures)
        else:
            out.print(f"decode, 1 stream    {figures['decode_1']:8.1f} tokens/s")
            out.print(f"decode, 8 streams   {figures['decode_8']:8.1f} tokens/s")
            out.print(f"prefill of 512      {figures['prefill_512']:8.1f} tokens/s")

    @app.command("doctor")
    def doctor(as_json: Json = False) -> None:  # pyright: ignore[reportUnusedFunction]
        """Say what this machine can do, what shoal will use of it, and what is wrong."""
        checks = _checks()
        if as_json:
            emit(checks)
        else:
            for check in checks:
                colour = {"ok": "green", "note": "yellow", "wrong": "red"}[check["state"]]
                out.print(
                    f"[{colour}]{check['state']:5}[/{colour}] {check['check']:12} {escape(check['result'])}",
                    highlight=False,
                    soft_wrap=True,
                )
        if any(check["state"] == "wrong" for check in checks):
            err.print("something is wrong; see above")
            sys.exit(1)
