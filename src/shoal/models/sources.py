"""Where a model's files come from, for any name that a user may give: see reference.py. Files are fetched once, checked by hash
and kept in the cache, or used in place in another tool's store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from shoal.errors import FetchError, Unreachable, UserError
from shoal.folders import cache_dir
from shoal.models import hub, lmstudio, ollama, packages
from shoal.models.catalogue import catalogue, standing_in
from shoal.models.failures import disk_or_network
from shoal.models.gguf_files import INDEX as GGUF_INDEX
from shoal.models.hub_folder import HubFolder
from shoal.models.layer_files import every_shard, shard_files
from shoal.models.locks import lock
from shoal.models.progress import Progress, silent
from shoal.models.reference import Reference, ambiguity
from shoal.models.repository import (
    INDEX,
    SAFETENSORS,
    Repository,
    RepositoryFile,
    Variant,
    choose,
    description,
    folder_of,
    local_names,
    offered,
    variants,
    weights,
)
from shoal.models.snapshot import HeaderCheck, Snapshot
from shoal.models.weights import check_types, open_spec
from shoal.spelling import suggestion

log = structlog.get_logger()

Wanted = Callable[[bytes], set[str]]
"""Which files of a multi-file model are wanted, given their index."""


@dataclass(frozen=True)
class ModelSource:
    """A model whose location is known. `reference` means the same files from now on, on every machine that can reach them."""

    reference: Reference
    root: Path
    """shoal's cache."""
    repository: Repository | None = None
    """Of the hub."""

    def pull(self, progress: Progress = silent) -> Path:
        """The path to open; fetches the model if necessary. Raises FetchError, HashMismatch, UnsupportedModel, CorruptModel,
        UserError."""
        with self._failures():
            if self.repository is not None:
                return self._pull_hub(self.repository, every_shard, progress, check=True)
            path = self.there()
            return path if path is not None else self._pull_catalogue(progress)

    def pull_layers(self, layers: range, first: bool, last: bool, progress: Progress = silent) -> Path:
        """Like pull, but of a multi-file model only the files that hold these layers (and the embedding or head)."""
        if self.repository is None:
            return self.pull(progress)
        with self._failures():
            return self._pull_hub(self.repository, lambda index: shard_files(index, layers, first, last), progress, check=False)

    def pull_description(self) -> Path:
        """The files that describe a model (configuration, tokenizer) without its weights, if the source can separate them."""
        if self.repository is None or self._variant is not None:
            return self.pull()
        with self._failures():
            snapshot = Snapshot(self.repository, self.root)
            snapshot.fetch(_by_path(description(self.repository)))
            self._check_weights(snapshot)
            return snapshot.home

    @contextlib.contextmanager
    def _failures(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise disk_or_network(str(self.reference), error) from error
        except msgspec.DecodeError as error:
            raise FetchError(f"{self.reference}: the list of its files cannot be read ({error})") from error

    @property
    def _variant(self) -> Variant | None:
        assert self.repository is not None
        return choose(self.repository, self.reference.tag)

    def there(self) -> Path | None:
        """What is on this machine, without asking a hub. Raises UserError for a path that does not exist."""
        name = self.reference.name
        if self.reference.kind == "catalogue":
            path = self.root / "models" / name / catalogue()[name].file
            return path if path.exists() else None
        if not (path := Path(name)).exists():
            raise UserError(f"{path}: no such file or directory{suggestion(path.name, catalogue())}")
        return path

    def _pull_catalogue(self, progress: Progress) -> Path:
        name = self.reference.name
        entry, home = catalogue()[name], self.root / "models" / name
        home.mkdir(parents=True, exist_ok=True)
        with lock(home / ".lock"):
            if not (home / entry.file).exists():
                packages.pull_entry(name, entry, home, progress)
        return home / entry.file

    def _pull_hub(self, repository: Repository, wanted: Wanted, progress: Progress, check: bool) -> Path:
        """check: whether to check first that shoal runs it."""
        snapshot = Snapshot(repository, self.root)
        if (variant := self._variant) is not None:
            return self._pull_gguf(snapshot, variant, wanted, progress, check)
        snapshot.fetch(_by_path(description(repository)))
        if check:
            self._check_weights(snapshot)
        index = snapshot.home / INDEX
        names = wanted(index.read_bytes()) if index.exists() else {file.path for file in weights(repository)}
        there = _by_path(repository.files)
        if unknown := sorted(names - there.keys()):
            raise FetchError(f"{self.reference}: the repository has no {unknown[0]}, which its index names")
        snapshot.fetch({name: there[name] for name in names}, progress)
        return snapshot.home

    def _pull_gguf(self, snapshot: Snapshot, variant: Variant, wanted: Wanted, progress: Progress, check: bool) -> Path:
        folder, files = folder_of(variant.first), local_names(variant)
        first = next(iter(files))
        index = snapshot.home / folder / GGUF_INDEX
        if index.exists():  # a peer delivered it
            names = wanted(index.read_bytes()) | {first}
            files = {name: file for name, file in files.items() if name in names}
        refusal = HeaderCheck(str(self.reference), lambda: offered(snapshot.repository)) if check else None
        snapshot.fetch({f"{folder}/{name}": file for name, file in files.items()}, progress, refusal)
        return snapshot.home / folder / first

    def _check_weights(self, snapshot: Snapshot) -> None:
        """Refuses safetensors that shoal does not run before they are fetched, by the configuration and the first file's header."""
        spec = open_spec(snapshot.home)
        first = next(iter(weights(snapshot.repository)), None)
        if first is None or snapshot.is_here(first, first.path):
            return
        with contextlib.suppress(Unreachable):  # other machines may have the weights
            types = hub.first_header(snapshot.repository.name, snapshot.repository.commit, first.path)
            check_types(types, spec, self.reference)


def resolve(text: str, directory: Path | None = None) -> ModelSource:
    """What a model's name means now. Asks the hub if its answer may have changed; if the hub cannot be asked, uses what is here.

    directory: shoal's cache, if not the user's own. Raises UnknownModel, UserError, FetchError.
    """
    reference, root = Reference.parse(text), directory or cache_dir()
    if also := ambiguity(text):
        log.warning(also)
    try:
        if reference.kind == "hub":
            return _of_hub(text, reference, root)
        if reference.kind == "ollama":
            return ModelSource(Reference("path", str(ollama.located(reference.name, root))), root)
        if reference.kind == "lmstudio":
            return ModelSource(Reference("path", str(lmstudio.located(reference.name, reference.tag))), root)
        return ModelSource(reference, root)
    except OSError as error:
        raise disk_or_network(str(reference), error) from error


def pin(text: str, directory: Path | None = None) -> str:
    """A reference that means the same files on all nodes: a commit and a file of the hub; a path in another tool's store."""
    return str(resolve(text, directory).reference)


def public_name(text: str) -> str:
    """The name that the API shows for a model reference."""
    return Reference.parse(text).title


def find(text: str, directory: Path | None = None) -> Path | None:
    """The files of a path or a model of the catalogue if they are already here; None if they must be pulled."""
    reference = Reference.parse(text)
    return None if reference.kind == "hub" else resolve(text, directory).there()


def pull(text: str, progress: Progress = silent, directory: Path | None = None) -> Path:
    """The path to open for a model; fetches it if necessary. Raises what `resolve` and `ModelSource.pull` raise."""
    return resolve(text, directory).pull(progress)


def pull_layers(text: str, layers: range, first: bool, last: bool, progress: Progress = silent, directory: Path | None = None) -> Path:
    """See ModelSource.pull_layers."""
    return resolve(text, directory).pull_layers(layers, first, last, progress)


def pull_description(text: str, directory: Path | None = None) -> Path:
    """See ModelSource.pull_description."""
    return resolve(text, directory).pull_description()


def _of_hub(text: str, reference: Reference, root: Path) -> ModelSource:
    folder = HubFolder.own(root, reference.name)
    if reference.pinned and (known := folder.recall(reference.revision)) is not None:
        return _chosen(reference, known, root)
    try:
        repository = hub.ask(reference.name, reference.revision)
    except FetchError as error:
        if (here := _here(reference, root)) is None:
            if text.startswith(reference.name) and type(error) in (FetchError, Unreachable):
                raise type(error)(f"{error}. There is no file or folder {text} either") from error
            raise
        log.warning(f"{error}. Used instead: {here.reference}")
        return here
    folder.remember(repository, reference.revision)
    return _chosen(reference, repository, root)


def _chosen(reference: Reference, repository: Repository, root: Path) -> ModelSource:
    """Raises UserError if the repository has no such model."""
    variant = choose(repository, reference.tag)
    tag = variant.first if variant is not None else SAFETENSORS if variants(repository.files) else None
    return ModelSource(Reference("hub", reference.name, repository.commit, tag), root, repository)


def _here(reference: Reference, root: Path) -> ModelSource | None:
    """What this machine has of a repository if the hub does not answer. Raises OSError."""
    folder = HubFolder.own(root, reference.name)
    listed = folder.recall(reference.revision)
    own = _as_far_as_here(listed, root) if listed is not None else folder.read(reference.revision)
    theirs = (folder.read(reference.revision) for folder in HubFolder.theirs(reference.name))
    for repository in (own, *theirs):
        if repository is not None:
            with contextlib.suppress(UserError):
                return _chosen(reference, repository, root)
    if reference.revision is None:
        with contextlib.suppress(UserError):
            return ModelSource(Reference("path", str(lmstudio.located(reference.name, reference.tag))), root)
        if (model := ollama.find(f"hf.co/{reference.name}:{reference.tag or 'latest'}")) is not None:
            return ModelSource(Reference("path", str(ollama.located(model.name, root))), root)
        if (name := standing_in(reference.name, reference.tag)) is not None:
            return ModelSource(Reference("catalogue", name), root)
    return None


def _as_far_as_here(repository: Repository, root: Path) -> Repository:
    """Without the GGUF models that are not here, and without safetensors if not even their configuration is here."""
    snapshot = Snapshot(repository, root)

    def has(variant: Variant) -> bool:
        return all(snapshot.is_here(file, f"{folder_of(variant.first)}/{name}") for name, file in local_names(variant).items())

    gguf = [file for variant in variants(repository.files) if has(variant) for file in variant.files]
    config = [file for file in repository.files if file.path == "config.json"]
    rest = [f for f in repository.files if not f.path.lower().endswith(".gguf")]
    return msgspec.structs.replace(repository, files=(*gguf, *(rest if config and snapshot.is_here(config[0], "config.json") else [])))


def _by_path(files: tuple[RepositoryFile, ...]) -> Mapping[str, RepositoryFile]:
    return {file.path: file for file in files}
