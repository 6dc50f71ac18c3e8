"""Files that hold secrets: written whole or not at all, readable by their owner alone."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from shoal.errors import ConfigError

_LARGEST = 64 * 1024  # bytes; a key and two certificates are under 4 KiB


def make_private_folder(folder: Path) -> None:
    """Creates `folder` with mode 0700. Raises ConfigError if an existing one is open to others."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(folder.stat(), folder, "0700")
    except OSError as error:
        raise _unwritable(folder, error) from error


def check_writable(path: Path) -> None:
    """Raises ConfigError if `path` could not be written. Call it before obtaining something that can be obtained only once."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write {path}: {error.strerror or error}; set SHOAL_HOME (or SHOAL_CACHE, for models too) to a folder that this user may write to, with room in it"
    )


def write_private(path: Path, data: bytes, *, fresh: bool = False) -> None:
    """Writes `path` atomically with mode 0600; `fresh` never replaces a file. Raises ConfigError, and FileExistsError if `fresh`."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                os.link(name, path)
            else:
                os.replace(name, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    except FileExistsError:
        if fresh:
            raise
        raise ConfigError(f"cannot write {path}: part of its path is a file") from None
    except OSError as error:
        raise _unwritable(path, error) from error


def read_private(path: Path, remedy: str = "delete it and pair again") -> bytes:
    """The file's bytes. remedy: what to do if somebody else has read it. Raises FileNotFoundError, and ConfigError if others may read it or it cannot be read."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            _check(status, path, "0600", remedy)
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > _LARGEST:
        raise ConfigError(f"{path} is not one of shoal's files: it is larger than {_LARGEST} bytes")
    return data


def _check(status: os.stat_result, path: Path, mode: str, remedy: str = "delete it and pair again") -> None:
    if not hasattr(os, "geteuid"):  # modes have no meaning here
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{path} belongs to another user, who can read the key in it; `chown` it to the user who runs shoal")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(f"{path} is open to other users; `chmod {mode} {path}` if nobody has read it, else {remedy}")
