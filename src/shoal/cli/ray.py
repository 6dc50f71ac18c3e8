"""`ray`: a head and nodes on the machines of a Ray cluster."""

from __future__ import annotations

from importlib.util import find_spec
from types import FrameType
from typing import Annotated

import typer

from shoal.cli.options import Runtime, flag, node_settings, settings
from shoal.config import HeadSettings, RuntimeName
from shoal.errors import ConfigError

app = typer.Typer(help="Run a cluster on the machines of a Ray cluster.", no_args_is_help=True)

Address = Annotated[
    str,
    flag("--address", "Ray's cluster, like HOST:6379; auto: the one that this machine is part of.", also=("RAY_ADDRESS",)),
]
Cluster = Annotated[str, flag("--cluster", "The name that `shoal ray up` was given.")]


def check_installed() -> None:
    """Raises ConfigError if Ray cannot be used."""
    if find_spec("ray") is None:
        raise ConfigError(
            "`shoal ray` needs Ray, which is not installed; pip install 'shoal[ray]', here and on the machines of Ray's cluster"
        )


@app.command("up")
@settings(HeadSettings, leave_out=("host", "discovery", "min_nodes", "spread", "pairing_port"))
def up(
    settings: HeadSettings,
    nodes: Annotated[int, flag("--nodes", "Nodes to start, on as many machines as Ray has.", short="-n", min=1, max=1024)] = 2,
    threads: Annotated[int, flag("--threads", "Compute threads of each node, which Ray reserves as CPUs.", min=1)] = 2,
    memory: Annotated[str, flag("--memory", "Memory limit of each node, which Ray reserves.")] = "2GiB",
    runtime: Runtime = RuntimeName.AUTO,
    address: Address = "auto",
) -> None:
    """Start a head and nodes as Ray actors, and keep them until Ctrl-C. The API is on the machine of the head.

    Ray starts a lost actor again, and streams go on meanwhile; Ray's autoscaler is asked for machines that are missing.

    Example: [bold]shoal ray up --nodes 4 --model qwen2.5-coder-1.5b --memory 4GiB[/bold]
    """
    import signal
    import threading

    check_installed()
    node = node_settings(memory, threads, runtime)
    from shoal.cli.show import line
    from shoal.ray_cluster.cluster import RayCluster, connect

    connect(address)  # which sets handlers of its own for signals
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    RayCluster(settings, node, nodes, line).run(stop)


@app.command("scale")
def scale(
    nodes: Annotated[int, typer.Argument(help="Nodes from now on.", min=1, max=1024)],
    cluster: Cluster = "shoal",
    address: Address = "auto",
    at_least: Annotated[bool, flag("--at-least", "Change nothing if there are more.")] = False,
) -> None:
    """Give a running cluster more or fewer nodes. A node that goes moves its layers first. Example: [bold]shoal ray scale 6[/bold]"""
    _order(nodes, cluster, address, at_least)


@app.command("down")
def down(cluster: Cluster = "shoal", address: Address = "auto") -> None:
    """End a running cluster, as Ctrl-C at its `shoal ray up` does. Example: [bold]shoal ray down[/bold]"""
    _order(0, cluster, address)


def _order(nodes: int, cluster: str, address: str, at_least: bool = False) -> None:
    check_installed()
    from shoal.ray_cluster.cluster import connect, order

    connect(address)
    order(cluster, nodes, at_least)
