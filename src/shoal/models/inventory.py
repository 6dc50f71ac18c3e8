"""The models on this machine: those that shoal fetched, and those in other tools' stores that it can use."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shoal.environment import hub_folders
from shoal.errors import ShoalError
from shoal.folders import cache_dir
from shoal.models import lmstudio, ollama
from shoal.models.catalogue import catalogue
from shoal.models.families import BY_MODEL_TYPE
from shoal.models.hub_folder import HubFolder, repositories
from shoal.models.quantization import label
from shoal.models.reference import Reference
from shoal.models.repository import folder_of, variants, weights

SHOAL, HUGGING_FACE, OLLAMA, LM_STUDIO = "shoal", "Hugging Face", "Ollama", "LM Studio"


@dataclass(frozen=True)
class StoredModel:
    """A model on this machine. name: a value for `--model`. owner: the tool that the files belong to."""

    name: str
    owner: str
    bytes: int
    quantization: str
    path: Path


@dataclass(frozen=True)
class KeptModel:
    """A model of a repository in shoal's own cache, across all commits."""

    repository: str
    title: str
    """Its quantisation, or its file; '' for safetensors."""
    folders: tuple[Path, ...]
    """Of the snapshots."""
    files: tuple[Path, ...]
    """The files on the disk that belong to shoal; linked files of other tools are not among them."""

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.title}" if self.title else self.repository

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def inventory(directory: Path | None = None) -> list[StoredModel]:
    """All models, shoal's own first. directory: shoal's cache, if not the user's own."""
    root = directory or cache_dir()
    return [*_own(root), *_hugging_face(), *_ollama(), *_lmstudio()]


def pulled(directory: Path | None = None) -> dict[str, Path]:
    """Models of the catalogue that are in the cache."""
    root = directory or cache_dir()
    places = {name: root / "models" / name / entry.file for name, entry in catalogue().items()}
    return {name: path for name, path in places.items() if path.exists()}


def kept(root: Path) -> list[KeptModel]:
    """Models of the hub in shoal's cache that have at least one file there."""
    found = [model for folder in repositories(root / "hub") for model in _of(folder)]
    return [model for model in found if model.files]


def _own(root: Path) -> Iterator[StoredModel]:
    for name, path in pulled(root).items():
        yield StoredModel(name, SHOAL, path.stat().st_size, label(catalogue()[name].file), path)
    for model in kept(root):
        yield StoredModel(model.name, SHOAL, model.bytes, label(model.title), model.folders[-1])


def _of(folder: HubFolder) -> Iterator[KeptModel]:
    titles = {
        folder_of(variant.first): variant.title
        for commit in folder.commits()
        if (listed := _recalled(folder, commit)) is not None
        for variant in variants(listed.files)
    }
    grouped: dict[str, list[Path]] = {}
    for commit in folder.commits():
        home = folder.snapshot(commit)
        if any(home.glob("*.safetensors")):
            grouped.setdefault("", []).append(home)
        for inside in sorted(path for path in home.iterdir() if any(path.glob("model*.gguf"))):
            grouped.setdefault(titles.get(inside.name, inside.name), []).append(inside)
    for title, folders in grouped.items():
        files = {path.resolve() for place in folders for path in place.iterdir() if path.suffix in (".gguf", ".safetensors")}
        own = sorted(path for path in files if path.is_relative_to(folder.path.resolve()) and path.is_file())
        yield KeptModel(folder.name, title, tuple(folders), tuple(own))


def _recalled(folder: HubFolder, commit: str) -> Any:
    with contextlib.suppress(OSError):
        return folder.recall(commit)
    return None


def _hugging_face() -> Iterator[StoredModel]:
    for cache in hub_folders():
        for folder in repositories(cache):
            with contextlib.suppress(OSError):  # it belongs to another user, or is already gone
                yield from _in_their_cache(folder)


def _in_their_cache(folder: HubFolder) -> list[StoredModel]:
    """Models of the commit that `main` last meant, or of the only one there."""
    commits = folder.commits()
    commit = folder.commit(None)
    repository = folder.read(commit if commit in commits else next(iter(commits), None))
    if repository is None:
        return []
    home = folder.snapshot(repository.commit)
    found = [StoredModel(f"{folder.name}:{v.title}", HUGGING_FACE, v.size, v.label, home / v.first) for v in variants(repository.files)]
    if (files := weights(repository)) and _can_be_run(home):
        found.append(StoredModel(folder.name, HUGGING_FACE, sum(file.size for file in files), "", home))
    return found


def _can_be_run(home: Path) -> bool:
    """Whether a folder's configuration is of a family that shoal runs: caches are full of other models."""
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((home / "config.json").read_bytes())
        return isinstance(config, dict) and cast("dict[str, Any]", config).get("model_type") in BY_MODEL_TYPE
    return False


def _ollama() -> Iterator[StoredModel]:
    for model in ollama.models():
        name = model.name if _means(model.name, "ollama") else f"ollama:{model.name}"
        yield StoredModel(name, OLLAMA, sum(size for _, size, _ in model.files), model.quantization, model.files[0][0])


def _means(name: str, kind: str) -> bool:
    try:
        return Reference.parse(name).kind == kind
    except ShoalError:
        return False


def _lmstudio() -> Iterator[StoredModel]:
    for home, repository in lmstudio.repositories():
        name = f"lmstudio:{repository.name}"
        for variant in variants(repository.files):
            yield StoredModel(f"{name}:{variant.title}", LM_STUDIO, variant.size, variant.label, home / variant.first)
        if (files := weights(repository)) and _can_be_run(home):
            yield StoredModel(name, LM_STUDIO, sum(file.size for file in files), "", home)
