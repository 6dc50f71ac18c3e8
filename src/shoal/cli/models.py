"""`shoal models`: the catalogue, the models on this machine, and the hub."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.options import Json, Key, flag, from_file
from shoal.config import MOST_REPLICAS
from shoal.errors import ConfigError
from shoal.sizes import human_bytes

if TYPE_CHECKING:
    from shoal.cli.asking import ChatOptions

app = typer.Typer(help="List, fetch, remove and search models; load and unload those of a running server.", invoke_without_command=True)

Name = Annotated[
    str,
    typer.Argument(help="A name from the list, or one of the hub: org/name, org/name:Q4_K_M, hf:org/name@revision.", show_default=False),
]


@app.callback()
def default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models(as_json=False)


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models on this machine and those of the catalogue.

    Models that Hugging Face's tools, Ollama or LM Studio fetched are used in place. Any .gguf file, model directory or org/name of the
    hub works as well.
    """
    from shoal.cli.show import Rows, emit, out
    from shoal.models.catalogue import catalogue
    from shoal.models.inventory import inventory
    from shoal.models.quantization import label

    here = inventory()
    names = {model.name for model in here}
    known = {name: entry for name, entry in catalogue().items() if name not in names}
    if as_json:
        rows: list[dict[str, Any]] = [
            {"name": m.name, "fetched": True, "owner": m.owner, "bytes": m.bytes, "quantization": m.quantization, "path": str(m.path)}
            for m in here
        ]
        rows += [
            {"name": name, "fetched": False, "owner": "", "bytes": entry.size, "quantization": label(entry.file), "path": ""}
            for name, entry in known.items()
        ]
        emit([{**row, "model": catalogue()[row["name"]].title if row["name"] in catalogue() else ""} for row in rows])
        return
    shown = [{"name": m.name, "size": human_bytes(m.bytes), "quantization": m.quantization or "-", "where": m.owner} for m in here]
    shown += [
        {"name": name, "size": human_bytes(entry.size), "quantization": label(entry.file), "where": "not fetched"}
        for name, entry in known.items()
    ]
    out.print(Rows(shown))


@app.command("pull")
def pull_model(name: Name) -> None:
    """Fetch a model and check its hash. An interrupted download continues where it stopped.

    Example: [bold]shoal models pull bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M[/bold]
    """
    from shoal.cli.show import downloading, line_out
    from shoal.models.sources import pull

    with downloading(name) as report:
        path = pull(name, report)
    line_out(str(path))


@app.command("rm")
def remove_model(name: Name, yes: Annotated[bool, flag("--yes", "Do not ask.", short="-y")] = False) -> None:
    """Delete a model that shoal fetched. Models of other tools are not touched. Example: [bold]shoal models rm tinyllama-1.1b[/bold]"""
    from shoal.cli.show import line
    from shoal.models.removal import removal

    found = removal(name)
    if found is None:
        line(f"{name} was not here")
        return
    found.check()
    freed = found.bytes
    if sys.stdin.isatty() and not yes and not typer.confirm(f"delete {found.name}, {human_bytes(freed)}?", err=True):
        raise typer.Exit(1)
    found.carry_out()
    line(f"{human_bytes(freed)} freed")


@app.command("search")
def search_models(
    words: Annotated[list[str], typer.Argument(help="Words in the model's name.", show_default=False)],
    limit: Annotated[int, flag("--limit", "Most models to show.", min=1, max=100)] = 20,
    as_json: Json = False,
) -> None:
    """Search the hub for models that shoal runs, most downloaded first. Example: [bold]shoal models search qwen 0.5b gguf[/bold]"""
    from shoal.cli.show import Rows, emit, line, out
    from shoal.models.hub_search import search

    text = " ".join(words).strip()
    if not text:
        raise ConfigError("give words to search for, like: shoal models search qwen2.5 gguf")
    hits = search(text, limit)
    if as_json:
        emit(
            [
                {
                    "name": hit.name,
                    "downloads": hit.downloads,
                    "likes": hit.likes,
                    "parameters": hit.parameters,
                    "quantizations": list(hit.quantizations),
                    "safetensors": hit.safetensors,
                    "gated": hit.gated,
                }
                for hit in hits
            ]
        )
        return
    if not hits:
        line(f"the hub has nothing with '{text}' that shoal runs")
        return
    out.print(Rows([_row(hit) for hit in hits]))


Server = Annotated[str, flag("--url", "The server, like http://192.168.1.20:8000; empty: on this machine.", also=("OPENAI_BASE_URL",))]


def asking(context: typer.Context, url: str, key: str) -> ChatOptions:
    """The server that a command asks."""
    from shoal.cli.asking import ChatOptions
    from shoal.cli.console import here

    url, key = from_file(context, "url", "client", url), from_file(context, "api_key", "client", key)
    return ChatOptions(url or here(), key)


@app.command("served")
def served_models(context: typer.Context, url: Server = "", api_key: Key = "", as_json: Json = False) -> None:
    """List the models that a running server serves. Example: [bold]shoal models served[/bold]"""
    from shoal.cli import served_models as work

    work.served(asking(context, url, api_key), as_json)


@app.command("show")
def show_model(context: typer.Context, name: Name, url: Server = "", api_key: Key = "", as_json: Json = False) -> None:
    """Show what a running server knows of a model: version, files with their hashes, family, quantisation, abilities.

    Example: [bold]shoal models show smollm2-135m[/bold]
    """
    from shoal.cli import served_models as work

    work.known(asking(context, url, api_key), name, as_json)


@app.command("load")
def load_model(
    context: typer.Context,
    name: Name,
    replicas: Annotated[int, flag("--replicas", "Copies, on different nodes; 0: as many as last time.", min=0, max=MOST_REPLICAS)] = 0,
    no_wait: Annotated[bool, flag("--no-wait", "Do not wait until it is served.")] = False,
    url: Server = "",
    api_key: Key = "",
) -> None:
    """Have a running server serve one more model. Example: [bold]shoal models load tinyllama-1.1b[/bold]"""
    from shoal.cli import served_models as work

    work.load(asking(context, url, api_key), name, replicas, not no_wait)


@app.command("unload")
def unload_model(context: typer.Context, name: Name, url: Server = "", api_key: Key = "") -> None:
    """Have a running server serve a model no more. Its unfinished requests end. Example: [bold]shoal models unload tinyllama-1.1b[/bold]"""
    from shoal.cli import served_models as work

    work.unload(asking(context, url, api_key), name)


@app.command("alias")
def alias_model(
    context: typer.Context,
    alias: Annotated[str, typer.Argument(help="Another name for a model.", show_default=False)],
    model: Annotated[
        str, typer.Argument(help="The model or alias that it stands for; none: the alias is removed.", show_default=False)
    ] = "",
    url: Server = "",
    api_key: Key = "",
) -> None:
    """Give a model of a running server another name. Example: [bold]shoal models alias gpt-4o-mini qwen2.5-coder-1.5b[/bold]"""
    from shoal.cli import served_models as work

    work.alias(asking(context, url, api_key), alias, model)


def _row(hit: Any) -> dict[str, Any]:
    quantizations = [*hit.quantizations, *(["safetensors"] if hit.safetensors else [])]
    first = next((q for q in ("Q4_K_M", "Q8_0") if q in quantizations), quantizations[0])
    more = f" +{len(quantizations) - 1}" if len(quantizations) > 1 else ""
    return {
        "name": hit.name,
        "fetched": _short(hit.downloads),
        "likes": _short(hit.likes),
        "size": _short(hit.parameters) if hit.parameters else "-",
        "as": first + more + (", gated" if hit.gated else ""),
    }


def _short(count: int) -> str:
    """1234567 → '1.2M'."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}" if count < 100 * size else f"{count // size}{unit}"
    return str(count)
