"""`nodes`: the members of a cluster, its events, sending nodes home, and certificates for those that join by themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.options import Json, flag, from_file, said
from shoal.control.messages import NodePart
from shoal.errors import ConfigError
from shoal.sizes import human_bytes

if TYPE_CHECKING:
    from rich.console import Group

    from shoal.cli.show import Rows
    from shoal.control.messages import ClusterDescription, NodeDescription

_HERE = "127.0.0.1:7420"

Head = Annotated[str, flag("--head", "The head's control port.", metavar="HOST:PORT", section="client", default=_HERE)]
OwnHead = Annotated[str, flag("--head", "The head's control port; may also be given before the command.", metavar="HOST:PORT")]
Events = Annotated[int, flag("--events", "Number of recent events to show.", section="client", kind=int, default=8, min=0)]
Discovery = Annotated[
    str,
    flag(
        "--discovery",
        "Show what the head publishes there, without asking it; in Redis only: redis://HOST:PORT.",
        metavar="redis://HOST:PORT",
    ),
]
ClusterName = Annotated[str, flag("--cluster", "With --discovery: the cluster's name; empty: the only one found.")]
Follow = Annotated[bool, flag("--follow", "With --discovery: go on, and print changes as they are published, until Ctrl-C.", short="-f")]
Watch = Annotated[bool, flag("--watch", "Show it again every second, until Ctrl-C.", short="-w")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The node's name, as `shoal nodes` lists it.")]

app = typer.Typer(help="List a cluster's nodes; drain or remove one; certify those that nobody pairs.", invoke_without_command=True)


@app.callback()
def nodes(
    context: typer.Context,
    head: Head = _HERE,
    as_json: Json = False,
    events: Events = 8,
    discovery: Discovery = "",
    cluster: ClusterName = "",
    follow: Follow = False,
    watch: Watch = False,
) -> None:
    """List a cluster's nodes with their layers and state, and recent events.

    Example: [bold]shoal nodes --head 192.168.1.20:7420[/bold], or, from anywhere that reaches Redis,
    [bold]shoal nodes --discovery redis://192.168.1.5 --follow[/bold]
    """
    published = _published(context, discovery, follow)
    if watch and (published or as_json or context.invoked_subcommand is not None):
        raise ConfigError("--watch shows the nodes of one head as a table; leave out --json and --discovery, which has --follow")
    head, events = from_file(context, "head", "client", head), from_file(context, "events", "client", events)
    if context.invoked_subcommand is not None:
        context.obj = head
        return
    import asyncio

    if published:
        from shoal.discovery.registry import check_installed

        check_installed()
        from shoal.cli.topology import show

        asyncio.run(show(discovery, cluster, follow, as_json))
        return

    from shoal.cli.credentials import as_operator
    from shoal.cli.show import emit, out
    from shoal.control.client import describe

    async def ask() -> ClusterDescription:
        return await as_operator(head, lambda keys: describe(head, keys))

    if watch:
        from shoal.cli.watch import watched

        async def look() -> Group:
            return _shown(await ask(), events)

        asyncio.run(watched(look))
        return
    found = asyncio.run(ask())
    if as_json:
        pipelines = [dataclasses.asdict(pipeline) for pipeline in found.pipelines]
        first = {key: value for key, value in pipelines[0].items() if key != "replica"} if pipelines else {}
        emit(
            {
                "cluster": found.cluster,
                **first,
                "pipelines": pipelines,
                "nodes": _rows(found),
                "events": found.events[-events:] if events else [],
            }
        )
        return
    out.print(_shown(found, events), soft_wrap=True)


def _shown(found: ClusterDescription, events: int) -> Group:
    """For people. events: how many of the latest."""
    from rich.console import Group
    from rich.text import Text

    from shoal.cli.show import plain

    nodes = _table(found) if found.nodes else "no nodes have joined"
    told = [Text(plain(event)) for event in (found.events[-events:] if events else [])]
    alone = len({pipeline.model for pipeline in found.pipelines}) == len(found.pipelines)
    states = [Text(plain(f"{_named(p.model, p.replica, alone)}: {p.state}")) for p in found.pipelines]
    return Group(*states, nodes, *told)


def _named(model: str, replica: int, alone: bool) -> str:
    """A pipeline's name for people. alone: no model has several copies."""
    return model if alone else f"{model}/{replica}"


def _published(context: typer.Context, discovery: str, follow: bool) -> bool:
    """Whether to read what the head publishes. SHOAL_DISCOVERY, which is also that of `serve` and `join`, does not outweigh a head that is
    named. Raises ConfigError."""
    typed = {name: context.get_parameter_source(name) for name in ("discovery", "head")}
    named = {name for name, source in typed.items() if source is not None and source.name == "COMMANDLINE"}
    if "discovery" in named and context.invoked_subcommand is not None:
        raise ConfigError(f"`shoal nodes {context.invoked_subcommand}` asks the head itself; give --head, and no --discovery")
    if named == {"discovery", "head"}:
        raise ConfigError("--head asks the head, --discovery reads what it publishes; give one of them")
    published = discovery.startswith(("redis://", "rediss://")) and ("discovery" in named or not said(context, "head"))
    if "discovery" in named and not published:
        raise ConfigError("a head publishes its nodes in Redis only: --discovery redis://HOST:PORT; --head HOST:PORT asks the head itself")
    if follow and not published:
        raise ConfigError("--follow needs --discovery redis://HOST:PORT: a head that is asked answers once")
    return published


def _rows(found: ClusterDescription) -> list[dict[str, Any]]:
    """The rows for a script."""
    return [
        {
            "name": n.name,
            "address": n.address,
            "state": n.state,
            **_layers(n.parts[0] if n.parts else NodePart()),
            "weight_bytes": sum(part.weight_bytes for part in n.parts),
            "memory_bytes": n.memory,
            "threads": n.threads,
            "runtime": n.parts[0].runtime if n.parts else "",
            "machine": n.machine,
            "silence_seconds": round(n.silence, 3),
            "parts": [{"model": part.model, "replica": part.replica, **_layers(part)} for part in n.parts],
        }
        for n in found.nodes
    ]


def _layers(part: NodePart) -> dict[str, int | None]:
    return {
        "first_layer": part.first_layer if part.end_layer else None,
        "last_layer": part.end_layer - 1 if part.end_layer else None,
    }


def _table(found: ClusterDescription) -> Rows:
    from shoal.cli.show import Rows, layers, plain

    several = len(found.pipelines) > 1
    alone = len({pipeline.model for pipeline in found.pipelines}) == len(found.pipelines)

    def parts(node: NodeDescription) -> str:
        spans = [(part, layers(part.first_layer, part.end_layer)) for part in node.parts]
        return ", ".join(f"{_named(p.model, p.replica, alone)} {span}".strip() if several else span for p, span in spans) or "-"

    return Rows(
        [
            {
                "name": plain(n.name),
                "address": n.address,
                "state": plain(n.state),
                "layers": plain(parts(n)),
                "weights": human_bytes(sum(part.weight_bytes for part in n.parts)),
                "memory": human_bytes(n.memory),
                "threads": n.threads,
                "runtime": plain(next((part.runtime for part in n.parts if part.runtime), n.machine)),
                "heard": f"{n.silence:.1f} s ago",
            }
            for n in found.nodes
        ]
    )


def _dismiss(head: str, name: str, drain: bool) -> None:
    import asyncio

    from shoal.cli.credentials import as_operator
    from shoal.cli.show import line
    from shoal.control.client import dismiss

    answer = asyncio.run(as_operator(head, lambda keys: dismiss(head, name, drain, keys)))
    if not answer.done:
        raise ConfigError(answer.message)
    line(answer.message)


@app.command("drain")
def drain(context: typer.Context, name: Name, head: OwnHead = "") -> None:
    """Move a node's layers to others, then let it leave. Streams go on. Example: [bold]shoal nodes drain node-2[/bold]"""
    _dismiss(head or context.obj, name, drain=True)


@app.command("remove")
def remove(context: typer.Context, name: Name, head: OwnHead = "") -> None:
    """Remove a node at once; other nodes rebuild its layers. Example: [bold]shoal nodes remove node-2[/bold]"""
    _dismiss(head or context.obj, name, drain=False)


@app.command("certify")
def certify(
    target: Annotated[Path, flag("--output", "The file to write. Whoever reads it can join.", short="-o")],
    name: Annotated[str, flag("--name", "The name in the certificate; nodes that share one join under names of their own.")] = "node",
    days: Annotated[int, flag("--days", "How long it is valid.", min=1, max=3652)] = 365,
    gateway: Annotated[bool, flag("--gateway", "For gateways instead of nodes.")] = False,
    witness: Annotated[bool, flag("--witness", "For `shoal witness` instead of nodes.")] = False,
) -> None:
    """Write a key and a certificate with which nodes join without a pairing code: for machines that nobody types one at.

    They are issued by this machine's authority, which the head needs. A node looks for them in keys/HOST-PORT.pem in its data folder, after the
    head's address, a gateway in keys/gateway-HOST-PORT.pem. Example: [bold]shoal nodes certify -o node.pem[/bold]
    """
    from shoal.cli.relocation import move_in
    from shoal.cli.show import line_out
    from shoal.folders import keys_dir
    from shoal.launch.keys import authority
    from shoal.security.authority import FILE
    from shoal.security.certificates import Role

    move_in()
    role = Role.GATEWAY if gateway else Role.WITNESS if witness else Role.NODE
    credentials = authority().credentials(role, name, days)
    credentials.save(target)
    line_out(f"wrote {target}, valid until {credentials.expires:%Y-%m-%d}, issued by {keys_dir() / 'authority' / FILE}")
