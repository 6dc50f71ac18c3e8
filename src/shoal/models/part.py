"""A file that is being fetched: at its final size, with a note beside it of the ranges that are already here.

A process that is stopped leaves both, and the next fetch continues from there. The note may be wrong after a power failure; the
hash of the whole file reveals that.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from shoal.errors import FetchError
from shoal.models.hashes import hash_of
from shoal.models.model_file import ModelFile
from shoal.models.ranges import Ranges
from shoal.sizes import human_bytes


class PartialFile:
    """For one process at a time. Raises OSError; FetchError if the disk has no room."""

    def __init__(self, folder: Path, file: ModelFile) -> None:
        self.file = file
        self.path, self._note = part_paths(folder, file.sha256)
        folder.mkdir(parents=True, exist_ok=True)
        self.ranges = self._resumed() or self._fresh()
        self.resumed = self.ranges.bytes_done
        """Bytes that were here already."""

    def restart(self) -> None:
        """Forgets what was received."""
        self.ranges, self.resumed = self._fresh(), 0

    def _resumed(self) -> Ranges | None:
        try:
            if self.path.stat().st_size == self.file.size:
                return Ranges(self.file.size, msgspec.json.decode(self._note.read_bytes(), type=list[tuple[int, int]]))
        except (OSError, ValueError):  # msgspec's errors are ValueErrors
            pass
        return None

    def _fresh(self) -> Ranges:
        self.discard()
        if (free := shutil.disk_usage(self.path.parent).free) < self.file.size:
            raise FetchError(f"the disk is full: {self.file.name} has {human_bytes(self.file.size)}, {human_bytes(free)} are free")
        with self.path.open("wb") as file:
            file.truncate(self.file.size)
        return Ranges(self.file.size)

    def write(self, offset: int, bodies: Sequence[bytes | bytearray | memoryview]) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.writelines(bodies)

    def note(self) -> None:
        """Saves which ranges are done."""
        fresh = self._note.with_suffix(".noting")
        fresh.write_bytes(msgspec.json.encode(self.ranges.done))
        fresh.replace(self._note)

    def is_right(self) -> bool:
        return self.sha256() == self.file.sha256

    def sha256(self) -> str:
        """Of what was received."""
        with self.path.open("rb") as file:
            return hash_of(file)

    def move(self, place: Path) -> None:
        """Moves it to its final place."""
        place.parent.mkdir(parents=True, exist_ok=True)
        self.path.replace(place)
        self.discard()

    def discard(self) -> None:
        discard(self.path.parent, self.file.sha256)


def part_paths(folder: Path, sha256: str) -> tuple[Path, Path]:
    """The partial file, and the note beside it."""
    return folder / f"{sha256}.part", folder / f"{sha256}.ranges"


def discard(folder: Path, sha256: str) -> None:
    """Deletes what was fetched of a file. Raises OSError."""
    for path in reversed(part_paths(folder, sha256)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
