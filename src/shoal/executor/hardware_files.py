"""Reads hardware profiles: those that come with shoal, by name, and a user's own, by path."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from shoal.errors import ConfigError
from shoal.placement.hardware import Hardware
from shoal.placement.hardware_format import parse
from shoal.spelling import suggestion

_PROFILES = files("shoal") / "placement" / "profiles"


def known_hardware() -> list[str]:
    """The names of the profiles that come with shoal."""
    return sorted(file.name.removesuffix(".toml") for file in _PROFILES.iterdir() if file.name.endswith(".toml"))


def read_hardware(name: str) -> Hardware:
    """name: of a profile that comes with shoal, or the path of a .toml or .json file. Raises ConfigError."""
    if not name.endswith((".toml", ".json")):
        if name not in known_hardware():
            raise ConfigError(
                f"unknown hardware '{name}'{suggestion(name, known_hardware())}: known are {', '.join(known_hardware())}; "
                "a profile of your own is the path of a .toml or .json file"
            )
        return parse(name, tomllib.loads((_PROFILES / f"{name}.toml").read_text("utf-8")))
    return parse(name, _values(Path(name)))


def _values(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else msgspec.json.decode(text, type=dict[str, Any])
    except (OSError, ValueError, msgspec.DecodeError) as fault:
        raise ConfigError(f"the hardware profile '{path}' cannot be read: {fault}") from fault
