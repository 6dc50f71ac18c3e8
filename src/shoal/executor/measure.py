"""How fast this machine runs layers, measured when a node starts; placement uses the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import structlog

from shoal import allowance
from shoal.config import KvType, NodeSettings
from shoal.errors import ConfigError, WeightsUnreadable
from shoal.executor.disk_speed import sampled_disk
from shoal.executor.machine_profile import remembered
from shoal.native import BLOCK_TOKENS, kernels
from shoal.settings import parse_bytes
from shoal.sizes import human_bytes

if TYPE_CHECKING:
    from shoal.native import Dense, GroupedQuery, Linear

log = structlog.get_logger()

_HIDDEN, _INTERMEDIATE, _HEADS, _KV_HEADS, _HEAD_DIM = 1024, 4096, 16, 4, 64
_LAYERS = 8  # about 60 MB of 4-bit weights: larger than most caches
_PREFILL_LAYERS, _ROWS = 2, 64  # enough where arithmetic is the limit; a node with one core finishes in 0.1 s


@dataclass(frozen=True)
class Speed:
    bytes_per_second: float
    """Bytes of weights per second when decoding one row."""
    flops: float
    """Operations per second at prefill."""
    disk: float = 0.0
    """Bytes of weights per second from the disk; 0: weights cannot be streamed."""


def usable_memory(settings: NodeSettings) -> int:
    """Bytes that weights, KV blocks and journals may take."""
    if not settings.memory:
        return allowance.usable_memory()
    wanted, here = parse_bytes(settings.memory), allowance.memory()
    if wanted > here.total:
        log.warning(
            "more memory was promised than there is; the system may end this process",
            promised=human_bytes(wanted),
            total=human_bytes(here.total),
            limited_by=here.source or "the machine",
        )
    return wanted


_DISK = 1e9
"""Bytes per second that a disk is taken to read which was not measured."""


def measure(threads: int, isa: str = "", packed: Path | None = None) -> Speed:
    """Times a few layers of 4-bit weights; takes some tenths of a second. Without the kernels, it times NumPy. packed: where weights are that
    are read from disk while the model runs, which only the kernels can do; None: none are."""
    if kernels() is None:
        return _measure_numpy()
    speed = _measure_kernels(threads, isa)
    return speed if packed is None else replace(speed, disk=_disk(packed))


def _disk(folder: Path) -> float:
    """Bytes per second of the disk of a folder, as `shoal doctor --measure` found them, or else taken to be."""
    try:
        profile = remembered()
    except ConfigError as unreadable:
        log.warning("the profile of this machine is of no use", reason=str(unreadable))
        profile = None
    if profile is None or profile.measured.folder != str(folder) or not profile.hardware.links:
        return _sampled(folder)
    found = profile.hardware.links[0].bytes_per_second
    log.info("the speed of the disk is the one that was measured", folder=str(folder), bytes_per_second=found, on=profile.measured.on)
    return found


def _sampled(folder: Path) -> float:
    """By reading a little of what was packed before, or else taken to be."""
    try:
        found = sampled_disk(folder)
    except (OSError, WeightsUnreadable) as unreadable:
        log.warning("the speed of the disk was not sampled", folder=str(folder), reason=str(unreadable))
        found = None
    if found is None:
        log.info("the speed of the disk is a guess; `shoal doctor --measure` measures it", folder=str(folder), bytes_per_second=_DISK)
        return _DISK
    log.info("the speed of the disk was sampled; `shoal doctor --measure` measures it", folder=str(folder), bytes_per_second=round(found))
    return found


def median_seconds(run: Callable[[], object], times: int) -> float:
    """The median over some calls, after one call to warm up."""
    run()
    seconds: list[float] = []
    for _ in range(times):
        began = perf_counter()
        run()
        seconds.append(perf_counter() - began)
    return median(seconds)


def _measure_kernels(threads: int, isa: str) -> Speed:
    module = kernels()
    assert module is not None
    q, kv = _HEADS * _HEAD_DIM, _KV_HEADS * _HEAD_DIM
    attention = [(q, _HIDDEN), (kv, _HIDDEN), (kv, _HIDDEN), (_HIDDEN, q)]
    mlp = [(_INTERMEDIATE, _HIDDEN), (_INTERMEDIATE, _HIDDEN), (_HIDDEN, _INTERMEDIATE)]
    heads = {"q_heads": _HEADS, "kv_heads": _KV_HEADS, "key_dim": _HEAD_DIM, "value_dim": _HEAD_DIM, "scale": 0.125}

    def linear(n: int, k: int) -> Linear:
        return module.Linear(module.pack("q4_0", "q4", np.zeros((n, k // 32 * 18), np.uint8), k))

    def layer() -> tuple[GroupedQuery, Dense]:
        around = module.Around(module.Norm(np.ones(_HIDDEN, np.float32), 1e-5))
        attend = module.GroupedQuery(around, *(linear(*shape) for shape in attention), **heads)
        gate, up, down = (linear(*shape) for shape in mlp)
        return attend, module.Dense(around, (gate, up, down))

    layers = [layer() for _ in range(_LAYERS)]
    stage = module.Stage(_HIDDEN, threads, isa)
    pool = np.zeros((_LAYERS, 2, _KV_HEADS * 2 * BLOCK_TOKENS * _HEAD_DIM * 2), np.uint8)

    def step(rows: int, count: int) -> None:
        hidden = np.ones((rows, _HIDDEN), np.float32)
        starts, positions, tables = np.array([0, rows], np.int32), np.zeros(1, np.int32), np.array([[0, 1]], np.int32)
        attends, mlps = zip(*layers[:count], strict=True)
        stage.forward(hidden, starts, positions, tables, [], list(attends), list(mlps), list(pool[:count]), KvType.BF16)

    shapes, held = attention + mlp, sum(part.nbytes for both in layers for part in both)
    flops = 2.0 * _ROWS * _PREFILL_LAYERS * sum(n * k for n, k in shapes)
    return Speed(
        held / median_seconds(lambda: step(1, _LAYERS), 9),
        flops / median_seconds(lambda: step(_ROWS, _PREFILL_LAYERS), 3),
    )


def _measure_numpy() -> Speed:
    weights, row, rows = np.ones((4096, 4096), np.float32), np.ones(4096, np.float32), np.ones((4096, _ROWS), np.float32)
    return Speed(
        weights.nbytes / median_seconds(lambda: weights @ row, 5), 2.0 * weights.size * _ROWS / median_seconds(lambda: weights @ rows, 3)
    )
