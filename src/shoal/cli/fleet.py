"""`shoal fleet`: how many copies of its models a running server has, and should have."""

from __future__ import annotations

import typer

from shoal.cli.models import Server, asking
from shoal.cli.options import Json, Key

app = typer.Typer(help="Show how a running server scales its models.", no_args_is_help=True)


@app.callback()
def fleet() -> None:
    """Show how a running server scales its models."""


@app.command("plan")
def plan(context: typer.Context, url: Server = "", api_key: Key = "", as_json: Json = False) -> None:
    """Show how many copies of each model there are and should be, what would be done about it, and what keeps it from being done.

    Asking changes nothing. Example: [bold]shoal fleet plan --url http://192.168.1.20:8000[/bold]
    """
    from shoal.cli.fleet_plan import fleet_plan

    fleet_plan(asking(context, url, api_key), as_json)
