"""The commands, their flags and their help. The code behind a command is imported when it runs, so that `--help` is fast."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
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
    from_file,
    loaded,
    node_settings,
    of_file,
    said,
    settings,
)
from shoal.config import EngineSettings, GatewaySettings, HeadSettings, NodeSettings, RuntimeName
from shoal.errors import ConfigError
from shoal.settings import from_environment


class Strategy(StrEnum):
    """How many prompts run at once."""

    AUTO = "auto"
    INTERACTIVE = "interactive"
    THROUGHPUT = "throughput"


class Switch(StrEnum):
    ON = "on"
    OFF = "off"


DEFAULT_PROMPT = "What is the capital of France, and what is it famous for?"

_UP_HELP = """
Start a head and some nodes on this machine, and serve the API until Ctrl-C.

Example: [bold]shoal up --nodes 2 --port 8000[/bold], then
[bold]curl localhost:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hello"}]}'[/bold]
"""
_SERVE_HELP = """
Serve a model on the nodes that join this machine.

Example: run [bold]shoal serve --host 192.168.1.20 --min-nodes 2[/bold] here, then on two machines the command that it prints, like
[bold]shoal join 192.168.1.20:7420 --code 7QFK-3M9X[/bold]
"""
_JOIN_HELP = """
Join this machine to a cluster. Ctrl-C moves its layers to other nodes, then leaves (Ctrl-C again: leave at once).

Example: [bold]shoal join[/bold] finds the cluster on this network; [bold]shoal join 192.168.1.20:7420 --memory 4GiB[/bold] joins the one at that address.
"""


_GATEWAY_HELP = """
Serve the API of a head from this machine, which needs neither the model's files nor much memory. Ctrl-C lets running answers end.

Example: on the head [bold]shoal serve --host 192.168.1.20 --gateway-port 7424[/bold], and here the command that it prints, like
[bold]shoal gateway 192.168.1.20:7420 --code 7QFK-3M9X --api-host 192.168.1.30[/bold]
"""


def register(app: typer.Typer) -> None:
    app.command("up", help=_UP_HELP)(up)
    app.command("serve", help=_SERVE_HELP)(serve)
    app.command("join", help=_JOIN_HELP)(join)
    app.command("gateway", help=_GATEWAY_HELP)(gateway)
    for command in (run, chat, console, top, batch, infer_moe, plan, profile, profile_moe, bench, doctor, witness):
        app.command(command.__name__.replace("_", "-"))(command)


@settings(HeadSettings, leave_out=("min_nodes", "spread", "lease", "lease_seconds", "standby", "code", "replicate"))
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
        str,
        typer.Argument(
            metavar="[HOST:PORT]",
            help="The head's address, as `shoal serve` prints it. Without one, the head is looked for on the network.",
        ),
    ] = "",
) -> None:
    from shoal.cli import join

    join.join(settings, address)


def witness(
    host: Annotated[str, flag("--host", "Address of this machine for the heads.")] = "127.0.0.1",
    port: Annotated[int, flag("--port", "Port that heads connect to; 0: a free one.", min=0, max=65535)] = 7430,
    credentials: Annotated[
        str, flag("--credentials", "File that `shoal nodes certify --witness` wrote; needed if other machines can reach the witness.")
    ] = "",
    ledger: Annotated[str, flag("--ledger", "File for what was granted; empty: in shoal's state folder.")] = "",
    unprotected: Annotated[
        bool, flag("--unprotected", "Serve other machines without a certificate. Anyone who can reach the port can take the lease.")
    ] = False,
) -> None:
    """Keep the lease by which one of several heads leads. It runs on a machine that is none of the heads'.

    Example: [bold]shoal witness --host 192.168.1.30 --credentials witness.pem[/bold]
    """
    from shoal.cli import witness

    witness.witness(host, port, credentials, ledger, unprotected)


@settings(GatewaySettings)
def gateway(
    settings: GatewaySettings,
    heads: Annotated[
        list[str],
        typer.Argument(
            metavar="HEAD[:PORT]",
            help="The head's address, as `shoal serve` prints it; without a port, 7420. Of several, the first that serves is used.",
        ),
    ],
) -> None:
    from shoal.cli import gateway

    gateway.gateway(settings, heads)


@settings(EngineSettings)
def run(
    settings: EngineSettings,
    typed: typer.Context,
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from stdin.")] = DEFAULT_PROMPT,
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
    asking = client.ChatOptions(url, key, model, max_tokens, temperature, seed)
    client.run(settings, node_settings(memory, threads, runtime), nodes, asking, prompt)


@settings(EngineSettings)
def chat(
    settings: EngineSettings,
    typed: typer.Context,
    nodes: Nodes = 2,
    url: Url = "",
    key: Key = "",
    system: Annotated[str, flag("--system", "The system prompt.", section="client", default="")] = "",
    max_tokens: MaxTokens = 0,
    temperature: Temperature = 0.7,
    seed: Seed = None,
    memory: Memory = "",
    threads: Threads = 0,
    runtime: Runtime = RuntimeName.AUTO,
) -> None:
    """Talk with a model, turn by turn. Example: [bold]shoal chat --model qwen2.5-coder-1.5b[/bold]

    Enter sends; Alt-Enter, or a backslash at the end of a line, starts a new line. Ctrl-C stops an answer; at an empty prompt it ends the chat.
    /help lists the commands. If stdin is not a terminal, all of it is one message: [bold]git diff | shoal chat --system "Review this"[/bold]
    """
    from shoal.cli import client

    settings, model = _named(typed, settings)
    asking = client.ChatOptions(url, key, model, max_tokens, temperature, seed)
    client.chat(settings, node_settings(memory, threads, runtime), nodes, asking, system)


def console(
    server: Annotated[
        str, typer.Argument(metavar="URL", help="The head's API, like http://192.168.1.20:8000; empty: on this machine.")
    ] = "",
) -> None:
    """Open the console, a web page with the cluster, a chat and what happened, in the browser. Example: [bold]shoal console[/bold]"""
    from shoal.cli.console import console

    console(server)


def top(
    context: typer.Context,
    url: Annotated[
        str, flag("--url", "The head's API, like http://192.168.1.20:8000; empty: on this machine.", also=("OPENAI_BASE_URL",))
    ] = "",
    api_key: Key = "",
    interval: Annotated[float, flag("--interval", "Seconds between two looks.", min=0.2, max=3600)] = 1.0,
    once: Annotated[bool, flag("--once", "Print it once, as it is done where stdout is no terminal.")] = False,
    as_json: Json = False,
) -> None:
    """Watch a cluster in the terminal: machines, stages, requests, events. Example: [bold]shoal top --url 192.168.1.20:8000[/bold]

    q leaves; Tab chooses a section, arrows scroll it, / filters by name or text; p and P show another pipeline.
    """
    from shoal.cli import top as work

    url, api_key = from_file(context, "url", "client", url), from_file(context, "api_key", "client", api_key)
    work.top(url, api_key, interval, once, as_json)


def _named(typed: typer.Context, settings: EngineSettings) -> tuple[EngineSettings, str]:
    """The settings with the model to ask for, and its name: '' if the server chooses."""
    asked = settings.model if said(typed, "model") else str(loaded().section("client").get("model", ""))
    return (dataclasses.replace(settings, model=asked) if asked else settings), asked


@settings(EngineSettings)
def batch(
    settings: EngineSettings,
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests in the format of OpenAI's batch API, one per line.")],
    target: Annotated[Path, flag("--output", "Results, one per line. Requests that already have a result in it are skipped.", short="-o")],
    nodes: Nodes = 2,
    url: Url = "",
    key: Key = "",
    concurrency: Annotated[
        int,
        flag(
            "--concurrency",
            "Requests to run at once; 0: 16 at a server that runs already, else as many as are fastest on this machine.",
            section="client",
            kind=int,
            default=0,
            min=0,
            max=4096,
        ),
    ] = 0,
    patience: Annotated[
        float,
        flag(
            "--patience", "Seconds without any answer from the server before giving up.", section="client", kind=float, default=600.0, min=0
        ),
    ] = 600.0,
    memory: Memory = "",
    threads: Threads = 0,
    runtime: Runtime = RuntimeName.AUTO,
) -> None:
    """Answer a file of requests. Each result is synced to disk; after a crash or Ctrl-C, the same command continues.

    Interactive requests go first. A full queue or a loading model is waited for. Exit status: 0 if every
    request was answered with 200, 1 if one was not, 2 if a file or flag is wrong and nothing was run.

    Example: [bold]shoal batch in.jsonl -o out.jsonl --url http://127.0.0.1:8000[/bold]
    """
    from shoal.cli import batch as work

    work.run(settings, node_settings(memory, threads, runtime), nodes, url, key, patience, source, target, concurrency)


@settings(EngineSettings, leave_out=("model",))
def plan(
    settings: EngineSettings,
    model: Annotated[str, typer.Argument(help="A model, named as for --model of other commands.")],
    node: Annotated[
        list[str] | None,
        flag(
            "--node",
            "A node; repeat for more. SPEED is relative to this machine. ROLE: as for `shoal join`, by default auto.",
            metavar="MEMORY[:SPEED][:ROLE]",
        ),
    ] = None,
    threads: Annotated[int, flag("--threads", "Threads to measure this machine with; 0: every core.", min=0)] = 0,
    hardware: Annotated[
        str,
        flag(
            "--hardware-config", "A hardware profile to plan one machine by: a .toml file, or a name; see docs/planning.md.", metavar="FILE"
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Show how a model would be split and how fast it would be. Example: [bold]shoal plan qwen2.5-coder-1.5b --node 1GiB --node 1GiB:0.5[/bold]"""
    from shoal.cli import inspect

    inspect.plan(settings, model, node or [], threads, hardware, as_json)


@settings(EngineSettings)
def profile(
    settings: EngineSettings,
    typed: typer.Context,
    nodes: Nodes = 2,
    url: Url = "",
    key: Key = "",
    seconds: Annotated[int, flag("--seconds", "How long to load the cluster.", min=1, max=3600)] = 30,
    streams: Annotated[int, flag("--streams", "Requests that run at once.", min=1, max=4096)] = 4,
    kv_cache: Annotated[
        Switch,
        flag("--kv-cache", "off: compare one answer with the KV cache and with all of it computed for each token, and nothing else."),
    ] = Switch.ON,
    tokens: Annotated[int, flag("--tokens", "Tokens of that answer.", min=2, max=4096)] = 64,
    html: Annotated[Path | None, flag("--html", "Also write the profile as a page.", metavar="FILE")] = None,
    chrome: Annotated[Path | None, flag("--chrome", "Also write every step as a trace for Perfetto.", metavar="FILE")] = None,
    memory: Memory = "",
    threads: Threads = 0,
    runtime: Runtime = RuntimeName.AUTO,
    as_json: Json = False,
) -> None:
    """Load a cluster with requests and show where the time goes, and what would help.

    Without --url a cluster is started here. Example: [bold]shoal profile --url http://192.168.1.20:8000 --html profile.html[/bold]
    """
    from shoal.cli.asking import ChatOptions

    settings, model = _named(typed, settings)
    asking = ChatOptions(url, key, model)
    if kv_cache is Switch.ON:
        from shoal.cli.profile import profile

        profile(settings, node_settings(memory, threads, runtime), nodes, asking, seconds, streams, html, chrome, as_json)
        return
    if asking.url or html is not None or chrome is not None:
        raise ConfigError(
            "--kv-cache off compares on a cluster that is started here, as text or JSON: leave out --url, --html and --chrome"
        )
    from shoal.cli.kv_comparison import compare

    compare(settings, node_settings(memory, threads, runtime), nodes, tokens, as_json)


@settings(EngineSettings)
def profile_moe(
    settings: EngineSettings,
    batch: Annotated[int, flag("--batch-size", "Sequences that run at once.", min=1, max=4096)] = 1,
    prompt: Annotated[int, flag("--prompt", "Tokens of each sequence's prompt.", min=1)] = 32,
    steps: Annotated[int, flag("--steps", "Steps to measure, after half as many to warm up.", min=1)] = 16,
    chart: Annotated[Path | None, flag("--chart", "Write what disk and processor did in the last step, as an SVG image.")] = None,
    memory: Memory = "",
    threads: Threads = 0,
    runtime: Runtime = RuntimeName.NATIVE,
    as_json: Json = False,
) -> None:
    """Run random tokens through a model on this machine, and show what disk and processor do.

    Example: [bold]shoal profile-moe --model big.gguf --memory 3GiB --batch-size 64[/bold]
    """
    from shoal.cli import moe

    moe.profile(settings, node_settings(memory, threads, runtime), batch, prompt, steps, chart, as_json)


@settings(EngineSettings)
def infer_moe(
    settings: EngineSettings,
    prompts: Annotated[Path, typer.Argument(metavar="PROMPTS", help='A prompt on each line; in a .jsonl file, an object with a "prompt".')],
    target: Annotated[Path, flag("--output", "Results, one per line, in the order of the prompts.", short="-o")],
    tokens: Annotated[int, flag("--max-tokens", "Most tokens of an answer.", min=1)] = 128,
    batch: Annotated[str, flag("--batch-size", "Prompts that run at once; auto: by --strategy.")] = "auto",
    strategy: Annotated[
        Strategy, flag("--strategy", "What is to be soon: the first answer, or all of them; auto: by this machine's profile.")
    ] = Strategy.AUTO,
    memory: Memory = "",
    threads: Threads = 0,
    runtime: Runtime = RuntimeName.AUTO,
    hardware: Annotated[
        str,
        flag(
            "--hardware-config", "A hardware profile to choose the batch by: a .toml file, or a name; see docs/planning.md.", metavar="FILE"
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Answer a file of prompts with a model on this machine, as many at once as is fastest.

    Example: [bold]shoal infer-moe prompts.txt -o answers.jsonl --model big.gguf --memory 3GiB[/bold]
    """
    from shoal.cli import moe

    if batch != "auto" and not (batch.isdecimal() and 1 <= int(batch) <= 4096):
        raise ConfigError(f"--batch-size is a number from 1 to 4096 or auto, not '{batch}'")
    size = 0 if batch == "auto" else int(batch)
    moe.infer(settings, node_settings(memory, threads, runtime), prompts, target, tokens, size, strategy, hardware, as_json)


@settings(EngineSettings)
def bench(
    settings: EngineSettings,
    nodes: Nodes = 1,
    threads: Threads = 0,
    runtime: Runtime = RuntimeName.AUTO,
    repeat: Annotated[int, flag("--repeat", "Number of runs; the median is shown.", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """Measure a local cluster: decoding 1 and 8 streams, and a prompt of 512 tokens. Example: [bold]shoal bench --nodes 2 --threads 1[/bold]"""
    from shoal.cli.bench import bench

    bench(settings, node_settings(threads=threads, runtime=runtime), nodes, repeat, as_json)


def doctor(
    measure: Annotated[
        bool, flag("--measure", "Measure processor, memory and disk for about ten seconds, and keep the profile for `plan` and `join`.")
    ] = False,
    threads: Annotated[int, flag("--threads", "Threads to measure this machine with; 0: every core.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Show what this machine can do, how much of it shoal will use, and what is wrong."""
    from shoal.cli import inspect
    from shoal.executor.runtimes import check_runtime

    if measure:
        here = from_environment(NodeSettings, {"threads": threads or None}, file=of_file(NodeSettings))
        check_runtime(here.runtime, here.isa)
        inspect.measure_machine(here.packed_folder, here.compute_threads, here.isa, as_json)
    else:
        inspect.doctor(as_json)
