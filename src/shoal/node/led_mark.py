"""What a head's state folder says of itself, over restarts of the head: what this head led with, or a copy of what another one leads with."""

from __future__ import annotations

from pathlib import Path

from shoal.errors import ConfigError
from shoal.whole_file import write_whole

_NAME = "+led"  # which no log's folder has, see pipeline.log_file.log_folder
_COPY = b"copy"


def led(state: Path) -> int | None:
    """The term by which this head led last; 0: it never led by a lease; None: another head led since, and what is here is a copy of what that
    one had, whole or not. Raises ConfigError."""
    path = state / _NAME
    try:
        said = path.read_bytes()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if said == _COPY:
        return None
    if not said.isdigit():
        raise ConfigError(f"{path} holds something else than a term; delete it to begin with the requests that are in its folder")
    return int(said)


def mark_led(state: Path, term: int) -> None:
    """This head leads with what is here. Raises ConfigError."""
    _write(state / _NAME, b"%d" % term)


def mark_copied(state: Path) -> None:
    """Another head leads. Raises ConfigError."""
    _write(state / _NAME, _COPY)


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}; choose another --state") from error
