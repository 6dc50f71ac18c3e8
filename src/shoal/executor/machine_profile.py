"""This machine's hardware profile: measured by `shoal doctor --measure`, kept in the cache, and read again where something is planned."""

from __future__ import annotations

import platform
import re
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from shoal import allowance
from shoal.errors import ConfigError
from shoal.executor.disk_speed import DiskSpeed, disk_speed
from shoal.executor.kernel_speed import Points, ProcessorSpeed, computing, kernel_speed
from shoal.executor.other_load import OtherLoad
from shoal.executor.streaming_overhead import StreamingOverhead, streaming_overhead
from shoal.folders import cache_dir
from shoal.native import instruction_set, missing
from shoal.placement.hardware import Hardware
from shoal.placement.hardware_format import Measured, measured, parse, written
from shoal.whole_file import write_whole

_NAME = "here"


def profile_path() -> Path:
    """Raises ConfigError if there is no home."""
    return cache_dir() / "hardware.toml"


@dataclass(frozen=True)
class MachineProfile:
    hardware: Hardware
    measured: Measured


def remembered(path: Path | None = None) -> MachineProfile | None:
    """The profile of this machine; None if it was not measured so far, or on another machine. Raises ConfigError for a file that cannot
    be read."""
    path = path or profile_path()
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as fault:
        raise ConfigError(f"the hardware profile '{path}' cannot be read ({fault}); `shoal doctor --measure` writes a new one") from fault
    hardware, found = parse(str(path), values), measured(str(path), values)
    if found is None or (found.machine, found.processor, found.instruction_set) != _identity():
        return None
    return MachineProfile(hardware, found)


def _identity() -> tuple[str, str, str]:
    return platform.node(), processor_name(), instruction_set() or ""


def processor_name() -> str:
    known = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", known.read_text()) if known.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def measure_hardware(
    folder: Path | None, threads: int, isa: str = "", tell: Callable[[str], None] = lambda line: None
) -> tuple[dict[str, Any], float | None]:
    """The profile's values, as `parse` takes them, and the share of the processors that other programs took meanwhile, if the system
    tells.

    folder: where packed weights are; None: weights are never streamed, and the profile has no disk. tell: is given a line for each
    thing that was measured. Raises ConfigError if something cannot be measured, and OSError.
    """
    if instruction_set() is None:
        raise ConfigError(f"without the kernels there is nothing to measure: {missing()}")
    others = OtherLoad()
    kernels = kernel_speed(threads, isa)
    for line in _kernel_lines(kernels):
        tell(line)
    disk = overhead = None
    if folder is not None:
        disk, overhead = disk_speed(folder, computing=computing(threads, isa)), streaming_overhead(folder, threads, isa)
        for line in _disk_lines(disk, overhead):
            tell(line)
    machine, processor, instructions = _identity()
    found = Measured(machine, processor, instructions, threads, str(folder or ""), datetime.now(UTC).date().isoformat())
    return _values(found, kernels, disk, overhead), others.share()


def _values(found: Measured, kernels: ProcessorSpeed, disk: DiskSpeed | None, overhead: StreamingOverhead | None) -> dict[str, Any]:
    tiers = [{"name": "memory", "size": str(allowance.usable_memory())}]
    links: list[dict[str, Any]] = []
    if disk is not None and overhead is not None:
        tiers.insert(0, {"name": "disk", "size": str(shutil.disk_usage(found.folder).total)})
        links.append(
            {
                "name": "disk",
                "bytes_per_second": _rounded(disk.bytes_per_second),
                "seconds": _rounded(disk.seconds),
                "copies": _rounded(kernels.bytes_per_second / disk.checked),
                "read_seconds": _rounded(overhead.read),
            }
        )
    device = {
        "name": "processor",
        "tier": "memory",
        "bytes_per_second": _rounded(kernels.bytes_per_second),
        "layer_seconds": _rounded(kernels.layer_seconds),
        "chosen_seconds": _rounded(overhead.layer if overhead else 0.0),
        "flops": _table(kernels.arithmetic),
        "reading": _table(kernels.reading),
    }
    source = f"shoal doctor --measure, {found.processor} ({found.instruction_set}), {found.threads} thread(s)"
    return {"source": source, "measured": msgspec.structs.asdict(found), "tiers": tiers, "links": links, "devices": [device]}


def _table(curves: Mapping[str, Points]) -> dict[str, list[list[float]]]:
    return {kind: [[rows, _rounded(speed)] for rows, speed in points] for kind, points in curves.items()}


def _rounded(value: float) -> float:
    """To three digits: more were not measured."""
    return float(f"{value:.3g}")


def remember(values: Mapping[str, Any], path: Path | None = None) -> Path:
    """Keeps a profile, which replaces the one before. Raises ConfigError, OSError."""
    path = path or profile_path()
    parse(_NAME, values)
    write_whole(path, written(values).encode())
    return path


def _kernel_lines(found: ProcessorSpeed) -> list[str]:
    weights = ", ".join(f"{rows:g}: {speed / 1e9:.0f}" for rows, speed in found.reading["weights"])
    lines = [
        f"memory       {found.bytes_per_second / 1e9:.1f} GB/s through the weights of one row; beside arithmetic GB/s by rows: {weights}; "
        f"keys and values {found.reading['attention'][0][1] / 1e9:.1f} GB/s",
        f"layers       {found.layer_seconds * 1e6:.1f} µs for each, however small",
    ]
    for kind, points in found.arithmetic.items():
        what = "queries that share keys" if kind == "attention" else "rows"
        speeds = ", ".join(f"{rows:g}: {speed / 1e9:.0f}" for rows, speed in points)
        lines.append(f"{kind:12} GFLOP/s by {what}: {speeds}")
    return lines


def _disk_lines(disk: DiskSpeed, overhead: StreamingOverhead) -> list[str]:
    how = "around the page cache" if disk.direct else "through the page cache, which this file system does not let them avoid"
    return [
        f"disk         {disk.bytes_per_second / 1e9:.2f} GB/s in reads of 2.5 MiB, 8 at a time, {how}, while the processor computes; "
        f"{disk.alone / 1e9:.2f} one at a time, {disk.small / 1e9:.2f} in reads of 256 KiB",
        f"streaming    {overhead.layer * 1e6:.0f} µs for each layer with experts, {overhead.read * 1e6:.0f} µs for each read; what came is "
        f"checked at {disk.checked / 1e9:.1f} GB/s",
    ]
