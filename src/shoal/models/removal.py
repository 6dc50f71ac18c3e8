"""Removes models that shoal fetched, and nothing else: other tools' files are not touched."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shoal.errors import UserError
from shoal.folders import cache_dir
from shoal.models.hub_folder import HubFolder
from shoal.models.inventory import HUGGING_FACE, KeptModel, inventory, kept
from shoal.models.locks import lock
from shoal.models.part import part_paths
from shoal.models.reference import Reference
from shoal.models.repository import SAFETENSORS

_PROCESSES = Path("/proc")


@dataclass(frozen=True)
class Removal:
    """What removing a model would delete."""

    name: str
    root: Path
    folders: tuple[Path, ...]
    files: tuple[Path, ...]
    """Some may be inside the folders."""

    @property
    def bytes(self) -> int:
        return sum(_size(path) for path in self._all())

    def _all(self) -> set[Path]:
        inside = (path for folder in self.folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        return {path.resolve() for path in (*inside, *self.files)}

    def check(self) -> None:
        """Raises UserError if another process uses or fetches one of the files."""
        if users := mapped_by(self._all()):
            raise UserError(f"{self.name} is in use by process {', '.join(map(str, users))}; stop it first")
        for sha256 in sorted({path.stem for path in self.files if len(path.stem) == 64}):
            try:
                with lock(self.root / "parts" / f"{sha256}.lock", wait=False):
                    pass
            except BlockingIOError:
                raise UserError(f"{self.name} is being fetched by another process; stop it first") from None

    def carry_out(self) -> None:
        """Raises OSError."""
        for folder in self.folders:
            shutil.rmtree(folder)
        for file in self.files:
            file.unlink(missing_ok=True)


def removal(text: str, directory: Path | None = None) -> Removal | None:
    """What to remove for a model's name; None if shoal has nothing of it.

    Raises UnknownModel, and UserError for a model that is not shoal's: it says whose it is and how that tool removes it.
    """
    reference, root = Reference.parse(text), directory or cache_dir()
    match reference.kind:
        case "catalogue":
            home = root / "models" / reference.name
            return Removal(reference.name, root, (home,), ()) if home.exists() else None
        case "hub":
            return _of_hub(reference, root)
        case "ollama":
            raise UserError(f"{reference.name} is in Ollama's store; `ollama rm {reference.name}` removes it")
        case "lmstudio":
            raise UserError(f"{reference.name} belongs to LM Studio, which removes it under My Models")
        case _:
            raise UserError(
                f"{reference.name} is a file or folder of yours; shoal removes what it fetched, as `shoal models list` shows it"
            )


def _of_hub(reference: Reference, root: Path) -> Removal | None:
    own = [model for model in kept(root) if model.repository.lower() == reference.name.lower()]
    chosen = [model for model in own if reference.tag is None or _is(model, reference.tag)]
    folder = HubFolder.own(root, own[0].repository if own else reference.name)
    if chosen and len(chosen) < len(own):
        needed = {file for model in own if model not in chosen for file in model.files}
        folders = tuple(place for model in chosen if model.title for place in model.folders)
        return Removal(str(reference), root, folders, tuple(file for file in _files(chosen) if file not in needed))
    if own and not chosen:
        raise UserError(f"{reference.name} is here as {', '.join(model.title or SAFETENSORS for model in own)}, not as {reference.tag}")
    if not own and any(model.owner == HUGGING_FACE and _repository(model.name) == reference.name for model in inventory(root)):
        raise UserError(f"{reference.name} is in the cache of Hugging Face's tools; `hf cache rm model/{reference.name}` removes it")
    return Removal(str(reference), root, (folder.path,), (*_files(chosen), *_begun(folder, root))) if folder.path.exists() else None


def _repository(name: str) -> str:
    return name.partition(":")[0]


def _is(model: KeptModel, tag: str) -> bool:
    return tag.lower() == (model.title or SAFETENSORS).lower()


def _files(models: Iterable[KeptModel]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(file for model in models for file in model.files))


def _begun(folder: HubFolder, root: Path) -> list[Path]:
    """What interrupted fetches left behind."""
    listed = [listing for commit in folder.listed() if (listing := folder.recall(commit)) is not None]
    hashes = {file.sha256 for listing in listed for file in listing.files if file.sha256}
    return [path for sha256 in hashes for path in part_paths(root / "parts", sha256) if path.exists()]


def _size(path: Path) -> int:
    """On the disk: a partial file has its final size, but is mostly empty."""
    status = path.stat()
    return min(status.st_size, status.st_blocks * 512)


def mapped_by(paths: set[Path]) -> list[int]:
    """Processes of this machine that have one of the files mapped, as far as this user may see; none if the system does not say."""
    wanted = {str(path) for path in paths}
    found: list[int] = []
    for maps in _PROCESSES.glob("[0-9]*/maps"):
        with contextlib.suppress(OSError), maps.open(errors="replace") as lines:
            if any("/" in line and line[line.index("/") :].rstrip("\n") in wanted for line in lines):
                found.append(int(maps.parent.name))
    return found
