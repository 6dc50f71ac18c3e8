"""Control groups of version 1 or 2, where this process may make them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


class Group:
    """parents: by controller. files: what to write into those that the version has."""

    def __init__(self, parents: dict[str, Path], files: dict[str, str]) -> None:
        self.folders = [parent / f"shoal-test-{os.getpid()}" for parent in dict.fromkeys(parents.values())]
        for folder in self.folders:
            folder.mkdir()
            for name, value in files.items():
                if (folder / name).exists():
                    (folder / name).write_text(value)

    @property
    def entering(self) -> list[str]:
        """A command that runs the one after it inside."""
        joins = " && ".join(f"echo $$ > {folder}/cgroup.procs" for folder in self.folders)
        return ["sh", "-c", f'{joins} && exec "$@"', "sh"]

    @property
    def peak(self) -> int:
        """Bytes that it took at most, page cache included."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if (file := self.folders[0] / name).exists():
                return int(file.read_text())
        raise FileNotFoundError("the system does not keep what a group took at most")

    def end(self) -> None:
        for folder in self.folders:
            for _ in range(100):
                try:
                    folder.rmdir()
                    break
                except OSError:  # its last process is just ending
                    time.sleep(0.1)


def parents(*controllers: str) -> dict[str, Path]:
    """By controller: where groups are made. Raises OSError where there can be none."""
    if os.geteuid() != 0:
        raise PermissionError("control groups are made by root alone")
    two = Path("/sys/fs/cgroup")
    if (two / "cgroup.subtree_control").exists():
        if set(controllers) - set((two / "cgroup.subtree_control").read_text().split()):
            raise FileNotFoundError(f"this machine's control groups do not limit {' and '.join(controllers)}")
        return dict.fromkeys(controllers, two)
    one = {c: two / c for c in controllers}
    if not all((folder / "cgroup.procs").exists() for folder in one.values()):
        raise FileNotFoundError("no control groups are mounted here")
    return one


@contextlib.contextmanager
def group(files: dict[str, str], *controllers: str) -> Iterator[Group]:
    """Skips the test where there can be none."""
    try:
        made = Group(parents(*controllers), files)
    except OSError as error:
        pytest.skip(f"this process may not make control groups: {error}")
    try:
        yield made
    finally:
        made.end()
