"""LM Studio's model folder, read in place: publisher/repository/file.gguf, named as on the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from shoal.environment import lmstudio_folders
from shoal.errors import UserError
from shoal.models.repository import Repository, RepositoryFile, choose, variants, weights
from shoal.spelling import suggestion


def repositories() -> list[tuple[Path, Repository]]:
    """Folders that hold models, by name; `commit` is empty."""
    found: dict[str, tuple[Path, Repository]] = {}
    for folder in lmstudio_folders():
        with contextlib.suppress(OSError):  # it belongs to another user
            for home in sorted(path for path in folder.glob("*/*") if path.is_dir()):
                repository = _read(home, f"{home.parent.name}/{home.name}")
                if variants(repository.files) or weights(repository):
                    found.setdefault(repository.name, (home, repository))
    return [found[name] for name in sorted(found)]


def located(name: str, tag: str | None) -> Path:
    """The path to open. tag: a quantisation or a file. Raises UserError."""
    there = {repository.name.lower(): (home, repository) for home, repository in repositories()}
    if name.lower() not in there:
        known = [repository.name for _, repository in there.values()]
        raise UserError(f"LM Studio has no {name}{suggestion(name, known)}; it has {', '.join(known) or 'nothing'}")
    home, repository = there[name.lower()]
    variant = choose(repository, tag)
    return home if variant is None else home / variant.first


def candidates(name: str, path: str, size: int) -> Iterator[Path]:
    """Where it may have a file of a repository, judged by name and size."""
    for folder in lmstudio_folders():
        for file in (folder / name / path, folder / name / path.rpartition("/")[2]):
            if file.is_file() and file.stat().st_size == size:
                yield file
                break


def _read(home: Path, name: str) -> Repository:
    files = [path for path in home.rglob("*") if path.is_file()]
    return Repository(name, "", tuple(RepositoryFile(str(path.relative_to(home)), path.stat().st_size) for path in sorted(files)))
