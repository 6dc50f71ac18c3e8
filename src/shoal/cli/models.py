"""`shoal models`: what is known and what is here."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli.options import Json
from shoal.errors import human_bytes

app = typer.Typer(help="List, fetch and remove models.", invoke_without_command=True)


@app.callback()
def default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models(as_json=False)


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models that shoal knows by name, and which are here. Any .gguf file, model directory or hf:org/name works as well."""
    from shoal.cli.show import Rows, emit, out
    from shoal.models.catalogue import catalogue
    from shoal.models.sources import pulled

    here, known = pulled(), catalogue()
    if as_json:
        emit([{"name": name, "model": e.title, "bytes": e.size, "fetched": name in here} for name, e in known.items()])
        return
    rows = [
        {"name": name, "model": e.title, "size": human_bytes(e.size), "fetched": "yes" if name in here else "no"}
        for name, e in known.items()
    ]
    out.print(Rows(rows))


@app.command("pull")
def pull_model(name: Annotated[str, typer.Argument(help="A name of the list, or hf:org/name[@revision].")]) -> None:
    """Fetch a model, checked by hash. What broke off goes on where it stopped. Example: [bold]shoal models pull smollm2-135m[/bold]"""
    from shoal.cli.show import downloading, line_out
    from shoal.models.sources import pull

    with downloading(name) as report:
        path = pull(name, report)
    line_out(str(path))


@app.command("rm")
def remove_model(name: Annotated[str, typer.Argument(help="A name of the list.")]) -> None:
    """Delete a fetched model. Example: [bold]shoal models rm tinyllama-1.1b[/bold]"""
    from shoal.cli.show import line
    from shoal.models.sources import remove

    freed = remove(name)
    line(f"{human_bytes(freed)} freed" if freed else f"{name} was not here")
