"""What settings are: fields of frozen dataclasses, documented and checked, that come from flags, the environment and a file.

Only this module, `environment` and `folders` read the environment. The command line derives its flags from the fields of a role: the field
`kv_type` is the flag `--kv-type`, the variable `SHOAL_KV_TYPE` and the key `kv-type` of the configuration file. The first of these that is
set wins.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, get_type_hints

from shoal.address import parse_host
from shoal.errors import ConfigError

S = TypeVar("S", bound="Settings")

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def setting(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A documented field; numbers are checked against [low, high]."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


def beside(default: Any) -> Any:
    """A field that is not set by a flag, a variable or a key of its own."""
    return dataclasses.field(default=default, metadata={"beside": True})


def part(role: type[S]) -> Any:
    """A role that is part of another: its settings count as the other's."""
    return dataclasses.field(default_factory=role, metadata={"role": role})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the roles."""

    _DASHES: ClassVar[str] = "--"
    """Before the names of its fields, for people: most are flags."""

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            if "role" in field.metadata:
                continue
            if isinstance(kinds[field.name], type) and issubclass(kinds[field.name], enum.Enum):
                self._choose(field.name, kinds[field.name])
            value, low, high = getattr(self, field.name), field.metadata.get("low"), field.metadata.get("high")
            flag = self._DASHES + field.name.replace("_", "-")
            if value is None or isinstance(value, str | bool) or low is None:
                continue
            if not (low <= value and (high is None or value <= high)):  # this also catches NaN
                upper = f" and at most {high:g}" if high is not None else ""
                raise ConfigError(f"{flag} must be at least {low:g}{upper}, not {value}")
        self.check()

    def _choose(self, name: str, kind: type[enum.Enum]) -> None:
        """Converts a plain string to the choice that it names."""
        try:
            object.__setattr__(self, name, kind(getattr(self, name)))
        except ValueError:
            choices = ", ".join(str(choice.value) for choice in kind)
            raise ConfigError(f"--{name.replace('_', '-')} is one of {choices}, not '{getattr(self, name)}'") from None

    def check(self) -> None:
        """Checks the fields together. Raises ConfigError; ContradictorySettings for what is wrong only because of another field."""

    def _check_host(self, name: str) -> None:
        """Converts a host to its stored form. Raises ConfigError."""
        try:
            object.__setattr__(self, name, parse_host(getattr(self, name)))
        except ConfigError as error:
            raise ConfigError(f"--{name.replace('_', '-')}: {error}") from None


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of a role. role: the one that declares it, which is that role or a part of it."""

    name: str
    kind: type[Any]
    default: Any
    help: str
    role: type[Settings]


def settings_of(role: type[Settings]) -> list[Setting]:
    """A role's settings, with those of its parts."""
    found: list[Setting] = []
    kinds = get_type_hints(role)
    for field in dataclasses.fields(role):
        if "role" in field.metadata:
            found += settings_of(field.metadata["role"])
        elif "beside" not in field.metadata:
            found.append(Setting(field.name, kinds[field.name], field.default, field.metadata["help"], role))
    return found


def values_of(settings: Settings) -> dict[str, Any]:
    """The values of settings by name, with those of their parts."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if "beside" not in field.metadata:
            values.update(values_of(value) if isinstance(value, Settings) else {field.name: value})
    return values


def composed(role: type[S], values: Mapping[str, Any]) -> S:
    """A role's settings from the given values by name, with defaults for the others; values of other roles are ignored. Raises
    ConfigError."""
    own = {
        field.name: composed(field.metadata["role"], values) if "role" in field.metadata else values[field.name]
        for field in dataclasses.fields(role)
        if "role" in field.metadata or field.name in values
    }
    return role(**own)


def _boolean(text: str) -> bool:
    """Raises ValueError."""
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False, "": False}
    if text.lower() not in known:
        raise ValueError("write true or false")
    return known[text.lower()]


def parse_bytes(text: str) -> int:
    """'1.5GiB' → 1610612736. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(f"'{text}' is not a size; write one like 512MiB or 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def variable(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """One variable's value; None if it is not set."""
    return environment.get(name)


def variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the SHOAL_ variables that are set."""
    return sorted(name for name in environment if name.startswith("SHOAL_"))


def from_environment(
    role: type[S], given: Mapping[str, Any], environment: Mapping[str, str] = os.environ, file: Mapping[str, Any] | None = None
) -> S:
    """A role's settings: the given values, then the environment, the file and the defaults. Raises ConfigError.

    file: values by field; fields of other roles are ignored
    """
    values: dict[str, Any] = {}
    for setting in settings_of(role):
        name, variable = setting.name, "SHOAL_" + setting.name.upper()
        if given.get(name) is not None:
            values[name] = given[name]
        elif variable in environment:
            kind: Any = _boolean if setting.kind is bool else setting.kind
            try:
                values[name] = kind(environment[variable])
            except ValueError as error:
                raise ConfigError(f"{variable}={environment[variable]!r}: {error}") from error
        elif file is not None and name in file:
            values[name] = file[name]
    return composed(role, values)
