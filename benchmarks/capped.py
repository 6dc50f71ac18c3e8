"""Processes under a memory limit: a control group of their own (v1 or v2), as root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def cgroups() -> tuple[Path, bool]:
    """The folder in which memory groups are made, and whether it is of version 1. Raises SystemExit if none can be made."""
    if (one := _ROOT / "memory").is_dir():
        return one, True
    controllers = _ROOT / "cgroup.controllers"
    if controllers.exists() and "memory" in controllers.read_text().split():
        return _ROOT, False
    raise SystemExit("a memory control group is needed for this, and there is none under /sys/fs/cgroup")


@dataclass(frozen=True)
class Group:
    path: Path
    first: bool
    """Of version 1."""

    @property
    def peak(self) -> int:
        """Most bytes that it had, page cache included."""
        return int((self.path / ("memory.max_usage_in_bytes" if self.first else "memory.peak")).read_text())

    def run(self, command: Sequence[str | Path]) -> str:
        """What a command prints. Raises CalledProcessError."""
        enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', self.path / "cgroup.procs"]
        return subprocess.run([*enter, *command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


@contextlib.contextmanager
def limited(nbytes: int, files: Sequence[Path]) -> Iterator[Group]:
    """A group with that limit, swap included. files: they leave the page cache first, since pages that others read would not count."""
    root, first = cgroups()
    group = Group(root / f"shoal-benchmark-{os.getpid()}", first)
    group.path.mkdir()
    try:
        (group.path / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(nbytes))
        for file in files:
            opened = os.open(file, os.O_RDONLY)
            os.fsync(opened)
            os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(opened)
        yield group
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.path.rmdir()
                break
            with contextlib.suppress(OSError):
                (group.path / "memory.force_empty").write_text("1")
            time.sleep(0.1)


@contextlib.contextmanager
def read_ahead(file: Path, kib: int | None) -> Iterator[int]:
    """The read-ahead of a file's disk, in KiB; None: as it is."""
    device = os.stat(file).st_dev
    queue = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    setting = next(
        path
        for path in (queue / "queue/read_ahead_kb", queue.resolve().parent / "queue/read_ahead_kb", queue / "bdi/read_ahead_kb")
        if path.exists()
    )
    before = setting.read_text().strip()
    try:
        if kib is not None:
            setting.write_text(str(kib))
        yield int(setting.read_text())
    finally:
        setting.write_text(before)
