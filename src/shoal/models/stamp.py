"""What tells a model's files from others, and from themselves after a change, without reading them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from shoal.models.gguf_files import parts_of


class Stamp(NamedTuple):
    name: str
    size: int
    modified: int
    """In nanoseconds."""


def stamps(where: Path) -> list[Stamp]:
    """Of the files that describe a model, which are there before all of its weights are. where: a GGUF file, its first part, or a
    directory. Raises OSError."""
    if where.is_dir():
        files = [where / "config.json", *(sorted(where.glob("*.index.json")) or sorted(where.glob("*.safetensors")))]
    else:
        files = [parts_of(where)[0]]
    return [Stamp(file.name, status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()]]
