"""How much of its machine this process may use: processors and memory, by the tightest limit.

A container sees the figures of a whole machine but may use only a share of it. Control groups define the share (cgroup v1, v2,
or both at once: https://docs.kernel.org/admin-guide/cgroup-v2.html, …/cgroup-v1/), each group within those above it. This is
the only module that asks how large the machine is; no other module asks psutil for that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shoal.sizes import human_bytes

_SHARE = 0.75
"""Of the free memory: weights and KV blocks leave room for activations, buffers and the rest of the machine."""
_NO_LIMIT = 1 << 60  # bytes: cgroup v1 writes "no limit" as the largest multiple of a page


@dataclass(frozen=True)
class Processors:
    """usable: whole processors, at least one. source: what limits them, for people; '' if nothing does."""

    usable: int
    source: str = ""


@dataclass(frozen=True)
class Memory:
    """Bytes. available: what can be used now without swapping. source: what limits it, for people; '' if nothing does."""

    available: int
    total: int
    source: str = ""


def processors(root: Path = Path("/")) -> Processors:
    """The processors that this process may run on, limited by its quota. root: where to find /proc and /sys."""
    if hasattr(os, "sched_getaffinity"):
        found, every = Processors(len(os.sched_getaffinity(0))), os.cpu_count() or 1
        if found.usable < every:
            found = Processors(found.usable, f"this process may run on {found.usable} of {every} processors (affinity or cpuset)")
    else:
        found = Processors(os.cpu_count() or 1)
    for quota, file in _quotas(root):
        # Rounded down: a thread that is stopped because the quota is used up delays all that wait for it.
        if (usable := max(1, int(quota))) < found.usable:
            found = Processors(usable, f"a quota of {quota:g} processors ({file})")
    return found


def memory(root: Path = Path("/")) -> Memory:
    """The machine's memory, limited by this process's control groups."""
    import psutil

    machine = psutil.virtual_memory()
    limits = [(max(limit - used, 0), limit, file) for limit, used, file in _limits(root) if limit < machine.total]
    if not limits:
        return Memory(machine.available, machine.total)
    left, limit, file = min(limits)
    return Memory(min(machine.available, left), limit, f"a limit of {human_bytes(limit)} ({file})")


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes that weights and KV blocks may use by default."""
    return int(memory(root).available * _SHARE)


def _quotas(root: Path) -> Iterator[tuple[float, Path]]:
    """Processors that a group may use on average, and the file that says so."""
    for folder in _groups(root, "cpu"):
        if (line := _read(folder / "cpu.max")) is not None:  # v2: "QUOTA PERIOD", microseconds, or "max PERIOD"
            quota, _, period = line.partition(" ")
            if quota.isdecimal() and period.isdecimal() and int(period):
                yield int(quota) / int(period), folder / "cpu.max"
        else:
            quota, period = (_number(folder / f"cpu.cfs_{which}_us") for which in ("quota", "period"))
            if quota is not None and period and quota > 0:  # -1: none
                yield quota / period, folder / "cpu.cfs_quota_us"


def _limits(root: Path) -> Iterator[tuple[int, int, Path]]:
    """A group's limit, the part in use that cannot be reclaimed by dropping file pages, and the file with the limit; bytes."""
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):  # v2, v2 (slowed down above it), v1
            limit = _number(folder / name)
            if limit is not None and limit < _NO_LIMIT:
                yield limit, _used(folder), folder / name
    # v1 also reports the limits of groups above that a container does not see.
    for folder in _groups(root, "memory")[:1]:
        limit = _statistics(folder).get("hierarchical_memory_limit", _NO_LIMIT)
        if limit < _NO_LIMIT:
            yield limit, _used(folder), folder / "memory.stat"


def _used(folder: Path) -> int:
    usage = next((n for f in ("memory.current", "memory.usage_in_bytes") if (n := _number(folder / f)) is not None), 0)
    statistics = _statistics(folder)
    kinds = ("total_inactive_file", "total_active_file") if "total_inactive_file" in statistics else ("inactive_file", "active_file")
    return max(usage - sum(statistics.get(kind, 0) for kind in kinds), 0)


def _groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's groups, its own first, in each hierarchy that may limit `controller`."""
    own = _memberships(root)
    folders: list[Path] = []
    for kind, top, place, options in _mounts(root):
        if kind == "cgroup" and controller not in options:
            continue
        path = own.get("" if kind == "cgroup2" else controller)
        if path is None:
            continue
        folder = place / _below(path, top)
        # A path from another namespace does not exist here; the mounted group is then the process's own, or one above it.
        folder = folder if folder.is_dir() else place
        while True:
            folders.append(folder)
            if folder == place or place not in folder.parents:
                break
            folder = folder.parent
    return folders


def _below(path: str, top: str) -> str:
    """A group's path, relative to the mounted group."""
    if top != "/" and (path == top or path.startswith(top + "/")):
        path = path[len(top) :]
    return "." if ".." in path.split("/") else path.strip("/") or "."


def _memberships(root: Path) -> dict[str, str]:
    """By controller ('' is v2), the path of this process's group: lines like `4:memory:/docker/abc`, `0::/user.slice`."""
    found: dict[str, str] = {}
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            found.update(dict.fromkeys(parts[1].split(","), parts[2]))
    return found


def _mounts(root: Path) -> Iterator[tuple[str, str, Path, list[str]]]:
    """Kind (cgroup, cgroup2), the mounted group, the mount point, and the controllers: see proc_pid_mountinfo(5)."""
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(" "), right.split(" ")
        if len(fields) >= 5 and len(kinds) >= 3 and kinds[0] in ("cgroup", "cgroup2"):
            yield kinds[0], _unescaped(fields[3]), root / _unescaped(fields[4]).lstrip("/"), kinds[2].split(",")


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _statistics(folder: Path) -> dict[str, int]:
    pairs = (line.split(" ") for line in (_read(folder / "memory.stat") or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _number(file: Path) -> int | None:
    text = _read(file)
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]+", text) else None


def _read(file: Path) -> str | None:
    """None if there is no such file, or this process may not read it."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None
