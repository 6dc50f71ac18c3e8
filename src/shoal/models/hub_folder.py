"""A repository of the hub in a cache, in the layout of the hub's own tools.

models--<org>--<name>/refs/<revision> names a commit; snapshots/<commit>/ has the files by name, as links to blobs/<hash>.
shoal's own cache has such folders under hub/, each with listings/<commit>.json: the hub's list of all files of the commit. A
GGUF model has its own folder in the snapshot, where its files are called model.gguf or model-00001-of-00003.gguf, so that nodes
need to agree only on the folder's name. A link may lead to a file in another tool's store.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from shoal.environment import hub_folders
from shoal.models.repository import Repository, RepositoryFile

_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


class HubFolder:
    """cache: the folder that contains the models--… folders."""

    def __init__(self, cache: Path, name: str) -> None:
        self.name = name
        self.path = cache / f"models--{name.replace('/', '--')}"

    @classmethod
    def own(cls, root: Path, name: str) -> HubFolder:
        """The repository's folder in shoal's cache. root: shoal's cache."""
        return cls(root / "hub", name)

    @classmethod
    def theirs(cls, name: str) -> Iterator[HubFolder]:
        """The folders of the hub's own tools that have the repository."""
        for cache in hub_folders():
            if (folder := cls(cache, name)).path.is_dir():
                yield folder

    def snapshot(self, commit: str) -> Path:
        return self.path / "snapshots" / commit

    def blob(self, hash: str) -> Path:
        return self.path / "blobs" / hash

    def commit(self, revision: str | None) -> str | None:
        """The commit that a revision meant when the hub was last asked. Raises OSError."""
        if revision is not None and _GIT.fullmatch(revision):
            return revision
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return (self.path / "refs" / (revision or "main")).read_text().strip()
        return None

    def remember(self, repository: Repository, revision: str | None) -> None:
        """Stores the hub's answer. Raises OSError."""
        _write(self.path / "listings" / f"{repository.commit}.json", msgspec.json.encode(repository))
        if revision != repository.commit:
            _write(self.path / "refs" / (revision or "main"), repository.commit.encode())

    def recall(self, revision: str | None) -> Repository | None:
        """The hub's answer for a revision; None if it was never asked. Raises OSError."""
        if (commit := self.commit(revision)) is None:
            return None
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode((self.path / "listings" / f"{commit}.json").read_bytes(), type=Repository)
        return None

    def read(self, revision: str | None) -> Repository | None:
        """The contents of a snapshot of the hub's own tools, with the hashes that name its blobs. Raises OSError."""
        if (commit := self.commit(revision)) is None or not self.snapshot(commit).is_dir():
            return None
        home = self.snapshot(commit)
        files = [path for path in sorted(home.rglob("*")) if path.is_file()]
        return Repository(self.name, commit, tuple(_described(str(path.relative_to(home)), path) for path in files))

    def link(self, place: Path, target: Path) -> None:
        """Puts a file into a snapshot as a link. It replaces what was there; the target is never touched. Raises OSError."""
        link(place, Path(os.path.relpath(target, place.parent)) if target.is_relative_to(self.path) else target.resolve())

    def listed(self) -> list[str]:
        """Commits whose file list is stored."""
        with contextlib.suppress(OSError):
            return sorted(path.stem for path in (self.path / "listings").glob("*.json"))
        return []

    def commits(self) -> list[str]:
        """Commits with files."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in (self.path / "snapshots").iterdir() if _GIT.fullmatch(path.name))
        return []


def repositories(cache: Path) -> list[HubFolder]:
    """All repositories in a cache."""
    with contextlib.suppress(OSError):
        names = sorted(path.name for path in cache.glob("models--*--*") if path.is_dir())
        return [HubFolder(cache, name.removeprefix("models--").replace("--", "/", 1)) for name in names]
    return []


def link(place: Path, target: Path) -> None:
    """Creates a symbolic link, replacing whatever was there. Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f"{place.name}.{os.getpid()}.linking")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(place)


def _described(name: str, path: Path) -> RepositoryFile:
    blob = path.resolve().name
    sha256, git = blob if _SHA256.fullmatch(blob) else "", blob if _GIT.fullmatch(blob) else ""
    return RepositoryFile(name, path.stat().st_size, sha256, git)


def _write(path: Path, content: bytes) -> None:
    """Writes only if the content differs: a complete cache may be read-only."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.replace(path)
