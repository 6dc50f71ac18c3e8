"""A file that is being fetched: as large as it will be, and beside it which of its ranges are here already.

Whoever is stopped leaves both, and the next fetch goes on where it ended. What the note says may be wrong after a power cut;
the hash of the whole finds that out.
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
    """One process at a time. Raises OSError, FetchError where the disk has no room."""

    def __init__(self, folder: Path, file: ModelFile) -> None:
        self.file = file
        self.path, self._note = part_paths(folder, file.sha256)
        folder.mkdir(parents=True, exist_ok=True)
        self.ranges = self._resumed() or self._fresh()
        self.resumed = self.ranges.bytes_done
        """Bytes that were here."""

    def restart(self) -> None:
        """Forgets what came."""
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
        """Remembers which ranges are done."""
        fresh = self._note.with_suffix(".noting")
        fresh.write_bytes(msgspec.json.encode(self.ranges.done))
        fresh.replace(self._note)

    def is_right(self) -> bool:
        return self.sha256() == self.file.sha256

    def sha256(self) -> str:
        """Of what came."""
        with self.path.open("rb") as file:
            return hash_of(file)

    def move(self, place: Path) -> None:
        """Makes it the file that it was to become."""
        place.parent.mkdir(parents=True, exist_ok=True)
        self.path.replace(place)
        self.discard()

    def discard(self) -> None:
        discard(self.path.parent, self.file.sha256)


def part_paths(folder: Path, sha256: str) -> tuple[Path, Path]:
    """A file that is being fetched, and the note beside it."""
    return folder / f"{sha256}.part", folder / f"{sha256}.ranges"


def discard(folder: Path, sha256: str) -> None:
    """Lets go of what was fetched of a file. Raises OSError."""
    for path in reversed(part_paths(folder, sha256)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
