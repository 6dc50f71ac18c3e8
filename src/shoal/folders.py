"""shoal's folders on this machine: the cache, which can be fetched again; data and state, which cannot; and the settings.

| folder | what | named by | else, on Linux |
|---|---|---|---|
| cache | models, measurements: all of it can be had again | SHOAL_CACHE | ~/.cache/shoal |
| data | keys/ (the authority, certificates), api/ (keys, responses, files, batches, the response cache) | SHOAL_HOME, SHOAL_CACHE | ~/.local/share/shoal |
| state | heads/ (requests under way), chat/ (what was typed) | SHOAL_HOME, SHOAL_CACHE | ~/.local/state/shoal |
| config | config.toml | SHOAL_CONFIG (the file) | ~/.config/shoal |

XDG_CACHE_HOME, XDG_DATA_HOME, XDG_STATE_HOME and XDG_CONFIG_HOME apply on every system if they are set. If only SHOAL_CACHE is
set, the first three are all in that one folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from shoal.errors import ConfigError


def user_path(text: str) -> Path:
    """A path that may begin with ~. Raises ConfigError if the user has no home."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"there is no {text}: this user has no home folder; set HOME, or SHOAL_CACHE to a folder for models and keys"
        ) from error


def cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """For data that can be fetched again. Raises ConfigError if there is no home."""
    if chosen := environment.get("SHOAL_CACHE"):
        return user_path(chosen)
    return user_path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "shoal"


def data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """For data that would be lost if deleted. Raises ConfigError if there is no home."""
    return _named(environment) or _base("XDG_DATA_HOME", "~/.local/share", "LOCALAPPDATA", environment) / "shoal"


def state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """For data that outlives a process but only matters on this machine. Raises ConfigError if there is no home."""
    return _named(environment) or _base("XDG_STATE_HOME", "~/.local/state", "LOCALAPPDATA", environment) / "shoal"


def keys_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where a head stores its authority, and a node its certificates."""
    return data_dir(environment) / "keys"


def config_file(environment: Mapping[str, str] = os.environ) -> Path:
    """It need not exist. Raises ConfigError if there is no home."""
    if chosen := environment.get("SHOAL_CONFIG"):
        return user_path(chosen)
    return _base("XDG_CONFIG_HOME", "~/.config", "APPDATA", environment) / "shoal" / "config.toml"


def config_is_named(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the user chose the configuration file, so that it must exist."""
    return bool(environment.get("SHOAL_CONFIG"))


def named(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the user chose a folder for kept data."""
    return _named(environment) is not None


def _named(environment: Mapping[str, str]) -> Path | None:
    chosen = environment.get("SHOAL_HOME") or environment.get("SHOAL_CACHE")
    return user_path(chosen) if chosen else None


def _base(variable: str, plain: str, windows: str, environment: Mapping[str, str]) -> Path:
    """The base folder for a user's programs: from XDG's variable, otherwise the system's convention."""
    if chosen := environment.get(variable):
        return user_path(chosen)
    if sys.platform == "darwin":
        return user_path("~/Library/Application Support")
    if sys.platform == "win32" and (chosen := environment.get(windows)):
        return Path(chosen)
    return user_path(plain)
