"""Checks whether this machine can run layers, before anything is started."""

from __future__ import annotations

from shoal.cli.show import err
from shoal.config import RuntimeName
from shoal.executor.runtimes import check_runtime
from shoal.native import missing


def check(runtime: RuntimeName) -> None:
    """Warns if layers run, but slowly. Raises ConfigError if the requested runtime is not here, or none at all."""
    check_runtime(runtime)
    if why := missing():
        err.print(f"[yellow]slow:[/yellow] layers run with an ONNX runtime, many times slower than they could: {why}", soft_wrap=True)
