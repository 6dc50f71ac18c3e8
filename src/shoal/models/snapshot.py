"""Files of a repository in shoal's cache: linked to another tool's copy if there is one, otherwise fetched from the hub."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from shoal.errors import CorruptModel, FetchError, HashMismatch, UnsupportedModel
from shoal.models import hub, stores
from shoal.models.gguf_header import CutHeader, GgufHeader
from shoal.models.hashes import git_hash, remember
from shoal.models.hub_folder import HubFolder
from shoal.models.locks import lock
from shoal.models.progress import Progress, silent
from shoal.models.repository import Repository, RepositoryFile
from shoal.models.weights import check_formats, check_header
from shoal.sizes import human_bytes

if TYPE_CHECKING:
    from shoal.models.download import Download

log = structlog.get_logger()

_SMALL = 16 << 20  # files that git itself stores in a repository are smaller
_HEADER, _LONGEST_HEADER = 4 << 20, 256 << 20
_PATIENCE = 30.0


class Snapshot:
    """root: shoal's cache. Methods raise FetchError, Unreachable, HashMismatch, OSError."""

    def __init__(self, repository: Repository, root: Path) -> None:
        self.repository, self._root = repository, root
        self._folder = HubFolder.own(root, repository.name)
        self.home = self._folder.snapshot(repository.commit)

    def is_here(self, file: RepositoryFile, name: str) -> bool:
        """Whether the snapshot has a file with that name, or another tool has it."""
        return _has(self.home / name, file) or self._elsewhere(file) is not None

    def fetch(self, files: Mapping[str, RepositoryFile], progress: Progress = silent, refuse: HeaderCheck | None = None) -> None:
        """Puts files into the snapshot, under the given names.

        refuse: checks the first bytes of each file before any of them is fetched whole.
        """
        wanted = {name: file for name, file in files.items() if not self._linked(name, file)}
        large = {name: file for name, file in wanted.items() if file.sha256}
        for name, file in wanted.items():
            if name not in large:
                self._take(name, file)
        if large:
            self._download(large, progress, refuse)

    def _linked(self, name: str, file: RepositoryFile) -> bool:
        """Whether it is in the snapshot now, if it was anywhere on this machine."""
        if _has(self.home / name, file):
            return True
        if (found := self._elsewhere(file)) is None:
            return False
        if not found.is_relative_to(self._folder.path):
            log.info("a file in another tool's store is used where it lies", file=str(found))
        self._folder.link(self.home / name, found)
        return True

    def _elsewhere(self, file: RepositoryFile) -> Path | None:
        blob = self._folder.blob(file.sha256 or file.git)
        if (file.sha256 or file.git) and _has(blob, file):
            return blob
        return stores.held(self.repository.name, file, self._root)

    def _take(self, name: str, file: RepositoryFile) -> None:
        """Fetches a small file in one go."""
        import httpx2

        location = hub.locate(self.repository.name, self.repository.commit, file.path)
        if (size := location.size if location.size is not None else file.size) > _SMALL:
            raise FetchError(f"hf:{self.repository.name}: {file.path} has {human_bytes(size)}, and the hub does not give its hash")
        with hub.translated(self.repository.name):
            answer = httpx2.get(location.url, headers=location.headers, timeout=_PATIENCE, follow_redirects=True)
            answer.raise_for_status()
        if file.git and git_hash(answer.content) != file.git:
            raise HashMismatch(f"hf:{self.repository.name}: {file.path}", file.git, git_hash(answer.content))
        blob = self._folder.blob(file.git or git_hash(answer.content))
        blob.parent.mkdir(parents=True, exist_ok=True)
        fresh = blob.with_name(f"{blob.name}.incomplete")
        fresh.write_bytes(answer.content)
        fresh.replace(blob)
        self._folder.link(self.home / name, blob)

    def _download(self, files: Mapping[str, RepositoryFile], progress: Progress, refuse: HeaderCheck | None) -> None:
        from shoal.models.download import Download  # a node that fetches nothing needs no HTTP client

        parts = self._root / "parts"
        with contextlib.ExitStack() as held:
            for sha256 in sorted({file.sha256 for file in files.values()}):
                held.enter_context(lock(parts / f"{sha256}.lock"))
            left = {name: file for name, file in files.items() if not self._linked(name, file)}  # another process may have fetched some
            by_hash = {file.sha256: file for file in left.values()}
            total = sum(file.size for file in by_hash.values())
            name, commit = self.repository.name, self.repository.commit
            downloads = [Download(name, commit, file, parts) for file in by_hash.values()]
            self._check_room(total - sum(download.here for download in downloads))
            try:
                if refuse is not None:
                    for download in downloads:
                        refuse.look(download)
            except (UnsupportedModel, CorruptModel):
                for download in downloads:
                    download.discard()
                raise
            for download in downloads:
                download.finish(lambda: progress(sum(d.here for d in downloads), total))
                download.move(blob := self._folder.blob(download.file.sha256))
                remember(blob, self._root, download.file.sha256)
            for place, file in left.items():
                self._folder.link(self.home / place, self._folder.blob(file.sha256))

    def _check_room(self, needed: int) -> None:
        if (free := shutil.disk_usage(self._root).free) < needed:
            raise FetchError(
                f"the disk is full: {self.repository.name} needs {human_bytes(needed)} under {self._root}, {human_bytes(free)} are free"
            )


class HeaderCheck:
    """Refuses a GGUF model that shoal does not run, by the headers of its files, the first one first.

    hint: what to add to the message, such as what the repository offers instead. Raises UnsupportedModel, CorruptModel, FetchError.
    """

    def __init__(self, where: str, hint: Callable[[], str]) -> None:
        self._where, self._hint = where, hint
        self._spec = None

    def look(self, download: Download) -> None:
        length = _HEADER
        while True:
            try:
                header = GgufHeader(download.begin(length), download.file.size, self._where)
                break
            except CutHeader:
                if length >= min(download.file.size, _LONGEST_HEADER):
                    raise
                length *= 2
        try:
            if self._spec is None:
                self._spec = check_header(header, self._where)
            else:
                check_formats(header, self._spec, self._where)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{error}; {self._hint()}") from None


def _has(path: Path, file: RepositoryFile) -> bool:
    """Judged by its size: what enters the cache has been hashed, and so were linked files."""
    try:
        return path.is_file() and path.stat().st_size == file.size
    except OSError:
        return False
