"""`nodes`: who is in a cluster, what happened to it, and sending nodes home."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from shoal.cli.credentials import as_operator
from shoal.cli.options import Json
from shoal.cli.show import emit, err, out, table
from shoal.control.client import describe, dismiss
from shoal.errors import ConfigError, human_bytes

Head = Annotated[str, typer.Option("--head", metavar="HOST:PORT", help="The head's control port.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="As `shoal nodes` lists it.")]
_HERE = "127.0.0.1:7420"

app = typer.Typer(help="List a cluster's nodes; drain or remove one.", invoke_without_command=True)


@app.callback()
def nodes(context: typer.Context, head: Head = _HERE, as_json: Json = False, story: int = 8) -> None:
    """List a cluster's nodes: what each holds and how it does, and what happened lately.

    Example: [bold]shoal nodes --head 192.168.1.20:7420[/bold]
    """
    if context.invoked_subcommand is not None:
        context.obj = head
        return
    found = asyncio.run(as_operator(head, lambda keys: describe(head, keys)))
    rows = [
        {
            "name": n.name,
            "address": n.address,
            "state": n.state,
            "layers": f"{n.first_layer}-{n.end_layer - 1}" if n.end_layer else "",
            "weights": human_bytes(n.weight_bytes),
            "memory": human_bytes(n.memory),
            "threads": n.threads,
            "runtime": n.runtime or n.machine,
            "heard": f"{n.silence:.1f} s ago",
        }
        for n in found.nodes
    ]
    happened = list(found.story)[-story:] if story > 0 else []
    if as_json:
        emit({"cluster": found.cluster, "model": found.model, "state": found.state, "epoch": found.epoch, "nodes": rows, "story": happened})
        return
    out.print(f"{found.model}: {found.state}", markup=False)
    out.print(table("", rows) if rows else "no nodes have joined")
    for line in happened:
        out.print(line, markup=False, highlight=False)


def _dismiss(head: str, name: str, drain: bool) -> None:
    answer = asyncio.run(as_operator(head, lambda keys: dismiss(head, name, drain, keys)))
    if not answer.done:
        raise ConfigError(answer.message)
    err.print(answer.message, markup=False)


@app.command("drain")
def drain(context: typer.Context, name: Name) -> None:
    """Move a node's layers to others, then let it leave. Streams go on. Example: [bold]shoal nodes drain node-2[/bold]"""
    _dismiss(context.obj, name, drain=True)


@app.command("remove")
def remove(context: typer.Context, name: Name) -> None:
    """Send a node home at once; what it held is filled anew elsewhere. Example: [bold]shoal nodes remove node-2[/bold]"""
    _dismiss(context.obj, name, drain=False)
