"""A repository of the hub in a cache, laid out as the hub's own tools do it.

models--<org>--<name>/refs/<revision> names a commit; snapshots/<commit>/ has the files by name, as links to blobs/<hash>. shoal's own cache
has such folders under hub/, and in them listings/<commit>.json: what the hub said of all files of the commit. A GGUF model has a folder of its
own in the snapshot, where its files are called model.gguf or model-00001-of-00003.gguf, so that nodes need not agree on more than its name.
A link may lead to a file in another tool's store.
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
    """cache: the folder that models--… lie in."""

    def __init__(self, cache: Path, name: str) -> None:
        self.name = name
        self.path = cache / f"models--{name.replace('/', '--')}"

    @classmethod
    def own(cls, root: Path, name: str) -> HubFolder:
        """shoal's. root: shoal's cache."""
        return cls(root / "hub", name)

    @classmethod
    def theirs(cls, name: str) -> Iterator[HubFolder]:
        """Those of the hub's own tools that have the repository."""
        for cache in hub_folders():
            if (folder := cls(cache, name)).path.is_dir():
                yield folder

    def snapshot(self, commit: str) -> Path:
        return self.path / "snapshots" / commit

    def blob(self, hash: str) -> Path:
        return self.path / "blobs" / hash

    def commit(self, revision: str | None) -> str | None:
        """What a revision meant when it was last asked for. Raises OSError."""
        if revision is not None and _GIT.fullmatch(revision):
            return revision
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return (self.path / "refs" / (revision or "main")).read_text().strip()
        return None

    def remember(self, repository: Repository, revision: str | None) -> None:
        """Notes what the hub said. Raises OSError."""
        _write(self.path / "listings" / f"{repository.commit}.json", msgspec.json.encode(repository))
        if revision != repository.commit:
            _write(self.path / "refs" / (revision or "main"), repository.commit.encode())

    def recall(self, revision: str | None) -> Repository | None:
        """What the hub said of a revision; None where that was never asked. Raises OSError."""
        if (commit := self.commit(revision)) is None:
            return None
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode((self.path / "listings" / f"{commit}.json").read_bytes(), type=Repository)
        return None

    def read(self, revision: str | None) -> Repository | None:
        """What a snapshot of the hub's own tools holds, with the hashes that its blobs are called by. Raises OSError."""
        if (commit := self.commit(revision)) is None or not self.snapshot(commit).is_dir():
            return None
        home = self.snapshot(commit)
        files = [path for path in sorted(home.rglob("*")) if path.is_file()]
        return Repository(self.name, commit, tuple(_described(str(path.relative_to(home)), path) for path in files))

    def link(self, place: Path, target: Path) -> None:
        """Puts a file into a snapshot. What was there before gives way; the target is never touched. Raises OSError."""
        link(place, Path(os.path.relpath(target, place.parent)) if target.is_relative_to(self.path) else target.resolve())

    def listed(self) -> list[str]:
        """Commits of which it is known what the hub said."""
        with contextlib.suppress(OSError):
            return sorted(path.stem for path in (self.path / "listings").glob("*.json"))
        return []

    def commits(self) -> list[str]:
        """Commits of which there are files."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in (self.path / "snapshots").iterdir() if _GIT.fullmatch(path.name))
        return []


def repositories(cache: Path) -> list[HubFolder]:
    """All in a cache."""
    with contextlib.suppress(OSError):
        names = sorted(path.name for path in cache.glob("models--*--*") if path.is_dir())
        return [HubFolder(cache, name.removeprefix("models--").replace("--", "/", 1)) for name in names]
    return []


def link(place: Path, target: Path) -> None:
    """A symbolic link in place of whatever was there. Raises OSError."""
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
    """Only where it is not so already: a cache that is complete may be one that nobody can write to."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.replace(path)
