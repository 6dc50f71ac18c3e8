"""Processes under a memory limit: a control group of their own (v1 or v2), as root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.control_groups import Group, parents


def output(group: Group, command: Sequence[str | Path]) -> str:
    """What a command prints that runs in a group. Raises SystemExit with its last complaints if it fails."""
    done = subprocess.run([*group.entering, *command], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


@contextlib.contextmanager
def limited(nbytes: int, files: Sequence[Path]) -> Iterator[Group]:
    """A group with that limit. files: they leave the page cache first, since pages that others read would not count."""
    try:
        group = Group(parents("memory"), dict.fromkeys(("memory.limit_in_bytes", "memory.max"), str(nbytes)))
    except OSError as error:
        raise SystemExit(f"this needs a memory control group: {error}") from error
    try:
        for file in files:
            opened = os.open(file, os.O_RDONLY)
            os.fsync(opened)
            os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(opened)
        yield group
    finally:
        group.end()


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
