"""The commands, their flags and their help. What they do is loaded when one of them is run: `--help` is to come at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.options import (
    Json,
    Key,
    MaxTokens,
    Memory,
    Nodes,
    Runtime,
    Seed,
    Temperature,
    Threads,
    Url,
    flag,
    loaded,
    node_settings,
    said,
    settings,
)
from shoal.config import EngineSettings, HeadSettings, NodeSettings, RuntimeName

DEFAULT_PROMPT = "What is the capital of France, and what is it famous for?"

_UP_HELP = """
Start a head and some nodes on this machine, and serve the API until Ctrl-C.

Example: [bold]shoal up --nodes 2 --port 8000[/bold], then
[bold]curl localhost:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hello"}]}'[/bold]
"""
_SERVE_HELP = """
Serve a model on the nodes that join this machine.

Example: [bold]shoal serve --host 192.168.1.20 --min-nodes 2[/bold] here, and on two machines the command that it shows, like
[bold]shoal join 192.168.1.20:7420 --code 7QFK-3M9X[/bold]
"""
_JOIN_HELP = """
Lend this machine to a cluster, until Ctrl-C: its layers are then moved to others before it leaves (Ctrl-C again: at once).

Example: [bold]shoal join[/bold] finds the cluster of this network, [bold]shoal join 192.168.1.20:7420 --memory 4GiB[/bold] the one there.
"""


def register(app: typer.Typer) -> None:
    app.command("up", help=_UP_HELP)(up)
    app.command("serve", help=_SERVE_HELP)(serve)
    app.command("join", help=_JOIN_HELP)(join)
    for command in (run, chat, batch, plan, bench, doctor):
        app.command(command.__name__)(command)


@settings(HeadSettings, leave_out=("min_nodes", "spread"))
def up(settings: HeadSettings, nodes: Nodes = 2, memory: Memory = "", threads: Threads = 0, runtime: Runtime = RuntimeName.AUTO) -> None:
    from shoal.cli import cluster

    cluster.up(settings, node_settings(memory, threads, runtime), nodes)


@settings(HeadSettings)
def serve(settings: HeadSettings) -> None:
    from shoal.cli import cluster

    cluster.serve(settings)


@settings(NodeSettings)
def join(
    settings: NodeSettings,
    address: Annotated[
        str, typer.Argument(metavar="[HOST:PORT]", help="Where `shoal serve` says that nodes join; it is looked for where not given.")
    ] = "",
) -> None:
    from shoal.cli import join

    join.join(settings, address)


@settings(EngineSettings)
def run(
    settings: EngineSettings,
    typed: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.")] = DEFAULT_PROMPT,
    nodes: Nodes = 2,
    url: Url = "",
    key: Key = "",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    memory: Memory = "",
    threads: Threads = 0,
    runtime: Runtime = RuntimeName.AUTO,
) -> None:
    """Answer one prompt, streamed to the terminal. Example: [bold]shoal run "Write a haiku about rain" --nodes 2[/bold]"""
    from shoal.cli import client

    settings, model = _named(typed, settings)
    asking = client.Asking(url, key, model, max_tokens, temperature, seed)
    client.run(settings, node_settings(memory, threads, runtime), nodes, asking, prompt)


@settings(EngineSettings)
def chat(
    settings: EngineSettings,
    typed: typer.Context,
    nodes: Nodes = 2,
    url: Url = "",
    key: Key = "",
    system: Annotated[str, flag("--system", "What the model is told first.", section="client", default="")] = "",
    max_tokens: MaxTokens = 0,
    temperature: Temperature = 0.7,
    seed: Seed = None,
    memory: Memory = "",
    threads: Threads = 0,
    runtime: Runtime = RuntimeName.AUTO,
) -> None:
    """Talk with a model, turn by turn. Example: [bold]shoal chat --model qwen2.5-coder-1.5b[/bold]

    Enter sends; Alt-Enter, or a backslash at a line's end, goes on with another line. Ctrl-C ends an answer, at an empty prompt the chat.
    /help lists what else there is. Where stdin is no terminal, all of it is one message: [bold]git diff | shoal chat --system "Review this"[/bold]
    """
    from shoal.cli import client

    settings, model = _named(typed, settings)
    asking = client.Asking(url, key, model, max_tokens, temperature, seed)
    client.chat(settings, node_settings(memory, threads, runtime), nodes, asking, system)


def _named(typed: typer.Context, settings: EngineSettings) -> tuple[EngineSettings, str]:
    """With the model that the user named for asking, and its name: '' where that is left to the server."""
    asked = settings.model if said(typed, "model") else str(loaded().section("client").get("model", ""))
    return (dataclasses.replace(settings, model=asked) if asked else settings), asked


@settings(EngineSettings)
def batch(
    settings: EngineSettings,
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, a line each, as in OpenAI's batch API.")],
    target: Annotated[Path, flag("--output", "Results, a line each. What an earlier run left there is not done again.", short="-o")],
    nodes: Nodes = 2,
    url: Url = "",
    key: Key = "",
    concurrency: Annotated[
        int, flag("--concurrency", "Requests that run at once.", section="client", kind=int, default=16, min=1, max=4096)
    ] = 16,
    patience: Annotated[
        float,
        flag(
            "--patience", "Seconds without any answer of the server before giving up.", section="client", kind=float, default=600.0, min=0
        ),
    ] = 600.0,
    memory: Memory = "",
    threads: Threads = 0,
    runtime: Runtime = RuntimeName.AUTO,
) -> None:
    """Answer a file of requests. Each result is on the disk (fsync) before it counts; after a crash or Ctrl-C the same command goes on.

    Requests run below those that somebody waits for. A full queue and a model being loaded are waited for. Exit status: 0 where every
    request was answered with 200, 1 where one was not, 2 where the files are at fault and nothing was run.

    Example: [bold]shoal batch in.jsonl -o out.jsonl --url http://127.0.0.1:8000[/bold]
    """
    from shoal.cli import batch as work

    work.run(settings, node_settings(memory, threads, runtime), nodes, url, key, patience, source, target, concurrency)


@settings(EngineSettings, leave_out=("model",))
def plan(
    settings: EngineSettings,
    model: Annotated[str, typer.Argument(help="As for --model elsewhere.")],
    node: Annotated[
        list[str] | None, flag("--node", "A node; repeat for each. SPEED is relative to this machine.", metavar="MEMORY[:SPEED]")
    ] = None,
    threads: Annotated[int, flag("--threads", "Threads that this machine is measured with.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Show how a model would be split and how fast it would be. Example: [bold]shoal plan qwen2.5-coder-1.5b --node 1GiB --node 1GiB:0.5[/bold]"""
    from shoal.cli import inspect

    inspect.plan(settings, model, node or [], threads, as_json)


@settings(EngineSettings)
def bench(
    settings: EngineSettings,
    nodes: Nodes = 1,
    threads: Threads = 0,
    runtime: Runtime = RuntimeName.AUTO,
    repeat: Annotated[int, flag("--repeat", "Medians of so many runs.", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """Measure a local cluster: decoding 1 and 8 streams, and a prompt of 512. Example: [bold]shoal bench --nodes 2 --threads 1[/bold]"""
    from shoal.cli import inspect

    inspect.bench(settings, node_settings(threads=threads, runtime=runtime), nodes, repeat, as_json)


def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, what shoal will use of it, and what is wrong."""
    from shoal.cli import inspect

    inspect.doctor(as_json)
