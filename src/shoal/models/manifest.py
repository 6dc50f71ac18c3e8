"""A model's files by name and hash, whichever machine has them, and where they are on this machine.

The head sends the list to the nodes, so that they can fetch the files from each other. Names are single path components, which
is checked whenever a list is made; a file's location depends only on this machine's cache and the name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from shoal.errors import FetchError
from shoal.folders import cache_dir
from shoal.models import hub, stores
from shoal.models.catalogue import catalogue
from shoal.models.gguf_files import INDEX as GGUF_INDEX
from shoal.models.gguf_files import GgufFiles, parts_of
from shoal.models.hashes import known_hash
from shoal.models.hub_folder import HubFolder, link
from shoal.models.layer_files import shard_files
from shoal.models.model_file import NAME, ModelFile
from shoal.models.reference import Reference
from shoal.models.repository import RepositoryFile, description, folder_of, weights

log = structlog.get_logger()

MOST_FILES = 4096
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FIRST_PART = re.compile(r"model-00001-of-\d{5}\.gguf")
_CONFIG, _INDEX, _SHARDS = "config.json", "model.safetensors.index.json", ".safetensors"
_TEXT = frozenset({"tokenizer.json", "tokenizer_config.json", "generation_config.json"})  # with which the last stage enforces grammars


@dataclass(frozen=True)
class Manifest:
    """Raises FetchError for an invalid list."""

    reference: str
    """A hub reference names a commit."""
    files: tuple[ModelFile, ...]

    def __post_init__(self) -> None:
        if len(self.files) > MOST_FILES or len({f.name for f in self.files}) != len(self.files):
            raise FetchError(f"{self.reference}: {len(self.files)} files, some with the same name, are not a model")
        for file in self.files:
            if not file.sound:
                raise FetchError(f"{self.reference}: {file!r} is not a file of a model")
        parsed = self._parsed
        if self.files and parsed.kind == "catalogue":
            entry = catalogue()[parsed.name]
            if self.files != (ModelFile(entry.file, entry.size, entry.sha256),):
                raise FetchError(f"{self.reference}: the files are not those of the catalogue; install the same shoal on every machine")
        if self.files and parsed.kind == "hub" and not _COMMIT.fullmatch(parsed.revision or ""):
            raise FetchError(f"{self.reference}: the files belong to no particular commit")

    @property
    def _parsed(self) -> Reference:
        return Reference.parse(self.reference)

    @property
    def _single(self) -> bool:
        return len(self.files) == 1 and self.files[0].name.endswith(".gguf")

    @property
    def _first_part(self) -> str | None:
        """The first part of a GGUF file in parts."""
        return next((f.name for f in self.files if _FIRST_PART.fullmatch(f.name)), None)

    def home(self, directory: Path | None = None) -> Path:
        """The cache folder for the files: the origin's own if it has one, so that either way of fetching fills it."""
        root, parsed = directory or cache_dir(), self._parsed
        if parsed.kind == "catalogue":
            return root / "models" / parsed.name
        if parsed.kind == "hub":
            snapshot = HubFolder.own(root, parsed.name).snapshot(parsed.revision or "")
            return snapshot / folder_of(parsed.gguf) if parsed.gguf is not None else snapshot
        content = hashlib.sha256("".join(f"{f.sha256} {f.name}\n" for f in sorted(self.files, key=lambda f: f.name)).encode())
        return root / "shared" / content.hexdigest()[:32]

    def missing(self, layers: range, first: bool, last: bool, directory: Path | None = None) -> list[ModelFile]:
        """Files that these layers need and this machine lacks. Until an index is here, the files that it names are not included."""
        if self.located(layers, first, last, directory) is not None:
            return []
        home = self.home(directory)
        wanted = self._wanted(home, layers, first, last)
        return [file for file in self.files if file.name in wanted and not _is_here(home / file.name, file)]

    def located(self, layers: range, first: bool, last: bool, directory: Path | None = None) -> Path | None:
        """The path to open for these layers; None if this machine does not have all that they need.

        A local path that the head names may also exist here with the same files: then it is used in place.
        """
        if not self.files:
            return None
        named = [Path(self._parsed.name)] if self._parsed.kind == "path" else []
        if self._single:
            file = self.files[0]
            return next((path for path in (*named, self.home(directory) / file.name) if _is_here(path, file)), None)
        if (part := self._first_part) is not None:
            parts = sorted((file for file in self.files if file.name != GGUF_INDEX), key=lambda file: file.name)
            for path in named:  # its parts have other names there, and there is no index beside them
                if len(there := parts_of(path)) == len(parts) and all(map(_is_here, there, parts)):
                    return path
            home = self.home(directory)
            return home / part if self._complete(home, layers, first, last) else None
        return next((home for home in (*named, self.home(directory)) if self._complete(home, layers, first, last)), None)

    def lock(self, file: ModelFile, directory: Path | None = None) -> Path:
        """The lock that a process holds while it fetches a file: the origin's own lock if it has one."""
        if self._parsed.kind == "catalogue":
            return self.home(directory) / ".lock"
        return (directory or cache_dir()) / "parts" / f"{file.sha256}.lock"

    def kept(self, directory: Path | None = None) -> dict[str, Path]:
        """Files in the cache, by hash."""
        home = self.home(directory)
        return {f.sha256: home / f.name for f in self.files if _is_here(home / f.name, f)}

    def _wanted(self, home: Path, layers: range, first: bool, last: bool) -> set[str]:
        """Names of the needed files; some may be missing from the list if it is incomplete."""
        if self._single:
            return {self.files[0].name}
        names = {f.name for f in self.files}
        if (part := self._first_part) is not None:
            with contextlib.suppress(OSError, msgspec.DecodeError):
                return {GGUF_INDEX, part} | shard_files((home / GGUF_INDEX).read_bytes(), layers, first, last)
            return {GGUF_INDEX, part}
        described = {_CONFIG} | (names & _TEXT if last else set[str]())
        if _INDEX not in names:
            return described | {n for n in names if n.endswith(_SHARDS)}
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return described | {_INDEX} | shard_files((home / _INDEX).read_bytes(), layers, first, last)
        return described | {_INDEX}

    def _complete(self, home: Path, layers: range, first: bool, last: bool) -> bool:
        wanted, by_name = self._wanted(home, layers, first, last), {f.name: f for f in self.files}
        return any(name.endswith((_SHARDS, ".gguf")) for name in wanted) and all(
            name in by_name and _is_here(home / name, by_name[name]) for name in wanted
        )


def _is_here(path: Path, file: ModelFile) -> bool:
    """Judged by its size: what enters the cache has been hashed."""
    try:
        return path.is_file() and path.stat().st_size == file.size
    except OSError:
        return False


def adopt(manifest: Manifest, file: ModelFile, directory: Path | None = None) -> bool:
    """Links a file to another tool's copy on this machine, found by its hash. Returns whether there is one. Raises OSError."""
    root, parsed = directory or cache_dir(), Reference.parse(manifest.reference)
    name, path = (parsed.name, parsed.gguf or file.name) if parsed.kind == "hub" else ("", file.name)
    if (found := stores.held(name, RepositoryFile(path, file.size, file.sha256), root)) is None:
        return False
    log.info("a file in another tool's store is used where it lies", file=str(found))
    link(manifest.home(directory) / file.name, found.resolve())
    return True


# The head's own list


def manifest(reference: str, path: Path, hash_paths: bool = True, directory: Path | None = None) -> tuple[Manifest, dict[str, Path]]:
    """The list of a model's files, and where this machine has them, by hash.

    reference, path: as in Description. hash_paths: whether a local path is hashed too, which takes seconds per gigabyte the
    first time. Raises OSError, FetchError.
    """
    parsed = Reference.parse(reference)
    if parsed.kind == "catalogue":
        entry = catalogue()[parsed.name]
        return Manifest(reference, (ModelFile(entry.file, entry.size, entry.sha256),)), {entry.sha256: path}
    if parsed.kind == "path" and not hash_paths:
        return Manifest(reference, ()), {}
    # The user's name for a single file is of no use on other machines, and may be unsafe there.
    root = directory or cache_dir()
    found = _gguf(path, root) if path.is_file() else {p.name: p for p in sorted(path.iterdir()) if _is_part(p) and p.is_file()}
    here = {name: ModelFile(name, p.stat().st_size, known_hash(p, root)) for name, p in found.items()}
    files = {**_hub_files(parsed, root), **here} if parsed.kind == "hub" and path.is_dir() else here
    return Manifest(reference, tuple(files.values())), {here[name].sha256: p for name, p in found.items()}


def _gguf(path: Path, root: Path) -> dict[str, Path]:
    """A GGUF file, or its parts and an index of them, which is stored in the cache. Raises OSError."""
    if len(parts_of(path)) == 1:
        return {"model.gguf": path}
    files = GgufFiles(path)
    names = [f"model-{n:05}-of-{len(files.parts):05}.gguf" for n in range(1, len(files.parts) + 1)]
    if len(names) == 1:
        return {"model.gguf": path}
    index = files.index(names)
    place = root / "indexes" / f"{hashlib.sha256(index).hexdigest()}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(index)
    fresh.replace(place)
    return {**dict(zip(names, files.parts, strict=True)), GGUF_INDEX: place}


def _is_part(path: Path) -> bool:
    return NAME.fullmatch(path.name) is not None and (path.name in {_CONFIG, _INDEX} | _TEXT or path.suffix == _SHARDS)


def _hub_files(reference: Reference, root: Path) -> dict[str, ModelFile]:
    """The hub's own list of a commit's weights; empty if it was never asked and does not answer."""
    try:
        repository = HubFolder.own(root, reference.name).recall(reference.revision) or hub.ask(reference.name, reference.revision)
    except (OSError, FetchError) as error:
        log.warning("the hub does not say what the model's files are", reason=str(error))
        return {}
    stored = [file for file in (*weights(repository), *description(repository)) if file.sha256 and _is_part(Path(file.path))]
    return {file.path: ModelFile(file.path, file.size, file.sha256) for file in stored if "/" not in file.path}
