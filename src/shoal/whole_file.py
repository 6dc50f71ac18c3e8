"""Files that others read whole or not at all."""

from __future__ import annotations

from pathlib import Path
from secrets import token_hex


def write_whole(path: Path, data: bytes) -> None:
    """Replaces a file, whose folder is made if need be; the one before stays if this fails. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{token_hex(8)}.partial")  # not of the process: in containers, two may have one number
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
