"""The configuration file: TOML, a section for each role, keys named like the flags.

    log-format = "json"     # of every command
    [head]                  # `up` and `serve`, and what the others start here
    [node]                  # `join`, and the nodes that others start here
    [client]                # `run`, `chat`, `batch` and `nodes`

Every key and value is checked when the file is read, so that any command reports a mistake with its line.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shoal.errors import ConfigError
from shoal.spelling import suggestion

_LARGEST = 1 << 20  # bytes
_WORDS: dict[type[Any], str] = {bool: "true or false", int: "a whole number", float: "a number", str: 'text in quotes, like "…"'}


@dataclasses.dataclass(frozen=True)
class FileKey:
    """A key that a section may have.

    kind: bool, int, float, str or an enum of strings. check: raises ConfigError for a value that the option would refuse.
    secret: the value grants access, and is not shown. default: None if it differs between commands
    """

    kind: type[Any]
    help: str = ""
    default: Any = None
    check: Callable[[Any], object] = lambda value: None
    secret: bool = False
    variables: tuple[str, ...] = ()

    def parsed(self, value: Any) -> Any:
        """The setting's value for a TOML value. Raises ConfigError."""
        if issubclass(self.kind, enum.Enum):
            choices = [str(choice.value) for choice in self.kind]
            if value not in choices:
                near = suggestion(value, choices) if isinstance(value, str) else ""
                raise ConfigError(f"is one of {', '.join(choices)}, not {_shown(value)}{near}")
            return self.kind(value)
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is not self.kind:
            said = "***" if self.secret else _shown(value)
            raise ConfigError(f"is {_WORDS[self.kind]}, not {said}")
        return value


Sections = Mapping[str, Mapping[str, FileKey]]
"""The keys of each section by name; those before any section under ''."""


@dataclasses.dataclass(frozen=True)
class ConfigEntry:
    value: Any
    line: int


class ConfigFile:
    """The contents of a file. Created by `read`."""

    def __init__(self, path: Path, entries: Mapping[tuple[str, str], ConfigEntry]) -> None:
        self.path = path
        self._entries = entries

    def section(self, name: str) -> dict[str, Any]:
        """Values by key."""
        return {key: entry.value for (section, key), entry in self._entries.items() if section == name}

    def where(self, section: str, key: str) -> str | None:
        """'FILE:LINE'; None if the file does not set it."""
        entry = self._entries.get((section, key))
        return None if entry is None else f"{self.path}:{entry.line}"

    def warning(self, sections: Sections) -> str:
        """A warning about secrets in a file that users other than its owner can read; '' if there are none."""
        held = [key for (section, key), entry in self._entries.items() if _secret(sections[section][key], entry.value)]
        if not held or not self.path.stat().st_mode & 0o077:
            return ""
        return f"{self.path} holds {', '.join(held)}, and other users can read it: chmod 600 {self.path}"


def _secret(key: FileKey, value: Any) -> bool:
    return bool(value) and (key.secret or (isinstance(value, str) and re.match(r"\w+://[^/\s]*:[^/\s]*@", value) is not None))


def read(path: Path, sections: Sections, *, must_be: bool = False) -> ConfigFile:
    """must_be: a missing file is an error, instead of counting as empty. Raises ConfigError, which names the file and the line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        if not must_be and (isinstance(error, FileNotFoundError | NotADirectoryError) or not os.access(path.parent, os.R_OK | os.X_OK)):
            return ConfigFile(path, {})
        if isinstance(error, FileNotFoundError):
            raise ConfigError(f"SHOAL_CONFIG names {path}, which does not exist; `shoal config init` writes one") from None
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > _LARGEST:
        raise ConfigError(f"{path} is larger than {_LARGEST} bytes: it is not a configuration file")
    try:
        text = data.decode()
        tables = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}:{data.count(bytes([10]), 0, error.start) + 1}: this is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise _bad_toml(path, data.decode(), str(error)) from None
    return ConfigFile(path, _entries(path, tables, lines(text), sections))


def _entries(
    path: Path, tables: Mapping[str, Any], at: Mapping[tuple[str, str], int], sections: Sections
) -> dict[tuple[str, str], ConfigEntry]:
    """Raises ConfigError."""
    said: list[tuple[str, str, Any]] = []
    for name, value in tables.items():
        if not isinstance(value, dict):
            said.append(("", name, value))
        elif name in sections:
            said += [(name, key, inner) for key, inner in value.items()]  # pyright: ignore[reportUnknownVariableType]
        else:
            line = at.get(("", name), 1)
            known = [known for known in sections if known]
            near = suggestion(name, known) or f"; there are {', '.join(f'[{known}]' for known in known)}"
            raise ConfigError(f"{path}:{line}: there is no section [{name}]{near}")
    entries: dict[tuple[str, str], ConfigEntry] = {}
    for section, key, value in said:
        line = at.get((section, key), at.get(("", section), 1))
        known = sections[section].get(key)
        if known is None:
            raise ConfigError(f"{path}:{line}: {_unknown(section, key, sections)}")
        try:
            parsed = known.parsed(value)
        except ConfigError as error:
            raise ConfigError(f"{path}:{line}: {key} {error}") from None
        try:
            known.check(parsed)
        except ConfigError as error:
            raise ConfigError(f"{path}:{line}: {error}") from None
        entries[section, key] = ConfigEntry(parsed, line)
    return entries


def _unknown(section: str, key: str, sections: Sections) -> str:
    here = f"[{section}] has no key '{key}'" if section else f"there is no key '{key}' outside of the sections"
    if near := suggestion(key, sections[section]):
        return here + near
    if homes := [name for name in sections if name != section and key in sections[name]]:
        return here + "; it belongs " + " or ".join(f"under [{name}]" if name else "before the first section" for name in homes)
    return here + suggestion(key, {key for name in sections for key in sections[name]}) + "; `shoal config show` lists them"


def _bad_toml(path: Path, text: str, why: str) -> ConfigError:
    found = re.search(r"\(at line (\d+), column (\d+)\)", why)
    line = int(found[1]) if found else text.count("\n") + 1
    rows = text.splitlines()
    row = rows[line - 1] if 0 < line <= len(rows) else ""
    hint = ""
    if re.match(r"\s*[\w.-]+\s*=\s*(True|False|yes|no|on|off)\b", row, re.IGNORECASE):
        hint = "; write true or false"
    elif re.match(r"\s*[\w.-]+\s*=\s*[^\s\"'\[{#]", row):
        hint = '; write text in quotes, like "…"'
    return ConfigError(f"{path}:{line}: this is not TOML: {re.sub(r' *[(]at .*[)]', '', why)}{hint}")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str | int | float) else f"a TOML {type(value).__name__}"


_HEADER = re.compile(r"\s*\[\s*[\"']?([\w-]+)[\"']?\s*\]")
_ASSIGNED = re.compile(r"\s*[\"']?([\w-]+)[\"']?(?:\s*\.\s*[\"']?([\w-]+)[\"']?)?\s*=")


def lines(text: str) -> dict[tuple[str, str], int]:
    """The line of each key, by section, and of each section under ''; tomllib does not report them. Text must be TOML."""
    found: dict[tuple[str, str], int] = {}
    section, inside = "", ""
    for number, row in enumerate(text.splitlines(), 1):
        if not inside:
            if header := _HEADER.match(row):
                section = header[1]
                found.setdefault(("", section), number)
            elif assigned := _ASSIGNED.match(row):
                first, second = assigned[1], assigned[2]
                found.setdefault((section, first), number)
                if second and not section:
                    found.setdefault((first, second), number)
        for mark in ('"""', "'''"):
            if inside in ("", mark) and row.count(mark) % 2:
                inside = "" if inside else mark
    return found
