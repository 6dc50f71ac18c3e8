"""Hashes of files. The hash of a large file is computed once and remembered until the file changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from io import BufferedReader
from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger()


class _Known(msgspec.Struct):
    path: str
    size: int
    changed: int
    sha256: str


def hash_of(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def git_hash(content: bytes) -> str:
    """The hash by which git, and so the hub, identifies a file with that content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def known_hash(path: Path, root: Path) -> str:
    """A file's SHA-256, stored under `root` by the file's path, size and modification time. Raises OSError."""
    real = path.resolve()
    status = real.stat()
    with contextlib.suppress(OSError, msgspec.DecodeError):
        known = msgspec.json.decode(_memory(real, root).read_bytes(), type=_Known)
        if (known.path, known.size, known.changed) == (str(real), status.st_size, status.st_mtime_ns):
            return known.sha256
    with real.open("rb") as file:
        digest = hash_of(file)
    remember(real, root, digest)
    return digest


def remember(path: Path, root: Path, sha256: str) -> None:
    """Notes the hash of a file that was just checked. Raises OSError if the file is gone."""
    real = path.resolve()
    status, memory = real.stat(), _memory(real, root)
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        fresh = memory.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(_Known(str(real), status.st_size, status.st_mtime_ns, sha256)))
        fresh.replace(memory)
    except OSError as error:
        log.warning("a hash could not be remembered", path=str(path), reason=str(error))


def _memory(real: Path, root: Path) -> Path:
    return root / "hashes" / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.json"
