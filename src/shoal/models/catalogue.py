"""The models that shoal knows by name: which packages hold their parts, and the hashes that they must have."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import msgspec


class Part(msgspec.Struct, frozen=True):
    registry: Literal["pypi", "npm"]
    package: str
    version: str
    sha256: str
    size: int
    member: str
    """Path of the part inside the package; parts are joined in their order."""


class Entry(msgspec.Struct, frozen=True):
    title: str
    file: str
    sha256: str
    size: int
    parts: tuple[Part, ...]


@cache
def catalogue() -> dict[str, Entry]:
    return msgspec.json.decode(resources.files("shoal.models").joinpath("catalogue.json").read_bytes(), type=dict[str, Entry])
