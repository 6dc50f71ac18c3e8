"""`run` and `chat`: talk to a model, on a cluster that runs or on one started for the purpose."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from time import perf_counter
from typing import Annotated, Any

import httpx
import typer
import uvloop

from shoal.cli.cluster import fetched, stop_signal, until
from shoal.cli.local import local_cluster
from shoal.cli.options import Memory, Nodes, Runtime, Threads, node_settings, settings
from shoal.cli.show import err, placement_rows, table
from shoal.config import EngineSettings, HeadSettings, NodeSettings, RuntimeName, api_key
from shoal.errors import ClusterError, ConfigError, InvalidRequest
from shoal.gateway.app import create_app
from shoal.gateway.keyring import Keyring
from shoal.gateway.server import ApiServer, listening
from shoal.node.head import Head

DEFAULT_PROMPT = "Why is the sky blue?"


@dataclasses.dataclass
class Told:
    """What an answer cost."""

    text: str = ""
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """After the first token."""
        return (self.tokens - 1) / (self.seconds - self.first) if self.tokens > 1 and self.seconds > self.first else 0.0


async def stream_chat(url: str, body: dict[str, Any], key: str = "") -> AsyncIterator[dict[str, Any]]:
    """The events of a streamed chat completion. Raises ClusterError, InvalidRequest."""
    timeout, headers = httpx.Timeout(10.0, read=None), {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with (
            httpx.AsyncClient(timeout=timeout, headers=headers, trust_env=False) as http,
            http.stream("POST", f"{url.rstrip('/')}/v1/chat/completions", json={**body, "stream": True}) as response,
        ):
            if response.status_code != 200:
                raise _refusal(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise ClusterError(event["error"]["message"])
                    yield event
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ClusterError(
            f"{url} does not answer: {str(error) or type(error).__name__}; is `shoal up` or `shoal serve` running there?"
        ) from error


def _refusal(status: int, raw: bytes) -> Exception:
    try:
        message = str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = raw.decode(errors="replace")[:200]
    return InvalidRequest(message) if status in (400, 401, 403, 404, 413) else ClusterError(message)


async def say(url: str, messages: list[dict[str, str]], options: dict[str, Any], key: str = "") -> Told:
    """Streams an answer to stdout."""
    told, began = Told(), perf_counter()
    body = {"messages": messages, "stream_options": {"include_usage": True}, **options}
    async for event in stream_chat(url, body, key):
        if usage := event.get("usage"):
            told.tokens = usage["completion_tokens"]
        for choice in event["choices"]:
            text = choice["delta"].get("content") or ""
            if text and not told.first:
                told.first = perf_counter() - began
            told.text += text
            sys.stdout.write(text)
            sys.stdout.flush()
    told.seconds = perf_counter() - began
    if not told.text.endswith("\n"):
        sys.stdout.write("\n")
        sys.stdout.flush()
    return told


@contextlib.asynccontextmanager
async def served(settings: HeadSettings, node: NodeSettings, nodes: int, stop: asyncio.Event) -> AsyncGenerator[tuple[str, Head] | None]:
    """A local cluster with its API on a free port; None where the user lost patience."""
    if (model := await fetched(settings.model, stop)) is None:
        yield None
        return
    async with local_cluster(settings, node, model, nodes) as cluster:
        with err.status(f"starting {nodes} node(s) with {model.name}"):
            if not await until(stop, cluster.until_ready()):
                yield None
                return
        with listening("127.0.0.1", 0) as address:
            api = ApiServer(create_app(cluster.head, keyring=Keyring(None)), address)
            serving = asyncio.ensure_future(api.serve())
            try:
                yield f"http://127.0.0.1:{api.port}", cluster.head
            finally:
                cluster.head.refuse("the cluster is shutting down")
                api.stop()
                await serving


def _summary(head: Head, told: Told) -> None:
    assert head.placement is not None
    rows = placement_rows(head.placement)
    timings: dict[str, Any] = head.timings(rows=1)
    for row, stage in zip(rows, timings.get("stages", []), strict=False):
        row["compute_ms"] = round(stage["compute"] * 1e3, 3)
        row["prepare_and_encode_ms"] = round((stage["prepare"] + stage["encode"]) * 1e3, 3)
    for row in rows:
        del row["decode_ms"], row["prefill_tokens_per_second"]
    err.print(table("", rows))
    if timings:
        err.print(f"per hop {timings['overhead_per_hop'] * 1e3:.2f} ms (sockets, encoding, scheduling; {len(rows) + 1} hops a token)")
    err.print(f"{told.tokens} tokens, first after {told.first * 1e3:.0f} ms, then {told.tokens_per_second:.1f} tokens/s")


def local_settings(engine: EngineSettings) -> HeadSettings:
    """A head for a cluster of this machine's own, on free ports."""
    return HeadSettings(**{f.name: getattr(engine, f.name) for f in dataclasses.fields(EngineSettings)}, port=0, control_port=0)


async def _run(engine: EngineSettings, node: NodeSettings, nodes: int, url: str, key: str, prompt: str, options: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": prompt}]
    stop = stop_signal()
    if url:
        if not await until(stop, say(url, messages, options, key)):
            raise KeyboardInterrupt
        return
    async with served(local_settings(engine), node, nodes, stop) as there:
        if there is None:
            raise KeyboardInterrupt
        address, head = there
        told = Told()

        async def answer() -> None:
            nonlocal told
            told = await say(address, messages, options)

        if not await until(stop, answer()):
            raise KeyboardInterrupt
        _summary(head, told)


async def _chat(engine: EngineSettings, node: NodeSettings, nodes: int, url: str, key: str, system: str, options: dict[str, Any]) -> None:
    stop = stop_signal()
    if url:
        await _converse(url, system, options, stop, key)
        return
    async with served(local_settings(engine), node, nodes, stop) as there:
        if there is not None:
            await _converse(there[0], system, options, stop)


def _typed() -> asyncio.Queue[str]:
    """Lines of stdin, whatever it is; '' at its end. Read in a thread that ends with the process."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in (*iter(sys.stdin.readline, ""), ""):
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(lines.put_nowait, line)

    threading.Thread(target=read, daemon=True).start()
    return lines


async def _converse(url: str, system: str, options: dict[str, Any], stop: asyncio.Event, key: str = "") -> None:
    messages = [{"role": "system", "content": system}] if system else []
    err.print("an empty line or Ctrl-D ends the chat; Ctrl-C ends the answer or the chat")
    lines = _typed()
    while not stop.is_set():
        sys.stderr.write("> ")
        sys.stderr.flush()
        line: list[str] = []

        async def read(into: list[str] = line) -> None:
            into.append(await lines.get())

        if not await until(stop, read()) or not (text := line[0].strip()):
            return
        messages.append({"role": "user", "content": text})
        answers: list[str] = []

        async def answer(into: list[str] = answers) -> None:
            into.append((await say(url, messages, options, key)).text)

        if not await until(stop, answer()):
            stop.clear()
            messages.pop()
            sys.stdout.write("\n")
            continue
        messages.append({"role": "assistant", "content": answers[0]})


def _options(max_tokens: int, temperature: float, seed: int | None) -> dict[str, Any]:
    return {"max_tokens": max_tokens, "temperature": temperature, **({} if seed is None else {"seed": seed})}


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ConfigError(f"--temperature is a number of at least 0, not {value}")
    return value


Url = Annotated[str, typer.Option("--url", help="A cluster that runs, like http://127.0.0.1:8000; empty: start one.")]
Key = Annotated[str, typer.Option("--api-key", help="For a cluster that asks for one; else what SHOAL_API_KEY says.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of an answer.")]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 takes the likeliest token.", callback=_finite)]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed draws the same answer.")]


def register(app: typer.Typer) -> None:
    @app.command("run")
    @settings(EngineSettings)
    def run(  # pyright: ignore[reportUnusedFunction]
        settings: EngineSettings,
        prompt: Annotated[str, typer.Argument(help="What to ask.")] = DEFAULT_PROMPT,
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
        node, options = node_settings(memory, threads, runtime), _options(max_tokens, temperature, seed)
        uvloop.run(_run(settings, node, nodes, url, key or api_key(), prompt, options))

    @app.command("chat")
    @settings(EngineSettings)
    def chat(  # pyright: ignore[reportUnusedFunction]
        settings: EngineSettings,
        nodes: Nodes = 2,
        url: Url = "",
        key: Key = "",
        system: Annotated[str, typer.Option("--system", help="What the model is told first.")] = "",
        max_tokens: MaxTokens = 1024,
        temperature: Temperature = 0.7,
        seed: Seed = None,
        memory: Memory = "",
        threads: Threads = 0,
        runtime: Runtime = RuntimeName.AUTO,
    ) -> None:
        """Talk with a model, turn by turn. Example: [bold]shoal chat --model qwen2.5-coder-1.5b[/bold]"""
        node, options = node_settings(memory, threads, runtime), _options(max_tokens, temperature, seed)
        uvloop.run(_chat(settings, node, nodes, url, key or api_key(), system, options))
