"""What this process holds open, one by one: a count would change with whatever an earlier test is still closing."""

from __future__ import annotations

import os
from pathlib import Path


def descriptors() -> set[str]:
    """Each as its number and what it leads to, such as `7 socket:[4711]` or `8 /tmp/shoal-journal-x (deleted)`."""
    found: set[str] = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:  # the one that the folder was listed through
            continue
    return found


def beneath(folder: Path) -> list[str]:
    """Those of files in a folder, whether or not their names are still there."""
    return sorted(one for one in descriptors() if one.partition(" ")[2].startswith(f"{folder}/"))
