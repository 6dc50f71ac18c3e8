"""The configuration file: TOML, a section for each role, keys named like the flags.

    log-format = "json"     # of every command
    [head]                  # `up` and `serve`, and what the others start here
    [node]                  # `join`, and the nodes that others start here
    [client]                # `run`, `chat`, `batch` and `nodes`
    [models.NAME]           # one model of `up` and `serve`

Every key and value is checked when the file is read, so that any command reports a mistake with its line.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from shoal.errors import ConfigError
from shoal.spelling import suggestion

MODELS = "models"
"""The section that holds one for each model. The section of one is called MODELS, a dot, and the model's name."""
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
"""The keys of each section by name; those before any section under ''; those of every model under MODELS."""


def keys_of(sections: Sections, section: str) -> Mapping[str, FileKey]:
    return sections[MODELS if _model(section) else section]


def header(section: str) -> str:
    """As it is written in the file: '[head]', '[models."org/model:Q8_0"]'."""
    if (name := _model(section)) is None:
        return f"[{MODELS}.NAME]" if section == MODELS else f"[{section}]"
    return f"[{MODELS}.{name}]" if re.fullmatch(r"[\w-]+", name, re.ASCII) else f"[{MODELS}.{json.dumps(name, ensure_ascii=False)}]"


def _model(section: str) -> str | None:
    """The model that a section is about; None: it is about none alone."""
    return section.removeprefix(f"{MODELS}.") if section.startswith(f"{MODELS}.") else None


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

    @property
    def models(self) -> list[str]:
        """Names of the models that have a section with keys."""
        return [*dict.fromkeys(name for section, _ in self._entries if (name := _model(section)) is not None)]

    def where(self, section: str, key: str) -> str | None:
        """'FILE:LINE'; None if the file does not set it."""
        entry = self._entries.get((section, key))
        return None if entry is None else f"{self.path}:{entry.line}"

    def warning(self, sections: Sections) -> str:
        """A warning about secrets in a file that users other than its owner can read; '' if there are none."""
        held = [key for (section, key), entry in self._entries.items() if _secret(keys_of(sections, section)[key], entry.value)]
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
        elif name == MODELS:
            said += _of_models(path, value, at, sections[MODELS])  # pyright: ignore[reportUnknownArgumentType]
        elif name in sections:
            said += [(name, key, inner) for key, inner in value.items()]  # pyright: ignore[reportUnknownVariableType]
        else:
            known = [known for known in sections if known]
            near = suggestion(name, known) or f"; there are {', '.join(map(header, known))}"
            raise ConfigError(f"{path}:{_line(at, '', name)}: there is no section [{name}]{near}")
    entries: dict[tuple[str, str], ConfigEntry] = {}
    for section, key, value in said:
        line, known = _line(at, section, key), keys_of(sections, section).get(key)
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


def _of_models(
    path: Path, models: Mapping[str, Any], at: Mapping[tuple[str, str], int], keys: Collection[str]
) -> Iterator[tuple[str, str, Any]]:
    """Section, key and value of all that is said of single models. Raises ConfigError."""
    for name, values in models.items():
        section = f"{MODELS}.{name}"
        if not isinstance(values, dict) or not name:
            where = f"{path}:{_line(at, MODELS, name)}"
            raise ConfigError(f"{where}: [{MODELS}] holds a section for each model: {header(MODELS)}")
        for key, value in cast("dict[str, Any]", values).items():
            if isinstance(value, dict) and key not in keys:
                dotted = ".".join([section, *_nested(key, value)])  # pyright: ignore[reportUnknownArgumentType]
                raise ConfigError(f"{path}:{_line(at, '', dotted)}: a name with a dot needs quotes: {header(dotted)}")
            yield section, key, value


def _nested(key: str, value: dict[str, Any]) -> Iterator[str]:
    """The names of the first tables within one another."""
    yield key
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _nested(name, inner)  # pyright: ignore[reportUnknownArgumentType]
            return


def _line(at: Mapping[tuple[str, str], int], section: str, key: str) -> int:
    """Of a key, or else of what it is in."""
    inner = _model(section)
    places = ((section, key), ("", section), *([] if inner is None else [(MODELS, inner), ("", MODELS)]))
    return next((at[place] for place in places if place in at), 1)


def _unknown(section: str, key: str, sections: Sections) -> str:
    here = f"{header(section)} has no key '{key}'" if section else f"there is no key '{key}' outside of the sections"
    known = keys_of(sections, section)
    if homes := [name for name in sections if key in sections[name]]:
        return here + "; it belongs " + " or ".join(f"under {header(name)}" if name else "before the first section" for name in homes)
    if near := suggestion(key, known):
        return here + near
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


_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_NAME = rf"({_PART}(?:\s*\.\s*{_PART})*)"
_HEADER = re.compile(rf"\s*\[\s*{_NAME}\s*\]")
_ASSIGNED = re.compile(rf"\s*{_NAME}\s*=")


def _parts(name: str) -> list[str]:
    """'models."a.b"' → ['models', 'a.b']. Raises TOMLDecodeError."""
    inner: Any = tomllib.loads(f"{name} = 0")
    parts: list[str] = []
    while inner:
        (part,) = inner
        parts.append(part)
        inner = inner[part]
    return parts


def lines(text: str) -> dict[tuple[str, str], int]:
    """The line of each key, by section, and of each section under ''; tomllib does not report them. Text must be TOML."""
    found: dict[tuple[str, str], int] = {}
    section: list[str] = []
    inside = ""
    for number, row in enumerate(text.splitlines(), 1):
        if not inside:
            if head := _HEADER.match(row):
                section = _parts(head[1])
                found.setdefault(("", ".".join(section)), number)
            elif assigned := _ASSIGNED.match(row):
                names = _parts(assigned[1])
                for count in range(1, len(names) + 1):
                    *outer, key = [*section, *names[:count]]
                    found.setdefault((".".join(outer), key), number)
        for mark in ('"""', "'''"):
            if inside in ("", mark) and row.count(mark) % 2:
                inside = "" if inside else mark
    return found
