"""`shoal models`: what is known and what is here."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli.options import Json
from shoal.cli.show import downloading, emit, err, out, table
from shoal.errors import human_bytes
from shoal.models.catalogue import catalogue
from shoal.models.sources import pull, pulled, remove

app = typer.Typer(help="List, fetch and remove models.", invoke_without_command=True)


@app.callback()
def default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models(as_json=False)


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models that shoal knows by name, and which are here. Any .gguf file, model directory or hf:org/name works as well."""
    here = pulled()
    rows = [
        {"name": name, "model": entry.title, "size": human_bytes(entry.size), "fetched": "yes" if name in here else "no"}
        for name, entry in catalogue().items()
    ]
    if as_json:
        emit([{**row, "bytes": catalogue()[str(row["name"])].size, "fetched": row["fetched"] == "yes"} for row in rows])
    else:
        out.print(table("", rows))


@app.command("pull")
def pull_model(name: Annotated[str, typer.Argument(help="A name of the list, or hf:org/name[@revision].")]) -> None:
    """Fetch a model, checked by hash. What broke off goes on where it stopped. Example: [bold]shoal models pull smollm2-135m[/bold]"""
    with downloading(name) as report:
        path = pull(name, report)
    out.print(str(path), soft_wrap=True, highlight=False)


@app.command("rm")
def remove_model(name: Annotated[str, typer.Argument(help="A name of the list.")]) -> None:
    """Delete a fetched model. Example: [bold]shoal models rm tinyllama-1.1b[/bold]"""
    freed = remove(name)
    err.print(f"{human_bytes(freed)} freed" if freed else f"{name} was not here")
