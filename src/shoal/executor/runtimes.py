"""Which runtime runs a node's layers: the one asked for, or the fastest of those installed."""

from __future__ import annotations

from functools import partial

from shoal.config import Precision, RuntimeName
from shoal.executor.base import LayersFactory
from shoal.executor.native_layers import NativeLayers


def factory(runtime: RuntimeName, precision: Precision, threads: int, isa: str) -> LayersFactory:
    return partial(NativeLayers, precision=precision, threads=threads, isa=isa)
