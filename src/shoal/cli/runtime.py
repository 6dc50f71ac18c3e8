"""Checks whether this machine can run layers, before anything is started."""

from __future__ import annotations

from shoal.cli.show import err
from shoal.config import NodeSettings
from shoal.executor.runtimes import check_runtime
from shoal.native import missing


def check(node: NodeSettings) -> None:
    """Warns if layers run, but slowly. Raises ConfigError if the requested runtime or instruction set is not here, or no runtime at all."""
    check_runtime(node.runtime, node.isa)
    if why := missing():
        err.print(f"[yellow]slow:[/yellow] layers run with an ONNX runtime, many times slower than they could: {why}", soft_wrap=True)
