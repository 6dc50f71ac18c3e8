"""Files of the hub that other tools on this machine already have: the hub's own tools, Ollama, LM Studio. They are only read,
never changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import structlog

from shoal.models import lmstudio, ollama
from shoal.models.hashes import git_hash, known_hash
from shoal.models.hub_folder import HubFolder
from shoal.models.repository import RepositoryFile

log = structlog.get_logger()


def held(name: str, file: RepositoryFile, root: Path) -> Path | None:
    """Another tool's copy of a repository's file, with the content that the hub lists. root: the cache that stores hashes."""
    for path in _candidates(name, file):
        with contextlib.suppress(OSError):  # it belongs to another user, or is already gone
            if path.stat().st_size == file.size and is_right(path, file, root):
                return path
            log.warning("a file in another tool's store is not what it should be; it is left alone", file=str(path))
    return None


def is_right(path: Path, file: RepositoryFile, root: Path) -> bool:
    """Whether a file has the content that the hub lists, as far as it says. Raises OSError."""
    if file.sha256:
        return known_hash(path, root) == file.sha256
    return not file.git or git_hash(path.read_bytes()) == file.git


def _candidates(name: str, file: RepositoryFile) -> Iterator[Path]:
    """Files that may be it, each once."""
    hash = file.sha256 or file.git
    for folder in HubFolder.theirs(name):
        if hash and (path := folder.blob(hash)).is_file():
            yield path
    if file.sha256:
        yield from ollama.blobs(file.sha256)
        yield from lmstudio.candidates(name, file.path, file.size)
